"""The look: one set of colours for light and dark, on Gradio's own variables, so that its components follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "core.js",
    "share.js",
    "mix_rows.js",
    "row_details.js",
    "mask.js",
    "job.js",
    "more.js",
    "words.js",
    "library.js",
    "gallery.js",
    "forms.js",
)
STYLES = ("base.css", "parts.css")
NARROW = "narrow.css"

_FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"]
_LIGHT = {
    "page": "#f4f2ee",
    "card": "#ffffff",
    "field": "#faf9f6",
    "ink": "#1d1b19",
    "quiet": "#6b665e",
    "line": "#e0dbd2",
}
_DARK = {
    "page": "#131211",
    "card": "#1c1b19",
    "field": "#252320",
    "ink": "#efebe5",
    "quiet": "#a39d93",
    "line": "#34312d",
}
_ACCENT, _ACCENT_DARK = "#b4430f", "#f08a4b"


def theme() -> Any:
    """Make the theme."""
    accent = gr.themes.Color(
        *("#fff4ed", "#ffe6d5", "#fecbaa", "#fda674", "#f08a4b", "#d9651f"),
        *("#b4430f", "#95360f", "#782f13", "#632a13", "#361306"),
    )
    base = gr.themes.Base(
        primary_hue=accent,
        neutral_hue="stone",
        font=_FONT,
        font_mono=_MONO,
        radius_size="md",
        text_size="md",
        spacing_size="md",
    )
    values: dict[str, str] = {}
    for suffix, colours, strong in (("", _LIGHT, _ACCENT), ("_dark", _DARK, _ACCENT_DARK)):
        values |= {
            f"body_background_fill{suffix}": colours["page"],
            f"background_fill_primary{suffix}": colours["card"],
            f"background_fill_secondary{suffix}": colours["field"],
            f"block_background_fill{suffix}": colours["card"],
            f"block_border_color{suffix}": colours["line"],
            f"border_color_primary{suffix}": colours["line"],
            f"border_color_accent{suffix}": strong,
            f"body_text_color{suffix}": colours["ink"],
            f"body_text_color_subdued{suffix}": colours["quiet"],
            f"block_label_text_color{suffix}": colours["quiet"],
            f"block_title_text_color{suffix}": colours["quiet"],
            f"block_info_text_color{suffix}": colours["quiet"],
            f"input_background_fill{suffix}": colours["field"],
            f"input_border_color{suffix}": colours["line"],
            f"input_placeholder_color{suffix}": colours["quiet"],
            f"color_accent_soft{suffix}": colours["field"],
            f"slider_color{suffix}": strong,
            f"button_primary_background_fill{suffix}": strong,
            f"button_primary_background_fill_hover{suffix}": "#95360f" if not suffix else "#f7a673",
            f"button_primary_text_color{suffix}": "#ffffff" if not suffix else "#1d1b19",
            f"button_secondary_background_fill{suffix}": colours["field"],
            f"button_secondary_background_fill_hover{suffix}": colours["line"],
            f"button_secondary_text_color{suffix}": colours["ink"],
            f"button_secondary_border_color{suffix}": colours["line"],
            f"panel_background_fill{suffix}": "transparent",
            f"checkbox_background_color{suffix}": colours["field"],
        }
    return base.set(
        **values,
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_title_text_weight="500",
        block_title_text_size="13px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        form_gap_width="12px",
        layout_gap="14px",
        button_large_radius="8px",
        input_border_width="1px",
        input_radius="8px",
        input_padding="9px 11px",
    )


def css() -> str:
    """Read the styles."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in STYLES)


def head() -> str:
    """Return the scripts for the page's head."""
    scripts = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    narrow = (STATIC / NARROW).read_text(encoding="utf-8")
    return f"<script>\n{scripts}\n</script>\n<style>\n{narrow}\n</style>\n<meta name='color-scheme' content='light dark'>"


def part(name: str, *events: str, **options: Any) -> Any:
    """
    Make a component of ``static/``.

    Args:
        name: Its name there.
        events: The events it triggers.
        options: For ``gr.HTML``; others are its props.
    """
    # The template has no values in it: Gradio would run "${...}" in a file's name as code.
    listed = " ".join(f"'{event}'" for event in events)
    return gr.HTML(
        html_template='<div class="lm-root"></div>',
        js_on_load=(
            f"lm.start('{name}', element, {{ props, trigger, watch, "
            f"server: typeof server === 'undefined' ? null : server }}); /* {listed} */"
        ),
        apply_default_css=False,
        **options,
    )


def note(words: str) -> Any:
    """
    Show a line of explanation.

    Args:
        words: HTML of this package's own.
    """
    return gr.HTML(f'<p class="lm-root lm-note">{words}</p>', padding=False, apply_default_css=False)

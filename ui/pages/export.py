"""The Export page: the mix as one file, or baked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.merging import METHODS, Setting
from lora_mixer.writing import FORMATS

from ..handlers import export as handlers
from ..theme import note, part

if TYPE_CHECKING:
    from .shared import Shared


def _setting_field(method: str, setting: Setting) -> dict[str, Any]:
    field: dict[str, Any] = {
        "id": handlers.setting_field(method, setting), "label": setting.name.capitalize(), "hint": setting.summary,
        "value": str(setting.default), "row": 3, "only": {"field": "export-method", "value": method},
    }  # fmt: skip
    if setting.choices:
        return field | {"kind": "select", "choices": list(setting.choices)}
    return field | {"kind": "number", "step": "1" if isinstance(setting.default, int) else "any"}


def _name_field(page: str, value: str) -> dict[str, Any]:
    return {"id": f"{page}-name", "label": "Name", "kind": "text", "value": value, "longest": 80}


def _number_field(what: str, label: str, hint: str, **more: Any) -> dict[str, Any]:
    """Describe a number of the fold below the others, with what it does in words beneath it."""
    return {
        "id": f"export-{what}", "label": label, "kind": "number", "value": "0", "min": 0, "row": 2, "hint": hint,
        "fold": "Smaller files, more finely", "told": True, **more,
    }  # fmt: skip


_FIELDS: list[dict[str, Any]] = [
    _name_field("export", "my-mix"),
    {"id": "export-format", "label": "Format", "kind": "select", "choices": list(FORMATS), "value": "kohya", "row": 1},
    {
        "id": "export-rank", "label": "Rank (0: exact)", "kind": "number", "value": "0", "min": 0, "row": 1,
        "hint": "The size of the file: a small rank makes a small file that keeps less of the mix",
    },
    {
        "id": "export-dtype", "label": "Type", "kind": "select", "choices": list(handlers.DTYPES),
        "value": handlers.DTYPES[0], "row": 1, "hint": "How numbers are written: float16 takes half of float32",
    },
    _number_field(
        "energy", "Energy (0: all)", "The share of each layer's effect to keep, up to 1; the rank is the most then.", step="any"
    ),
    _number_field(
        "sv-ratio", "SV ratio (0: all)", "Leaves out what is weaker than a layer's strongest part divided by this.", step="any"
    ),
    _number_field("conv-rank", "Conv rank (0: rank)", "The rank of convolutions above 1x1."),
    {"id": "export-method", "label": "Method", "kind": "select", "choices": list(METHODS), "value": "sum", "row": 3},
    *(_setting_field(spec.name, setting) for spec in METHODS.values() for setting in spec.settings),
]  # fmt: skip
_BAKE_FIELDS = [_name_field("bake", "my-model")]


def _written(elem_id: str) -> Any:
    """Lay out where a page says what was written; nothing is seen of it before."""
    return gr.Textbox(
        label="Written",
        lines=2,
        interactive=False,
        placeholder=" ",
        elem_id=elem_id,
        elem_classes="lm-written",
    )


def export_page(shared: Shared) -> None:
    """Lay the page out and connect it."""
    app = shared.app
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=6, min_width=320, elem_classes="lm-panel"):
            note("<b>One LoRA file</b><br>The mix as it is now, for other programs.")
            form = part("form", value=None, kept_as="export", fields=_FIELDS, elem_id="export-form")
            write = gr.Button("Export", variant="primary", elem_id="export-button")
            said = _written("export-report")
            verdict = part("verdict", value=None, elem_id="export-verdict")
            file = part("downloads", value=None, elem_id="export-file")
        with gr.Column(scale=6, min_width=320, elem_classes="lm-panel"):
            note(
                "<b>Baked model</b><br>A diffusers folder with the mix in its weights; it stays on this machine, "
                "under <code>exports</code>."
            )
            folder = part("form", value=None, kept_as="bake", fields=_BAKE_FIELDS, elem_id="bake-form")
            bake = gr.Button("Bake", elem_id="bake-button")
            baked = _written("bake-report")

    async def export(
        mix_rows: Any, given: Any, request: gr.Request
    ) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
        owner = shared.owner_of(request)
        made = await shared.jobs.result(
            f"{owner}/export",
            "export",
            "an export",
            lambda job: handlers.one_file(app, job.owner, mix_rows, given),
        )
        return [handlers.offered(app, place) for place in made.files], made.report, made.verdict

    shared.connect(
        write.click, export, [shared.mix_rows, form], [file, said, verdict], show_progress="minimal"
    )

    async def to_folder(mix_rows: Any, given: Any, request: gr.Request) -> Any:
        owner = shared.owner_of(request)
        return await shared.jobs.result(
            f"{owner}/export",
            "bake",
            "a baked model",
            lambda job: handlers.baked(app, job.owner, mix_rows, given),
        )

    shared.connect(bake.click, to_folder, [shared.mix_rows, folder], baked, show_progress="minimal")

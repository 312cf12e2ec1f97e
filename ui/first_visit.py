"""
What a first visit brings along: Gradio's styles of the components that the page has, within the page itself.

Gradio loads each component's styles by a request of its own, thirty or so for this page. Its loader asks for no file that a
link of the page names already: so the page holds the styles, and links to them that are switched off. Where Gradio's files do
not look as expected, nothing is put in, and the loader does as it always does.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import gradio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
_LISTED = re.compile(r"m\.f=\[([^\]]*)\]")
_ENTRY = re.compile(r"[{,]([a-z_0-9]+):\{((?:component|example|base):[^{}]*)\}")
_NUMBERS = re.compile(r"__vite__mapDeps\(\[([\d,]*)\]\)")
_BLOCKS = re.compile(
    r"import\(`\./Blocks-[\w-]+\.js`\);return\{default:\w+\}\},__vite__mapDeps\(\[([\d,]*)\]\)"
)
_FETCHES = re.compile(r"url\((?!['\"]?data:)")
_MAIN = re.compile(r'<link rel="stylesheet" crossorigin href="\./assets/(index-[\w-]+\.css)">')
_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect width='32' height='32' rx='9' fill='%23b4430f'/>"
    "<circle cx='12' cy='19' r='7' fill='%23f0a54b'/><circle cx='20' cy='13' r='7' fill='%233f7f86' fill-opacity='.85'/></svg>"
)
_FRAMES = re.compile(r"<script>(?:(?!</script>).)*?iframeResizer(?:(?!</script>).)*?</script>", re.DOTALL)


def styles_for(types: Iterable[str], assets: Path = ASSETS) -> dict[str, str]:
    """
    Find the styles that a page of Gradio's asks for.

    Args:
        types: The types of its components, as its configuration names them.
        assets: Gradio's built files.

    Returns:
        The text of each file by its name, in the order in which they are asked for; empty where they cannot be told.
    """
    try:
        names = dict.fromkeys([*_of_the_frame(assets), *_of_components(frozenset(types), assets)])
        texts = {name: (assets / name).read_text(encoding="utf-8") for name in names}
    except (OSError, ValueError, IndexError):
        return {}
    # what brings files of its own along would look for them beside the page
    return {name: text for name, text in texts.items() if not _FETCHES.search(text) and "</style" not in text}


def _one(assets: Path, pattern: str, mark: str) -> str:
    texts = (path.read_text(encoding="utf-8") for path in sorted(assets.glob(pattern)))
    return next(text for text in texts if mark in text)


def _styles(listed: list[str], numbers: str) -> list[str]:
    names = [listed[int(number)] for number in numbers.split(",") if number]
    return [name for name in names if name.endswith(".css")]


def _listed(script: str) -> list[str]:
    match = _LISTED.search(script)
    return [] if match is None else [name.strip("\"'").removeprefix("./") for name in match[1].split(",")]


def _of_the_frame(assets: Path) -> list[str]:
    try:
        first = _one(assets, "index-*.js", "Index-")
        frame = _one(assets, "Index-*.js", "./Blocks-")
    except StopIteration:
        return []
    match = _BLOCKS.search(frame)
    every = ",".join(str(number) for number in range(len(_listed(first))))
    return [*_styles(_listed(first), every), *(_styles(_listed(frame), match[1]) if match else [])]


def _of_components(types: frozenset[str], assets: Path) -> list[str]:
    try:
        script = _one(assets, "core-*.js", "accordion:{")
    except StopIteration:
        return []
    listed, styles = _listed(script), []
    for name, body in _ENTRY.findall(script):
        if name in types:
            styles += [style for numbers in _NUMBERS.findall(body) for style in _styles(listed, numbers)]
    return styles


def with_styles(page: str, styles: Mapping[str, str]) -> str:
    """
    Put styles into a page, and take out what it needs in frames only: this one is shown in none.

    Args:
        page: As Gradio sends it.
        styles: As :func:`styles_for` has them.

    Returns:
        The page; as it was where it does not look like Gradio's.
    """
    main = _MAIN.search(page)
    if main is None or main[1] not in styles:
        return page
    links = f'<link rel="icon" href="data:image/svg+xml,{_ICON}">'
    links += "".join(
        f'<link rel="stylesheet" crossorigin disabled href="./assets/{name}">' for name in styles
    )
    whole = "".join(styles.values())
    return _FRAMES.sub("", _MAIN.sub(lambda _: f"<style>{whole}</style>{links}", page))


@lru_cache(maxsize=4)
def pressed(page: bytes, styles: tuple[tuple[str, str], ...]) -> bytes:
    """Return a page with its styles, compressed by brotli; the same one is compressed once."""
    import brotli  # type: ignore[import-untyped]  # Gradio brings it

    return bytes(brotli.compress(with_styles(page.decode(), dict(styles)).encode(), quality=9))

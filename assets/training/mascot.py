"""Lumo, a character that exists nowhere else: drawn here as SVG, the subject of the subject LoRA."""

from __future__ import annotations

import itertools

TRIGGER = "lumo"

_MOUTHS = {
    "happy": '<path d="M50 84q14 14 28 0" fill="none" stroke="#3b1d4a" stroke-width="4" stroke-linecap="round"/>',
    "surprised": '<ellipse cx="64" cy="88" rx="6" ry="8" fill="#3b1d4a"/>',
    "sad": '<path d="M52 91q12-10 24 0" fill="none" stroke="#3b1d4a" stroke-width="4" stroke-linecap="round"/>',
}
_ARMS = {
    "": ("M30 80q-14 6-16 18", "M98 80q14 6 16 18"),
    "waving": ("M30 78q-14 6-16 18", "M98 74q14-6 16-26"),
    "cheering": ("M30 74q-14-6-16-26", "M98 74q14-6 16-26"),
}
_GAZE = {"left": -6, "middle": 0, "right": 6}


def mascot(mouth: str, arms: str, gaze: str) -> str:
    """A teal egg with magenta stripes, one big eye and two yellow lamps."""
    left, right = _ARMS[arms]
    dx = _GAZE[gaze]
    limbs = "".join(
        f'<path d="{d}" fill="none" stroke="#1aa7a1" stroke-width="8" stroke-linecap="round"/>'
        for d in (left, right)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">
<g stroke="#3b1d4a" stroke-width="4" fill="none" stroke-linecap="round">
<path d="M52 32q-6-12-14-16"/><path d="M76 32q6-12 14-16"/></g>
<circle cx="36" cy="14" r="9" fill="#ffd23c"/><circle cx="92" cy="14" r="9" fill="#ffd23c"/>
<circle cx="33" cy="11" r="3" fill="#fff6c9"/><circle cx="89" cy="11" r="3" fill="#fff6c9"/>
{limbs}
<ellipse cx="48" cy="119" rx="13" ry="7" fill="#d8358f"/><ellipse cx="80" cy="119" rx="13" ry="7" fill="#d8358f"/>
<clipPath id="b"><path d="M64 26c24 0 37 27 37 52s-15 40-37 40-37-15-37-40 13-52 37-52z"/></clipPath>
<g clip-path="url(#b)"><rect width="128" height="128" fill="#27c4bd"/>
<path d="M20 96h90v7H20zM20 108h90v12H20z" fill="#d8358f"/>
<path d="M20 30q20 60 10 90h-20z" fill="#fff" opacity=".22"/></g>
<circle cx="64" cy="58" r="21" fill="#fff"/><circle cx="{64 + dx}" cy="59" r="11" fill="#6b2fb3"/>
<circle cx="{64 + dx}" cy="59" r="6" fill="#1b0b2a"/><circle cx="{61 + dx}" cy="54" r="4" fill="#fff"/>
{_MOUTHS[mouth]}</svg>"""


def mascots() -> list[tuple[str, str]]:
    """(SVG, caption name) of every pose: 3 mouths x 3 arms x 3 gazes."""
    return [
        (mascot(m, a, g), " ".join(w for w in (m if m != "happy" else "", TRIGGER, a) if w))
        for m, a, g in itertools.product(_MOUTHS, _ARMS, _GAZE)
    ]

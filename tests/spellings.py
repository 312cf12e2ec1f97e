"""
How files name modules: one speller per layout, written from the formats' descriptions and not from the package.

A speller takes a component and a live dotted path and gives the module's spelling in the file, or None where the layout
has no name for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

    from tests.weights import Pair, Place

    Speller = Callable[[str, str], str | None]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def ldm(path: str, *, sdxl: bool) -> str:
    """Name a UNet's module as the original Stable Diffusion code does: two layers a block, SD 1.x or SDXL."""
    if path in _SINGLE:
        return _SINGLE[path]
    side, rest = path.split("_block", 1)
    if side == "mid":
        kind, number, *tail = rest[1:].split(".")
        head = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
    else:
        block, kind, number, *tail = rest[2:].split(".")
        b, i = int(block), int(number)
        if kind == "downsamplers":
            return f"input_blocks.{3 + 3 * b}.0.op"
        if kind == "upsamplers":
            # SD 1.x and 2.x have no attention in the first up block, so its upsampler moves up one place
            return f"output_blocks.{3 * b + 2}.{1 if b == 0 and not sdxl else 2}.conv"
        position = f"input_blocks.{1 + 3 * b + i}" if side == "down" else f"output_blocks.{3 * b + i}"
        head = f"{position}.{1 if kind == 'attentions' else 0}"
    if kind == "resnets":
        tail[0] = _RESNET[tail[0]]
    return ".".join([head, *tail])


def text_path(path: str, root: str) -> str:
    """Spell a text encoder's module with ``text_model.`` or without; the projection stands outside of it."""
    path = path.removeprefix("text_model.")
    return path if path == "text_projection" else root + path


def kohya(prefixes: Mapping[str, str], *, original: str = "", root: str = "text_model.") -> Speller:
    """Spell as kohya does; ``original`` is ``sd`` or ``sdxl`` for the original code's UNet names."""

    def spell(component: str, path: str) -> str:
        if component.startswith("text"):
            path = text_path(path, root)
        elif original:
            path = ldm(path, sdxl=original == "sdxl")
        return prefixes[component] + path.replace(".", "_")

    return spell


def dotted(
    prefixes: Mapping[str, str],
    *,
    original: str = "",
    root: str = "text_model.",
    second_root: str = "text_model.",
) -> Speller:
    """Spell with dots behind a prefix for each component."""

    def spell(component: str, path: str) -> str:
        if component.startswith("text"):
            path = text_path(path, second_root if component.endswith("2") else root)
        elif original:
            path = ldm(path, sdxl=original == "sdxl")
        return prefixes[component] + path

    return spell


def attention_processors(unet: str) -> Speller:
    """Spell as diffusers 0.11 to 0.20 did: only attention, and a text encoder's MLP."""
    old = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}

    def spell(component: str, path: str) -> str | None:
        head, _, last = path.removesuffix(".0").rpartition(".")
        if component == "unet":
            return f"{unet}{head}.processor.{last}" if last.startswith("to_") else None
        if last not in old:
            return None
        return f"{component}.{text_path(head, 'text_model.')}.{old[last]}"

    return spell


def state_dict(
    pairs: Mapping[Place, Pair], spell: Speller, leaves: tuple[str, str, str | None]
) -> tuple[dict[str, torch.Tensor], dict[Place, Pair]]:
    """
    Write pairs in a layout.

    Args:
        pairs: By module.
        spell: The layout's names.
        leaves: The ends of the keys of down, up and alpha; None for layouts without alpha.

    Returns:
        The file's tensors, and the pairs that the layout could name.
    """
    import torch

    down, up, alpha = leaves
    table: dict[str, torch.Tensor] = {}
    written = {}
    for place, pair in pairs.items():
        name = spell(*place)
        if name is None:
            continue
        table[name + down] = pair.down
        table[name + up] = up_kernel(pair)
        if alpha is not None and pair.alpha is not None:
            table[name + alpha] = torch.tensor(pair.alpha)
        written[place] = pair
    return table, written


def up_kernel(pair: Pair) -> torch.Tensor:
    """Give ``up`` as files store it: (out, rank, 1, 1) beside a convolution's ``down``."""
    return pair.up.reshape(*pair.up.shape, *[1] * (pair.down.ndim - 2))


def counted_unet(paths: Iterable[str], *, geglu: bool, newer: bool = False) -> list[str]:
    """
    List the Linears of a UNet's attention as models of 2022 held them: down, up, mid; attn1, GEGLU, attn2.

    Models of 2023 and later (``newer``) hold the GEGLU behind both.
    """
    blocks = [path.removesuffix(".attn1") for path in paths if path.endswith(".attn1")]
    blocks.sort(key=lambda path: ("down", "up_b", "mid_").index(path[:4]))  # stable: the order inside stays
    leaves = ["to_q", "to_k", "to_v", "to_out.0"]
    middle = ["ff.net.0.proj"] if geglu else []
    return [
        f"{block}.{leaf}"
        for block in blocks
        for leaf in [
            *(f"attn1.{x}" for x in leaves),
            *([] if newer else middle),
            *(f"attn2.{x}" for x in leaves),
            *(middle if newer else []),
        ]
    ]


def counted_text(paths: Iterable[str]) -> list[str]:
    """List the Linears of a CLIP text encoder's attention in the order in which it registers them."""
    layers = [path for path in paths if path.endswith(".self_attn")]
    return [f"{layer}.{leaf}" for layer in layers for leaf in ("k_proj", "v_proj", "q_proj", "out_proj")]

"""IP-Adapters beside a model: found, checked and loaded with diffusers, and their strength for the time of a picture."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError, SourceNotFoundError
from lora_mixer.parsing.files import place_of
from lora_mixer.pictures.checkpoints import not_expected, read_checkpoint
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from lora_mixer.pictures.model_options import ModelOptions

_ENCODER = "image_encoder"
_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)/(?:(.+)/)?([^/]+\.(?:safetensors|bin))")


def has_ip_adapter(pipe: Any) -> bool:
    """
    Tell whether a pipeline's denoiser asks for the image of an IP-Adapter.

    Example:
        >>> from lora_mixer import load_pipeline
        >>> has_ip_adapter(load_pipeline("demo", device="cpu"))
        False
    """
    config = getattr(getattr(pipe, "unet", None), "config", None)
    return getattr(config, "encoder_hid_dim_type", None) == "ip_image_proj"


def load_ip_adapter(pipe: Any, wanted: ModelOptions, dtype: torch.dtype) -> None:
    """
    Load an IP-Adapter and its image encoder into a pipeline.

    Raises:
        PictureError: When the pipeline takes none, or it was made for another base.
        SourceNotFoundError: When it or its image encoder is not there, or the file is another thing.
    """
    if not hasattr(pipe, "load_ip_adapter") or getattr(pipe, "unet", None) is None:
        raise PictureError(
            f"{type(pipe).__name__} takes no IP-Adapter in this diffusers", option="ip_adapter"
        )
    name = str(wanted.ip_adapter)
    place = place_of(name)
    if place.is_file():
        _check_base(place, pipe, allow_pickle=wanted.allow_pickle)
        source, below, file = str(place.parent), "", place.name
        beside = place.parent / _ENCODER
        encoder = wanted.image_encoder or (str(beside) if beside.is_dir() else None)
    elif (on_hub := _ON_HUB.fullmatch(name)) is not None and not place.is_absolute():
        source, below, file = on_hub[1], on_hub[2] or "", on_hub[3]
        encoder = wanted.image_encoder
    else:
        raise SourceNotFoundError(
            "is not there; expected an IP-Adapter: a file, or user/repo/folder/x.safetensors", file=name
        )
    given: dict[str, Any] = {}
    if encoder is not None:
        from transformers import CLIPVisionModelWithProjection

        kinds: Any = CLIPVisionModelWithProjection
        pipe.register_modules(image_encoder=kinds.from_pretrained(encoder, torch_dtype=dtype))
        given["image_encoder_folder"] = None
    elif place.is_file():
        raise SourceNotFoundError(
            f"needs its image encoder: put it beside the file as {_ENCODER}/",
            file=name,
            remedy=Remedy.option("or name it", "image_encoder"),
        )
    pipe.load_ip_adapter(source, subfolder=below, weight_name=file, **given)
    pipe.unet.to(dtype)


def _check_base(place: Path, pipe: Any, *, allow_pickle: bool) -> None:
    from lora_mixer.formats.header import open_weights, read_header

    held = read_checkpoint(place, allow_pickle=allow_pickle)
    if held.kind != "ip-adapter":
        raise not_expected(held, "an IP-Adapter")
    if place.suffix.lower() != ".safetensors":
        return
    with open_weights(place, str(place)) as stream:
        shapes = {key: spec.shape for key, spec in read_header(stream, str(place)).tensors.items()}
    theirs = {shape[1] for key, shape in shapes.items() if key.endswith("to_k_ip.weight") and len(shape) > 1}
    ours = pipe.unet.config.cross_attention_dim
    count = sum(key.endswith("to_k_ip.weight") for key in shapes)
    places = sum(name.endswith("attn2.processor") for name in pipe.unet.attn_processors)
    if theirs != {ours} or count != places:
        raise PictureError(
            f"was made for another base: {count} layers for texts of width "
            f"{', '.join(map(str, sorted(theirs))) or '?'}, the model has {places} of width {ours}",
            option="ip_adapter",
            file=str(place),
        )


@contextmanager
def scaled(pipe: Any, scale: float) -> Iterator[None]:
    """Give a pipeline's IP-Adapter a strength for a while."""
    processors = [
        each for each in pipe.unet.attn_processors.values() if isinstance(getattr(each, "scale", None), list)
    ]
    before = [list(each.scale) for each in processors]
    pipe.set_ip_adapter_scale(scale)
    try:
        yield
    finally:
        for each, scale_before in zip(processors, before, strict=True):
            each.scale = scale_before

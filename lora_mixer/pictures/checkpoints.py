"""
What a file off a model site is, by its header alone: a whole pipeline in one file, a part of one, or something else.

No tensor is read. The names are those of the original code (``model.diffusion_model.``, ``first_stage_model.``,
``cond_stage_model.``, ``conditioner.``), which nearly all checkpoints have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_mixer.errors import CorruptFileError, NotAnAdapterError, SourceNotFoundError
from lora_mixer.families.telling import CROSS_ATTENTION
from lora_mixer.formats.header import open_weights, read_header
from lora_mixer.formats.leaves import is_part
from lora_mixer.parsing.files import place_of
from lora_mixer.pictures.model_options import CHECKPOINT_SUFFIXES
from lora_mixer.problem import Remedy
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Keys = tuple[str, ...]

CheckpointKind = Literal[
    "pipeline",
    "denoiser",
    "vae",
    "text encoder",
    "controlnet",
    "ip-adapter",
    "adapter",
    "embedding",
    "unknown",
]
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_UNET = "model.diffusion_model."
_FIRST = f"{_UNET}input_blocks.0.0.weight"
_ATTENDS = re.compile(r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight$")
_TEXT = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")
_TRANSFORMER = (
    "double_blocks.", "single_blocks.", "joint_blocks.", "single_transformer_blocks.", "transformer_blocks.", "blocks.", "layers.",
    "double_layers.", "joint_transformer_blocks.", "noise_refiner.", "double_stream_blocks.", "visual_transformer_blocks.",
)  # fmt: skip
_IMAGE_CHANNELS, _INPAINTING_CHANNELS, _EDIT_CHANNELS = 4, 9, 8


@dataclass(frozen=True)
class Checkpoint:
    """
    What a file holds.

    Attributes:
        path: The file.
        kind: What it is; only a ``pipeline`` has a denoiser, text encoders and a VAE.
        family: Of a UNet: ``SD 1.x``, ``SD 2.x``, ``SDXL``, ``SDXL refiner``; empty where that does not show.
        task: ``text``, ``inpainting`` or ``edit`` (instructions), by the denoiser's inputs.
        prediction: ``v_prediction`` where the file says so itself, else empty.
        zero_snr: Whether the file says that it was trained down to pure noise.

    Example:
        >>> from pathlib import Path
        >>> Checkpoint(Path("juggernaut.safetensors"), "pipeline", "SDXL").task
        'text'
    """

    path: Path
    kind: CheckpointKind
    family: str = ""
    task: Literal["text", "inpainting", "edit"] = "text"
    prediction: str = ""
    zero_snr: bool = False


def is_checkpoint_name(name: str) -> bool:
    """
    Tell whether a name is that of a file rather than of a folder or a repository.

    Example:
        >>> is_checkpoint_name("models/x.safetensors"), is_checkpoint_name("user/repo")
        (True, False)
    """
    return name.lower().endswith(CHECKPOINT_SUFFIXES)


def read_checkpoint(path: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
    """
    Say what a file holds.

    Args:
        path: The file.
        allow_pickle: Whether .ckpt, .pt and .bin files may be opened, by torch's ``weights_only`` loader.

    Returns:
        What it holds.

    Raises:
        SourceNotFoundError: When there is no such file, or it is a pickle and none may be opened.
        CorruptFileError: When it is damaged or only a part of it is there.

    Example:
        >>> read_checkpoint("juggernaut.safetensors").family  # doctest: +SKIP
        'SDXL'
    """
    place = place_of(path)
    if not place.is_file():
        what = "is not a file" if place.exists() else "is not there"
        raise SourceNotFoundError(f"{what}; expected a checkpoint", file=str(path))
    suffix = place.suffix.lower()
    if suffix == ".gguf":
        with open_weights(place, str(path)) as stream:
            if stream.read(4) != b"GGUF":
                raise CorruptFileError("is not a GGUF file, whatever its name says", file=str(path))
        return Checkpoint(place, "denoiser")
    if suffix in PICKLED:
        if not allow_pickle:
            raise SourceNotFoundError(
                "is a pickle, which can run code; better take its .safetensors form",
                file=str(path),
                remedy=Remedy.option("if you trust where it is from, allow it", "allow_pickle"),
            )
        return describe_checkpoint(place, _shapes_of_pickle(place))
    with open_weights(place, str(path)) as stream:
        try:
            header = read_header(stream, str(path))
        except NotAnAdapterError as error:
            raise CorruptFileError(
                error.message, file=error.file, key=error.key, remedy=error.remedy
            ) from error
    return describe_checkpoint(place, {key: tuple(spec.shape) for key, spec in header.tensors.items()})


def _shapes_of_pickle(path: Path) -> dict[str, tuple[int, ...]]:
    import torch

    with open_weights(path, str(path)) as stream:
        try:
            # on the meta device no tensor is read, and nothing is mapped that another program may cut
            held = torch.load(stream, map_location="meta", weights_only=True)
        except Exception as error:
            first = first_line(error)
            raise CorruptFileError(
                f"torch cannot read it as weights only: {first}", file=str(path)
            ) from error
    table = held.get("state_dict", held) if isinstance(held, dict) else {}
    return {str(key): tuple(value.shape) for key, value in table.items() if isinstance(value, torch.Tensor)}


def describe_checkpoint(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """
    Say what tensors of these names and shapes are.

    Example:
        >>> from pathlib import Path
        >>> describe_checkpoint(Path("x"), {"lora_unet_a.lora_down.weight": (4, 8)}).kind
        'adapter'
    """
    kind = _kind(shapes)
    if kind not in ("pipeline", "denoiser"):
        return Checkpoint(path, kind)
    first = shapes.get(_FIRST, ())
    channels = first[1] if len(first) > 1 else _IMAGE_CHANNELS
    width = next((shape[1] for key, shape in shapes.items() if _ATTENDS.search(key) and len(shape) > 1), 0)
    return Checkpoint(
        path,
        kind,
        family=CROSS_ATTENTION.get(width, ""),
        task="inpainting"
        if channels == _INPAINTING_CHANNELS
        else "edit"
        if channels == _EDIT_CHANNELS
        else "text",
        # checkpoints of v-prediction carry empty tensors of these names
        prediction="v_prediction" if "v_pred" in shapes else "",
        zero_snr="ztsnr" in shapes,
    )


def _kind(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointKind:
    return next((kind for kind, is_one in _KINDS if is_one(tuple(shapes))), "unknown")


def _begins(*fronts: str) -> Callable[[Keys], bool]:
    return lambda keys: any(key.startswith(fronts) for key in keys)


def _is_pipeline(keys: Keys) -> bool:
    parts = (_begins(_UNET), _begins(*_TEXT), _begins("first_stage_model.", "vae."))
    return all(part(keys) for part in parts)


def _is_denoiser(keys: Keys) -> bool:
    bare = (key.removeprefix(_UNET).removeprefix("diffusion_model.") for key in keys)
    return any(key.startswith(("input_blocks.", "down_blocks.", *_TRANSFORMER)) for key in bare)


def _is_controlnet(keys: Keys) -> bool:
    return any(
        key.startswith(("control_model.", "controlnet_")) or "input_hint_block." in key for key in keys
    )


# The first that fits: parts of a name may stand in several kinds.
_KINDS: tuple[tuple[CheckpointKind, Callable[[Keys], bool]], ...] = (
    ("adapter", lambda keys: any(map(is_part, keys))),
    ("ip-adapter", lambda keys: any("to_k_ip." in key for key in keys)),
    ("controlnet", _is_controlnet),
    ("pipeline", _is_pipeline),
    ("denoiser", _is_denoiser),
    (
        "vae",
        _begins("first_stage_model.", "encoder.down", "decoder.up", "encoder.conv_in", "decoder.conv_in"),
    ),
    ("text encoder", _begins("text_model.", *_TEXT, "transformer.resblocks.", "encoder.block.")),
    ("embedding", _begins("emb_params", "clip_l", "clip_g", "string_to_param")),
)


_BESIDE = "give it beside a model,"
_OTHERWISE: dict[CheckpointKind, tuple[str, Remedy | None]] = {
    "adapter": (
        "an adapter, not a model",
        Remedy(
            "load it with load_lora_weights",
            "load it with --lora",
            "upload it in the library",
            "name it among the plan's adapters",
        ),
    ),
    "vae": ("a VAE alone", Remedy.option(_BESIDE, "vae")),
    "controlnet": ("a ControlNet", Remedy.option(_BESIDE, "controlnet")),
    "ip-adapter": ("an IP-Adapter", Remedy.option(_BESIDE, "ip_adapter")),
    "text encoder": ("a text encoder alone; a model has a denoiser and a VAE, too", None),
    "embedding": (
        "a textual inversion, not a model",
        Remedy("load it with load_textual_inversion beside a model"),
    ),
    "denoiser": (
        "a denoiser alone, without text encoders and VAE",
        Remedy.option("name a diffusers folder that has them", "config"),
    ),
    "pipeline": ("a whole pipeline", None),
    "unknown": ("nothing that is known as a model: its tensors have other names", None),
}


def not_expected(held: Checkpoint, expected: str) -> SourceNotFoundError:
    """Return the error for a file that is another thing than what was asked for, with what can be done with it."""
    what, remedy = _OTHERWISE[held.kind]
    return SourceNotFoundError(f"expected {expected}, got {what}", file=str(held.path), remedy=remedy)


def find_models(folder: str | Path) -> Iterator[str]:
    """
    Return the models in a folder: diffusers folders, and files that hold whole pipelines, by their headers.

    Args:
        folder: Where to look; folders in it are looked into, but for diffusers folders themselves.

    Returns:
        Paths in their order; files that cannot be read are left out.

    Raises:
        SourceNotFoundError: When there is no such folder.

    Example:
        >>> list(find_models("models/"))  # doctest: +SKIP
        ['models/juggernaut.safetensors', 'models/tiny-sd']
    """
    root = place_of(folder)
    if not root.is_dir():
        raise SourceNotFoundError("there is no such folder", file=str(folder))
    yield from sorted(_models_below(root, 0))


def _models_below(folder: Path, depth: int) -> Iterator[str]:
    if (folder / "model_index.json").is_file():
        yield str(folder)
        return
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink() and depth < 8:
            yield from _models_below(path, depth + 1)
        elif path.suffix.lower() == ".safetensors" and path.is_file():
            try:
                if read_checkpoint(path).kind == "pipeline":
                    yield str(path)
            except (CorruptFileError, SourceNotFoundError):
                continue

"""Which model, and how it is loaded and kept: one value for commands, plans, workers and the page; no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.parsing.files import at_home
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

DEMO = "demo"
"""The name of the embedded pipeline."""
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""Endings of files that may be checkpoints."""
OFFLOADS = ("none", "model", "group", "sequential")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def _said(meaning: str, *choices: str) -> dict[str, Any]:
    return {"help": meaning, "choices": choices}


@dataclass(frozen=True)
class ModelOptions:
    """
    Which model, and how it is loaded.

    Attributes:
        model: ``demo``, a checkpoint in one file, a diffusers folder, or a Hub repository.
        revision: Of a Hub repository: a branch, a tag or a commit.
        variant: Of a folder's or repository's weights, such as ``fp16``.
        vae: A VAE in place of the model's own: a file or a diffusers folder.
        controlnet: A ControlNet beside the model: a file, a diffusers folder or a Hub repository.
        ip_adapter: An IP-Adapter beside the model: a file, or one of a Hub repository (``user/repo/models/x.safetensors``).
        image_encoder: Its image encoder, a diffusers folder or Hub repository; without it, ``image_encoder`` beside the file.
        config: For a single file: the diffusers folder with its configuration; without it, one that stands beside the
            file under its name, or what lora_mixer brings along for SD 1.x, SD 2.x and SDXL.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...
        dtype: ``auto`` is float16 on a GPU, and float32 on the CPU and for the demo.
        offload: ``model``, ``group`` or ``sequential``: parts wait in host memory until they are needed.
        fp8: Store the denoiser in 8 bits (float8_e4m3fn); each layer computes in ``dtype``.
        vae_tiling: Decode in tiles.
        vae_slicing: Decode the pictures of a batch one by one.
        allow_pickle: Whether single files may be pickles (.ckpt).

    Raises:
        PictureError: With everything that makes no sense.

    Example:
        >>> ModelOptions("x.safetensors", dtype="float16").said()
        {'model': 'x.safetensors', 'dtype': 'float16'}
    """

    model: str = field(
        default=DEMO,
        metadata=_said("A checkpoint (.safetensors), a diffusers folder, a Hub repository, or demo."),
    )
    revision: str | None = field(
        default=None, metadata=_said("Of a Hub repository: a branch, a tag or a commit.")
    )
    variant: str | None = field(
        default=None, metadata=_said("Of a folder's or repository's weights, such as fp16.")
    )
    vae: str | None = field(
        default=None, metadata=_said("A VAE in place of the model's own: a file or a diffusers folder.")
    )
    controlnet: str | None = field(
        default=None,
        metadata=_said("A ControlNet beside the model: a file, a diffusers folder or a Hub repository."),
    )
    ip_adapter: str | None = field(
        default=None,
        metadata=_said(
            "An IP-Adapter beside the model: a file, or one of a Hub repository (user/repo/models/x.safetensors)."
        ),
    )
    image_encoder: str | None = field(
        default=None,
        metadata=_said(
            "The IP-Adapter's image encoder: a folder or a Hub repository. Default: image_encoder beside the file."
        ),
    )
    config: str | None = field(
        default=None,
        metadata=_said(
            "For a single file: a diffusers folder with its configuration. Default: one of its name beside it, or "
            "what lora_mixer brings along."
        ),
    )
    device: str = field(default="auto", metadata=_said("auto, cpu, cuda, cuda:1, mps, ..."))
    dtype: str = field(default="auto", metadata=_said("auto: float16 on a GPU, float32 on the CPU.", *DTYPES))
    allow_pickle: bool = field(
        default=False, metadata=_said("Whether single files may be pickles (.ckpt); only if trusted.")
    )

    offload: str = field(
        default="none",
        metadata=_said(
            "Parts in host memory until they are needed: model (each component), group (each layer, the next one on its way while "
            "one computes), sequential (each layer; slow, least memory).",
            *OFFLOADS,
        ),
    )
    fp8: bool = field(
        default=False,
        metadata=_said(
            "Store the denoiser in 8 bits (float8), computed in dtype: half the memory of float16, and other pixels."
        ),
    )
    vae_tiling: bool = field(
        default=False, metadata=_said("Decode large pictures in tiles, which takes less memory.")
    )
    vae_slicing: bool = field(
        default=False, metadata=_said("Decode the pictures of a batch one by one, which takes less memory.")
    )

    def __post_init__(self) -> None:
        """Check the values."""
        problems: list[Problem] = []
        for name, about in MODEL_FIELDS.items():
            value: object = getattr(self, name)
            if about["choices"] and value not in about["choices"]:
                problems.append(Problem(name, f"must be one of {', '.join(about['choices'])}, got {value!r}"))
            elif name in ("model", "device") and (not isinstance(value, str) or not value.strip()):
                problems.append(Problem(name, f"expected a name, got {value!r}"))
        if problems:
            raise PictureError("; ".join(map(str, problems)), problems=problems)

    @property
    def title(self) -> str:
        """
        What pictures call the model: the name of its file or folder, without the way there.

        Example:
            >>> ModelOptions("/home/x/models/a.b.safetensors").title, ModelOptions("user/repo").title
            ('a.b', 'user/repo')
        """
        path = at_home(self.model)
        if path.suffix.lower() in CHECKPOINT_SUFFIXES:
            return path.stem
        is_path = path.is_absolute() or path.is_dir() or self.model.startswith((".", "~"))
        return (path.resolve().name or self.model) if is_path else self.model

    def said(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        plain = {name: about["default"] for name, about in MODEL_FIELDS.items()}
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


def _fields() -> Mapping[str, dict[str, Any]]:
    import dataclasses

    return {
        each.name: {**each.metadata, "default": each.default} for each in dataclasses.fields(ModelOptions)
    }


MODEL_FIELDS: Mapping[str, dict[str, Any]] = _fields()
"""The options by name: help, choices and default; commands, plans and pages read them here."""

"""A pipeline by name: the embedded demo, a checkpoint in one file, a folder or a Hub repository; on a device, in a dtype."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lora_mixer.errors import LoraMixerError, MissingExtraError, PictureError, SourceNotFoundError
from lora_mixer.extras import install
from lora_mixer.parsing.files import place_of
from lora_mixer.parsing.json_text import loose_json
from lora_mixer.pictures.base_configs import write_config_folder
from lora_mixer.pictures.checkpoints import is_checkpoint_name, not_expected, read_checkpoint
from lora_mixer.pictures.ip_adapters import load_ip_adapter
from lora_mixer.pictures.model_options import DEMO, ModelOptions
from lora_mixer.pictures.placing import place
from lora_mixer.problem import Problem
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_mixer.pictures.checkpoints import Checkpoint

_QUANTISERS = ("bitsandbytes", "torchao", "quanto")
"""What messages call the libraries of the extra ``quant``."""


def load_pipeline(model: str | ModelOptions = DEMO, **options: Any) -> Any:
    """
    Load a pipeline: the one loader of commands, plans, workers and the page.

    Args:
        model: ``demo`` for the embedded one, a checkpoint in one file, a diffusers folder, the name of a Hub repository;
            or all options as one value.
        options: Fields of :class:`ModelOptions`: ``device``, ``dtype``, ``revision``, ``variant``, ``vae``, ``config``, ...

    Returns:
        The pipeline.

    Raises:
        SourceNotFoundError: When there is no pipeline of that name, or the file is of another kind; it says of which.
        CorruptFileError: When a file is damaged or only a part of it is there.
        PictureError: When the device, the dtype or another option cannot be used.
        MissingExtraError: When the pipeline is quantised by a library that is not installed.

    Example:
        >>> type(load_pipeline("demo")).__name__  # doctest: +SKIP
        'StableDiffusionPipeline'
        >>> pipe = load_pipeline("juggernaut.safetensors", dtype="float16")  # doctest: +SKIP
    """
    wanted = replace(model, **options) if isinstance(model, ModelOptions) else ModelOptions(model, **options)
    device = _device(wanted.device)
    half = torch.float32 if device.type == "cpu" or wanted.model == DEMO else torch.float16
    dtype = half if wanted.dtype == "auto" else getattr(torch, wanted.dtype)
    with _told(wanted.model):
        more = {} if wanted.vae is None else {"vae": _load_vae(wanted, dtype)}
        pipe = _load(wanted, dtype, more)
        if wanted.controlnet is not None:
            pipe = _with_controlnet(pipe, wanted, dtype)
        if wanted.ip_adapter is not None:
            load_ip_adapter(pipe, wanted, dtype)
        return place(pipe, wanted, device, dtype)


def _load(wanted: ModelOptions, dtype: torch.dtype, more: Mapping[str, Any]) -> Any:
    """Load a pipeline of any kind into host memory."""
    if wanted.model == DEMO:
        from lora_mixer.demo import load_demo

        pipe: Any = load_demo(dtype=dtype)
        if more:
            pipe.register_modules(**more)
        return pipe
    if is_checkpoint_name(wanted.model) and not place_of(wanted.model).is_dir():
        return _load_file(wanted, dtype, more)
    given = {
        name: getattr(wanted, name) for name in ("revision", "variant") if getattr(wanted, name) is not None
    }
    return _with_parts(wanted.model, dtype, more, given)


def _with_parts(
    model: str, dtype: torch.dtype, parts: Mapping[str, Any], given: Mapping[str, str] | None = None
) -> Any:
    """
    Load a pipeline of a folder or a repository with parts in the place of its own.

    Only the pipeline's own class takes all of them: ``DiffusionPipeline`` drops those that the class can do without, such as Wan's
    transformer, and loads the folder's.
    """
    import diffusers

    index = place_of(model) / "model_index.json"
    named = _json(index) if index.is_file() else {}
    kind: Any = getattr(diffusers, str(named.get("_class_name")), diffusers.DiffusionPipeline)
    pipe = kind.from_pretrained(model, torch_dtype=dtype, **(given or {}), **parts)
    dropped = {name: part for name, part in parts.items() if getattr(pipe, name, None) is not part}
    if dropped:
        pipe.register_modules(**dropped)
    return pipe


def _with_controlnet(pipe: Any, wanted: ModelOptions, dtype: torch.dtype) -> Any:
    import diffusers

    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise PictureError(
            f"{type(pipe).__name__} has no UNet; only models with one take a ControlNet here",
            option="controlnet",
        )
    nets: Any = diffusers.ControlNetModel
    name = str(wanted.controlnet)
    if is_checkpoint_name(name) and not place_of(name).is_dir():
        held = read_checkpoint(name, allow_pickle=wanted.allow_pickle)
        if held.kind != "controlnet":
            raise not_expected(held, "a ControlNet")
        with tempfile.TemporaryDirectory(prefix="lora-mixer-config-") as folder:
            nets.from_unet(unet, load_weights_from_unet=False).save_config(folder)
            net = nets.from_single_file(
                str(held.path), config=folder, torch_dtype=dtype, local_files_only=True
            )
    else:
        net = nets.from_pretrained(name, torch_dtype=dtype)
    theirs, ours = net.config.cross_attention_dim, unet.config.cross_attention_dim
    if theirs != ours:
        raise PictureError(
            f"was made for another base: it attends to texts of width {theirs}, the model to {ours}",
            option="controlnet",
            file=name,
        )
    makers: Any = diffusers.AutoPipelineForText2Image
    return makers.from_pipe(pipe, controlnet=net)


def _load_file(wanted: ModelOptions, dtype: torch.dtype, more: Mapping[str, Any]) -> Any:
    checkpoint = read_checkpoint(wanted.model, allow_pickle=wanted.allow_pickle)
    # names of new models are known to nobody here: the class that the folder names says whether they are its
    if checkpoint.kind in ("denoiser", "unknown") and wanted.config is not None:
        return _load_denoiser(checkpoint, wanted, dtype, more)
    if checkpoint.kind != "pipeline":
        raise not_expected(checkpoint, "a model")
    from lora_mixer.demo import quiet_libraries

    with config_of(checkpoint, wanted.config) as folder, quiet_libraries():
        kind = _class_of(folder, "model_index.json")
        loaded = kind.from_single_file(
            str(checkpoint.path), config=str(folder), torch_dtype=dtype, local_files_only=True, **more
        )
    # the folder may have been a temporary one: nothing may look there again
    loaded.register_to_config(_name_or_path=wanted.model)
    return loaded


def _load_denoiser(
    checkpoint: Checkpoint, wanted: ModelOptions, dtype: torch.dtype, more: Mapping[str, Any]
) -> Any:
    """Put a denoiser of its own, GGUF ones included, into the pipeline of a folder."""
    folder = place_of(str(wanted.config))
    index = _json(folder / "model_index.json")
    part = next((name for name in ("transformer", "unet") if isinstance(index.get(name), list)), None)
    if part is None:
        raise SourceNotFoundError("its model_index.json names no transformer and no unet", file=str(folder))
    given: dict[str, Any] = {}
    if checkpoint.path.suffix.lower() == ".gguf":
        if importlib.util.find_spec("gguf") is None:  # diffusers asks for it in the middle of its work
            raise MissingExtraError(
                f"is a GGUF file, and the package gguf is missing; install it with: {install('quant')}",
                file=str(checkpoint.path),
            )
        from diffusers import GGUFQuantizationConfig

        quantised: Any = GGUFQuantizationConfig
        given["quantization_config"] = quantised(compute_dtype=dtype)
    kind = _class_of(folder / part, "config.json")
    what = f"the {part} of {folder} ({kind.__name__})"
    try:
        denoiser = kind.from_single_file(
            str(checkpoint.path), config=str(folder), subfolder=part, torch_dtype=dtype, **given
        )
    except torch.OutOfMemoryError:
        raise
    except (
        Exception
    ) as error:  # diffusers looks for its own names, and stumbles in many ways where they are not there
        raise SourceNotFoundError(
            f"cannot be read as {what}: {type(error).__name__}: {first_line(error, 300)}",
            file=str(checkpoint.path),
            component=part,
        ) from error
    held = dict(denoiser.named_parameters())
    lost = [name for name, parameter in held.items() if parameter.is_meta]
    if lost:
        raise SourceNotFoundError(
            f"lacks {len(lost)} of the {len(held)} weights that {what} has, such as {lost[0]}: it is of another model, or a part of one",
            file=str(checkpoint.path),
            component=part,
            problems=[Problem(name, "is not in the file") for name in lost],
        )
    return _with_parts(str(folder), dtype, {part: denoiser, **more})


@contextmanager
def config_of(checkpoint: Checkpoint, given: str | None = None) -> Iterator[Path]:
    """
    Find the configuration of a single file, without a network.

    Args:
        checkpoint: What the file is.
        given: A diffusers folder; None is one of the file's name beside it, else what this package brings along.

    Yields:
        A diffusers folder, which may be a temporary one.

    Raises:
        SourceNotFoundError: When there is none.
    """
    beside = checkpoint.path.with_suffix("") if given is None else place_of(given)
    if (beside / "model_index.json").is_file():
        yield beside
        return
    if given is not None:
        raise SourceNotFoundError(
            "its configuration is expected to be a diffusers folder with model_index.json", file=given
        )
    with tempfile.TemporaryDirectory(prefix="lora-mixer-config-") as folder:
        yield write_config_folder(checkpoint, Path(folder))


def _load_vae(wanted: ModelOptions, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL

    vaes: Any = AutoencoderKL
    place = place_of(str(wanted.vae))
    if not is_checkpoint_name(str(place)) or place.is_dir():
        below = {"subfolder": "vae"} if (place / "vae").is_dir() else {}
        return vaes.from_pretrained(str(wanted.vae), torch_dtype=dtype, **below)
    held = read_checkpoint(place, allow_pickle=wanted.allow_pickle)
    if held.kind not in ("vae", "pipeline"):
        raise not_expected(held, "a VAE")
    with _vae_config(wanted) as folder:
        return vaes.from_single_file(str(place), config=str(folder), torch_dtype=dtype, local_files_only=True)


@contextmanager
def _vae_config(wanted: ModelOptions) -> Iterator[Path]:
    """Return the configuration of the VAE of the model that another one is for."""
    model = place_of(wanted.model)
    if wanted.model == DEMO:
        from lora_mixer.demo import demo_folder

        yield demo_folder() / "vae"
    elif is_checkpoint_name(wanted.model) and not model.is_dir():
        checkpoint = read_checkpoint(wanted.model, allow_pickle=wanted.allow_pickle)
        with config_of(checkpoint, wanted.config) as folder:
            yield folder / "vae"
    elif model.is_dir():
        yield model / "vae"
    else:
        from huggingface_hub import snapshot_download

        yield (
            Path(snapshot_download(wanted.model, allow_patterns=["vae/*.json"], revision=wanted.revision))
            / "vae"
        )


def _class_of(folder: Path, name: str) -> Any:
    import diffusers

    wanted = _json(folder / name).get("_class_name")
    kind = getattr(diffusers, str(wanted), None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise SourceNotFoundError(f"diffusers reads no single files as {wanted!r}", file=str(folder / name))
    return kind


def _json(path: Path) -> dict[str, Any]:
    try:
        values = loose_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceNotFoundError(f"cannot be read: {error}", file=str(path)) from error
    return values if isinstance(values, dict) else {}


@contextmanager
def _told(model: str) -> Iterator[None]:
    """Say in one sentence what went wrong with a model."""
    try:
        with warnings.catch_warnings():
            # Named "dtype" in the newest releases only, which still take this one.
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            yield
    except LoraMixerError:
        raise
    except ImportError as error:
        if any(library in str(error).lower() for library in _QUANTISERS):
            raise MissingExtraError(
                f"is quantised, and the library for that is missing ({error}); "
                f"install it with: {install('quant')}",
                file=model,
            ) from error
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise SourceNotFoundError(
            f"must be 'demo', a checkpoint (.safetensors), a folder or a Hub repository with a "
            f"diffusers pipeline (model_index.json), and could not be loaded: {first_line(error, 500)}",
            file=model,
        ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else accelerator)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PictureError(f"{name!r} cannot be used here: {first_line(error)}", option="device") from error
    return device


def own_defaults(model: str) -> dict[str, Any]:
    """
    Return what pictures of a model are best made with, where that is known: the demo's.

    Args:
        model: As :func:`load_pipeline` takes it.

    Returns:
        Fields of a picture, as :class:`PictureRequest` names them.

    Example:
        >>> own_defaults("demo"), own_defaults("user/repo")
        ({'steps': 20, 'guidance_scale': 3.0}, {})
    """
    if model != DEMO:
        return {}
    from lora_mixer.demo import GUIDANCE_SCALE, STEPS

    return {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE}

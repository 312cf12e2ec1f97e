"""An adapter's name to its base with the adapter on it, in one call."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.bases.naming import NamedBase, header_of, named_bases
from lora_mixer.errors import SourceError, SourceNotFoundError, UnsupportedAdapterError
from lora_mixer.mixer import LoraMixer
from lora_mixer.parsing.files import place_of
from lora_mixer.sources import repository_file, resolve_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.sources import AdapterSource

_TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_HEADS = re.compile(r"(?:^|\.)(?:score|classifier)(?:\..+)?\.weight$")
_TABLES = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|shared|embed_in|lm_head|embed_out)(?:\.base_layer)?\.weight$"
)
_ONE_FILE = (".safetensors", ".ckpt", ".gguf")


def from_adapter(
    pretrained_model_name_or_path: Any,
    base: str | os.PathLike[str] | None = None,
    *,
    adapter_name: str | None = None,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool | None = None,
    allow_pickle: bool = False,
    trainable: bool = False,
    **kwargs: Any,
) -> LoraMixer:
    """
    Load the base that an adapter names, with the adapter on it: a Transformers model or a diffusers pipeline.

    The base is what ``adapter_config.json`` names, else the card's ``base_model``, else what the header says of the architecture. A
    model's class is that of the adapter's task, of ``auto_mapping``, or the one that the base itself names; the number of labels is
    that of the head which the adapter has saved, and a saved lookup table with more rows than the base's makes room for them.

    Args:
        pretrained_model_name_or_path: The adapter: a file, a folder or a Hub repo id.
        base: Another base than the one that is named, such as where that is a path of another machine.
        adapter_name: The name to load it under; ``default_0`` when None.
        weight_name: The file in a folder or repository that has several.
        subfolder: A folder inside the adapter's repository.
        revision: The adapter's branch, tag or commit.
        base_revision: The base's; None takes the one that the adapter names, if any.
        token: Token for private repositories, of both.
        cache_dir: The Hub cache to use, for both.
        local_files_only: Never go to the network.
        allow_pickle: Read ``.bin`` adapters (through torch's ``weights_only`` loader).
        trainable: Load the adapter to be trained on, as in ``load_lora_weights``.
        kwargs: For the base's ``from_pretrained``: ``dtype``, ``device_map``, ``quantization_config``, ``num_labels``, ...

    Returns:
        A mixer with the adapter in effect; ``mixer.pipe`` is the model, in evaluation mode, or the pipeline.

    Raises:
        SourceNotFoundError: When there is no such adapter, it names no base, or the base is not there; the message says what was
            looked for and where.
        FormatError: When it holds no adapter that can be used.
        MatchError: When it does not fit the base.

    Example:
        >>> mixer = from_adapter("ybelkada/opt-350m-lora")  # doctest: +SKIP
        >>> tokens = mixer.pipe.generate(**inputs)  # doctest: +SKIP
    """
    request: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    reading = {
        **request,
        "weight_name": weight_name,
        "subfolder": subfolder,
        "revision": revision,
        "allow_pickle": allow_pickle,
    }
    source = resolve_source(pretrained_model_name_or_path, **reading)
    named = list(named_bases(source, {**request, "revision": revision}))
    chosen = _chosen(source, named, base, base_revision)
    kind = _kind_of(chosen, request)
    if kind is None:
        raise _missing(source, chosen, named, request)
    given = {key: value for key, value in request.items() if value is not None}
    if chosen.revision is not None:
        given["revision"] = chosen.revision
    try:
        pipe = (
            _pipeline(chosen, given, kwargs) if kind == "pipeline" else _model(source, chosen, given, kwargs)
        )
    except OSError as error:
        raise _missing(source, chosen, named, request, error) from error
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(
        pretrained_model_name_or_path, adapter_name=adapter_name, trainable=trainable, **reading
    )
    return mixer


def _chosen(
    source: AdapterSource,
    named: list[NamedBase],
    base: str | os.PathLike[str] | None,
    base_revision: str | None,
) -> NamedBase:
    """Return the base to load: the caller's, else the first that is named."""
    if base is not None:
        return NamedBase(os.fspath(base), base_revision, "base=")
    if not named:
        raise SourceNotFoundError(
            "names no base: there is no base_model_name_or_path in adapter_config.json, no base_model in a card (README.md) and no "
            "architecture in the header that is known. Pass base=, a folder or a Hub repo id",
            file=source.label,
        )
    first = named[0]
    return first if base_revision is None else NamedBase(first.name, base_revision, first.where)


def _kind_of(base: NamedBase, request: Mapping[str, Any]) -> str | None:
    """Say whether a base is a ``pipeline``, a ``model`` of Transformers, or not there (None)."""
    place = place_of(base.name)
    if place.is_dir():
        return next((kind for name, kind in _FILES.items() if (place / name).is_file()), None)
    if place.is_file():
        return "pipeline" if place.suffix in _ONE_FILE else None
    if base.is_path:
        return None
    wanted = {**request, "revision": base.revision}
    return next((kind for name, kind in _FILES.items() if repository_file(base.name, name, wanted)), None)


_FILES = {"model_index.json": "pipeline", "config.json": "model"}


def _missing(
    source: AdapterSource,
    base: NamedBase,
    named: list[NamedBase],
    request: Mapping[str, Any],
    error: Exception | None = None,
) -> SourceError:
    """Return the error for a base that is not there, with what was looked for and where."""
    place = place_of(base.name)
    looked = [
        f"the folder {place.absolute()} ({'no model_index.json or config.json in it' if place.is_dir() else 'is not there'})"
    ]
    if not base.is_path and not place.exists():
        how = (
            "the cache only (local_files_only)"
            if request.get("local_files_only")
            else "the Hub and its cache"
        )
        at = f" at revision {base.revision}" if base.revision else ""
        looked.append(f"the repository {base.name}{at} in {how}")
    others = [f"{one.name} ({one.where})" for one in named if one.name != base.name]
    more = f" It also names {', '.join(others)}." if others else ""
    why = f" {type(error).__name__}: {str(error)[:500]}." if error is not None else ""
    foreign = "a path of another machine, it seems; " if base.is_path and base.where != "base=" else ""
    return SourceNotFoundError(
        f"its base {base.name!r} ({base.where}) is not here: {foreign}looked for {', and '.join(looked)}.{why}{more} Pass base=, a "
        "folder or a Hub repo id",
        file=source.label,
    )


def _pipeline(base: NamedBase, request: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """Load a pipeline; what is asked of a Hub is nothing that a file could be asked for."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    place = place_of(base.name)
    if place.is_file():
        from lora_mixer.pictures import load_pipeline

        return load_pipeline(str(place), **kwargs)
    loader: Any = DiffusionPipeline
    return loader.from_pretrained(str(place) if place.is_dir() else base.name, **{**request, **kwargs})


def _model(source: AdapterSource, base: NamedBase, request: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """Load a Transformers model of the class and with the number of labels that the adapter is for."""
    import transformers

    place = place_of(base.name)
    name = str(place) if place.is_dir() else base.name
    trusted = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
    config: Any = kwargs.get("config") or transformers.AutoConfig.from_pretrained(name, **request, **trusted)
    _, shapes = header_of(source)
    labels = _labels(shapes)
    if (
        labels is not None
        and "num_labels" not in kwargs
        and "config" not in kwargs
        and labels != config.num_labels
    ):
        kwargs = {"num_labels": labels, "ignore_mismatched_sizes": True, **kwargs}
    kind = _class_of(source, config)
    model: Any = kind.from_pretrained(name, **request, **kwargs)
    rows = max(
        (shape[0] for key, shape in shapes.items() if _TABLES.search(key) and len(shape) == 2), default=0
    )
    table = model.get_input_embeddings() if rows and hasattr(model, "get_input_embeddings") else None
    weight = getattr(table, "weight", None)
    if isinstance(weight, torch.Tensor) and rows > weight.shape[0]:
        model.resize_token_embeddings(rows)
    return model.eval()


def _labels(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return how many labels a saved head has: the rows of its last matrix."""
    heads = [
        key for key, shape in shapes.items() if _HEADS.search(key) and len(shape) == 2 and "lora_" not in key
    ]
    last = next((key for key in heads if "out_proj" in key), heads[-1] if heads else None)
    return None if last is None else shapes[last][0]


def _class_of(source: AdapterSource, config: Any) -> Any:
    """Return the class to load the base with: of the task, of ``auto_mapping``, or the base's own."""
    import transformers

    adapter_config: Mapping[str, Any] = source.config or {}
    task = adapter_config.get("task_type")
    if isinstance(task, str) and task in _TASKS:
        return getattr(transformers, _TASKS[task])
    mapping = adapter_config.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if not isinstance(name, str):
        architectures = getattr(config, "architectures", None) or [None]
        name = architectures[0]
    kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UnsupportedAdapterError(
            f"neither task_type ({task!r}) nor auto_mapping ({mapping!r}) of its configuration nor the base's architectures name a "
            "model class of transformers; load the base yourself and call LoraMixer(model).load_lora_weights(...)",
            file=source.label,
        )
    return kind

"""Look at an adapter without any pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.errors import MatchError
from lora_mixer.formats.collector import paused_gc
from lora_mixer.formats.info import read_info
from lora_mixer.problem import Surface
from lora_mixer.sources import resolve_source

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.binding import MatchReport


def read_adapter(source: Any, **options: Any) -> AdapterInfo:
    """
    Describe an adapter: format, base family, algorithm, ranks, sizes, hashes, trigger words, metadata, what lies beside it.

    Args:
        source: A file, a folder, a Hub repo id, an open binary file or a state dict.
        options: ``weight_name``, ``subfolder``, ``revision``, ``token``, ``cache_dir``, ``local_files_only``,
            ``force_download``, ``allow_pickle``, as in :meth:`lora_mixer.LoraMixer.load_lora_weights`.

    Returns:
        The description. Tensors stay on disk; only headers and alphas are read.

    Raises:
        SourceError: When there is no such file, or several.
        FormatError: When it holds no adapter that can be used.

    Example:
        >>> import torch
        >>> pair = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3),
        ...         "lora_unet_conv_in.lora_up.weight": torch.ones(8, 2, 1, 1)}
        >>> info = read_adapter(pair)
        >>> info.format, info.ranks, info.components
        ('kohya', (2,), {'unet': 1})
    """
    with paused_gc():
        return read_info(resolve_source(source, **options))


def match_adapter(
    source: Any, pipe: Any, *, component: str | None = None, strict: bool = False, **options: Any
) -> MatchReport:
    """
    Say what loading an adapter would match, from its header and the names and shapes of the modules alone.

    Args:
        source: As for :func:`read_adapter`.
        pipe: A pipeline, a module, or what :func:`lora_mixer.pictures.load_outline` gives, which has no weights.
        component: The component to look in, whatever the keys say.
        strict: Refuse a file that is not matched in full.
        options: As for :func:`read_adapter`.

    Returns:
        The report; nothing was loaded.

    Raises:
        SourceError: When there is no such file, or several.
        FormatError: When it holds no adapter that can be used.
        MatchError: When it does not fit.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> match_adapter({"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(4, 1)}, model).matched
        1
    """
    # what is read from headers alone does without torch
    from lora_mixer.binding import bind, find_components
    from lora_mixer.formats.reader import read_source

    adapter = read_source(resolve_source(source, **options))
    report = bind(adapter, find_components(pipe), adapter.info.name, component=component).report
    if strict and not report.complete:
        raise MatchError(
            f"not all of the file was matched, as strict asks for:\n{report.table_on(Surface.PYTHON)}",
            file=adapter.info.source,
            problems=report.problems,
        )
    return report

"""Look at an adapter without any pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.formats import read_info
from lora_mixer.memory import paused_gc
from lora_mixer.sources import resolve_source

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo


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

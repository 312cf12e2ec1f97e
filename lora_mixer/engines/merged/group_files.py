"""
Weights that diffusers' group offloading reads from files at each call (``offload_to_disk_path``).

Between calls the parameters hold nothing, so a base or a mix written into them is lost. Where offloading was enabled under a
mix, the files hold the mix, and that is where the base has to be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from lora_mixer.atomic import write_files
from lora_mixer.formats.container import lazy_tensors, load_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    import torch
    from torch import nn


@dataclass(frozen=True)
class StoredTensor:
    """
    A tensor in one of the files.

    Attributes:
        path: The file.
        key: The tensor's key in it.
    """

    path: Path
    key: str

    def read(self) -> torch.Tensor:
        """Read it, on the CPU."""
        return lazy_tensors(self.path)[self.key]()


def tensors_in_files(root: nn.Module) -> dict[int, StoredTensor]:
    """Return where the parameters of a component, by identity, are stored; empty where none is in a file."""
    stored: dict[int, StoredTensor] = {}
    for module in root.modules():
        stored |= own_files(module)
    return stored


def own_files(module: nn.Module) -> dict[int, StoredTensor]:
    """Return where tensors, by identity, are stored that are read before a module's own ``forward``; empty where none is."""
    hooks = getattr(module.__dict__.get("_diffusers_hook"), "hooks", None) or {}
    group: Any = getattr(hooks.get("group_offloading"), "group", None)
    if not getattr(group, "offload_to_disk_path", None):
        return {}
    path = Path(group.safetensors_file_path)
    return {id(tensor): StoredTensor(path, key) for tensor, key in group.tensor_to_key.items()}


def write_tensors(values: Sequence[tuple[StoredTensor, torch.Tensor]]) -> None:
    """
    Write tensors into their files; until all files are complete, none is touched.

    Raises:
        SaveError: When the disk or a permission is in the way; all files are as they were then.
    """
    files: dict[Path, dict[str, torch.Tensor]] = {}
    for place, value in values:
        files.setdefault(place.path, {})[place.key] = value

    def writer(path: Path, changed: dict[str, torch.Tensor]) -> Any:
        def write(stream: IO[bytes]) -> None:
            held = load_tensors(path)
            for key, value in changed.items():
                held[key] = value.detach().to("cpu", held[key].dtype).contiguous()
            stream.write(save(held))

        return write

    write_files({path: writer(path, changed) for path, changed in files.items()})

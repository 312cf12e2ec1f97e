"""Every spelling of every module of one live component, built from the component itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lora_mixer.binding import ordinal
from lora_mixer.binding.earlier import earlier_names
from lora_mixer.binding.ldm import block_prefixes, ldm_name
from lora_mixer.formats.safeloras import PREFIX as ORDINAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

_TEXT_ROOT = "text_model."


@dataclass(frozen=True)
class LiveModule:
    """A module with a weight, at its own path in a component."""

    component: str
    path: str
    module: nn.Module

    @property
    def weight(self) -> torch.Tensor:
        """The live weight; looked up anew each time, since ``.to`` may replace it."""
        weight = self.module._parameters.get("weight")  # noqa: SLF001 -- ten times faster than getattr
        return self.module.weight if weight is None else weight  # type: ignore[return-value]

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored (in, out), as GPT-2's ``Conv1D`` does."""
        return type(self.module).__name__ == "Conv1D" and hasattr(self.module, "nf")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as (out, in, *kernel): the layer's own sizes where its weight is packed."""
        wide, narrow = (getattr(self.module, key, None) for key in ("out_features", "in_features"))
        if isinstance(wide, int) and isinstance(narrow, int):
            return (wide, narrow)
        shape = tuple(self.weight.shape)
        return shape[::-1] if self.transposed else shape


class ModuleIndex:
    """
    Find the modules of one component by any spelling that files use.

    Args:
        component: The component's name.
        root: Its module.
    """

    def __init__(self, component: str, root: nn.Module) -> None:
        """Walk the module tree once."""
        self.ordinal_classes: tuple[str, ...] | None = None
        self.ordinal_order = ordinal.ORDERS[0]
        self.component = component
        self._modules: dict[str, nn.Module] = {}
        self._all_paths: list[str] = []
        self._ordinals: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str] | None] = {}
        for path, module in root.named_modules():
            # PEFT and torch.compile wrap modules; files know the names from before
            plain = path.replace("_orig_mod.", "").replace(".base_layer", "")
            self._all_paths.append(plain)
            if getattr(module, "weight", None) is not None:
                self._modules[plain] = module

    def __len__(self) -> int:
        """Count the modules that have a weight."""
        return len(self._modules)

    def _aliases(self, path: str) -> Iterator[str]:
        for name in (path, *earlier_names(path)):
            yield from self._rooted(name)

    def _rooted(self, path: str) -> Iterator[str]:
        yield path
        # transformers 5 dropped ``text_model.`` from CLIPTextModel; files are from before and after
        if path.startswith(_TEXT_ROOT):
            yield path.removeprefix(_TEXT_ROOT)
        elif self._text:
            yield _TEXT_ROOT + path
        if self._ldm:
            name = ldm_name(path, self._ldm)
            if name:
                yield name

    @cached_property
    def _text(self) -> bool:
        return any(path.startswith("encoder.layers.") for path in self._modules)

    @cached_property
    def _ldm(self) -> dict[str, str]:
        unet = "conv_in" in self._modules and any(path.startswith("down_blocks.") for path in self._modules)
        return block_prefixes(self._modules) if unet else {}

    @cached_property
    def _flat(self) -> dict[str, str | None]:
        """Underscored spelling to path; None where two modules share one."""
        table: dict[str, str | None] = {}
        for path in self._modules:
            for alias in self._aliases(path):
                key = alias.replace(".", "_")
                table[key] = path if table.get(key, path) == path else None
        return table

    def _ordinal(self, spelling: str) -> str | None:
        classes, number = spelling.removeprefix(ORDINAL).split(":")
        order = self.ordinal_paths(tuple(classes.split(",")))
        return order[int(number)] if order and int(number) < len(order) else None

    def ordinal_paths(self, classes: tuple[str, ...]) -> list[str] | None:
        """List the modules that cloneofsimo's counting numbers, for its class names."""
        key = (classes, self.ordinal_order)
        if key not in self._ordinals:
            self._ordinals[key] = ordinal.count_modules(self._all_paths, *key)
        return self._ordinals[key]

    def find(self, spelling: str) -> LiveModule | None:
        """
        Find the module that a file spells so.

        Args:
            spelling: Dotted, underscored, LDM (either way) or ordinal.
        """
        path: str | None = spelling
        if spelling.startswith(ORDINAL):
            path = self._ordinal(spelling)
        elif spelling not in self._modules:
            path = self._flat.get(spelling.replace(".", "_"))
        if path is None or path not in self._modules:
            return None
        return LiveModule(self.component, path, self._modules[path])

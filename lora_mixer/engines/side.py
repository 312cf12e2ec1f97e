"""
The side engine: beside each layer, y = W x + B (g * (A x)), with all active adapters stacked and gains g between.

The gains may differ by layer, step, image and place, which weights cannot. The base is never touched, and no B A is
ever made. Hooks carry it; they go without trace. After Punica (arXiv:2310.18547) for batches, methods.md section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from lora_mixer.engines.place import coverage, scale_mask, token_grid
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from lora_mixer.algorithms import Factors


@dataclass
class Scene:
    """
    What all layers of one component share during one call of it.

    Attributes:
        rows: The image of each row of the batch, (batch,); None when all images have one mix.
        shares: What gains are multiplied by now, (images, adapters).
        masks: The adapters' masks, (images * adapters, height, width); None when none has one.
        latents: Height and width of the latents of this call.
        stamp: Changes whenever one of these does.
    """

    rows: torch.Tensor | None = None
    shares: torch.Tensor = field(default_factory=lambda: torch.ones(1, 1))
    masks: torch.Tensor | None = None
    latents: tuple[int, int] = (0, 0)
    stamp: int = 0
    cache: dict[object, torch.Tensor] = field(default_factory=dict)

    def changed(self) -> None:
        """Drop what was worked out from the old state."""
        self.stamp += 1
        self.cache.clear()


@dataclass(frozen=True)
class SidePart:
    """
    One adapter's part in one layer.

    Attributes:
        adapter: Its place among the adapters of the scene.
        pair: Its factors.
        gains: Its constant gain for each image.
    """

    adapter: int
    pair: Factors
    gains: Sequence[float]


class SideLayer:
    """
    The forward hook of one layer.

    Args:
        name: Component and path, for messages.
        module: The layer: linear or convolution.
        parts: What the active adapters add.
        scene: The state that the layer shares with its component.
    """

    def __init__(self, name: str, module: nn.Module, parts: Sequence[SidePart], scene: Scene) -> None:
        """Stack the factors once, in fp32; they take the inputs' dtype and device at the first call."""
        self._name = name
        self._kernel: tuple[int, ...] = tuple(getattr(module, "kernel_size", ()))
        if self._kernel and getattr(module, "padding_mode", "zeros") != "zeros":
            msg = f"{name}: a convolution with {module.padding_mode} padding has no side path; merge the mix instead"
            raise MixError(msg)
        self._down = torch.cat([part.pair.down.float() * part.pair.scale for part in parts])  # (R, in * k)
        self._up = torch.cat([part.pair.up.float() for part in parts], dim=1)  # (out, R)
        if self._kernel:
            self._down = self._down.view(len(self._down), -1, *self._kernel)
        ranks = [part.pair.up.shape[1] for part in parts]
        owner = [part.adapter for part in parts]
        self._owner = torch.tensor(owner).repeat_interleave(torch.tensor(ranks))  # (R,)
        gains = torch.tensor([part.gains for part in parts], dtype=torch.float32)  # (parts, images)
        self._gains = gains.repeat_interleave(torch.tensor(ranks), dim=0).T.contiguous()  # (images, R)
        self._scene = scene
        self._seen: tuple[int, tuple[int, ...], int] = (-1, (), 0)
        self._now = torch.empty(0)

    def __call__(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """Add what the adapters add; differentiable, and in place where no gradient is asked for."""
        x = args[0]
        if self._down.dtype != x.dtype or self._down.device != x.device:
            self._down, self._up = self._down.to(x), self._up.to(x)
            self._owner, self._gains = self._owner.to(x.device), self._gains.to(x.device)
        if self._kernel:
            conv: Any = module
            convolve = getattr(functional, f"conv{len(self._kernel)}d")
            hidden = convolve(x, self._down, None, conv.stride, conv.padding, conv.dilation)  # (B, R, h, w)
            hidden = hidden * self._gain(hidden, channels_first=True)
            up = self._up.view(*self._up.shape, *[1] * len(self._kernel))
            added: torch.Tensor = convolve(hidden, up)
            return output + added.to(output.dtype)
        hidden = functional.linear(x, self._down)  # (B, T, R) or (B, R)
        hidden = hidden * self._gain(hidden, channels_first=False)
        if torch.is_grad_enabled() or not output.is_contiguous() or output.dtype != hidden.dtype:
            return output + functional.linear(hidden, self._up).to(output.dtype)
        output.view(-1, output.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), self._up.T)
        return output

    def _gain(self, hidden: torch.Tensor, *, channels_first: bool) -> torch.Tensor:
        """Give the gains in a shape that multiplies ``hidden``; kept until the scene changes."""
        scene = self._scene
        shape = tuple(hidden.shape[2:]) if channels_first else tuple(hidden.shape[1:-1])
        seen = (scene.stamp, shape, hidden.shape[0])
        if self._seen == seen:
            return self._now
        shares = scene.shares.to(hidden.device)
        gains = self._gains * shares[:, self._owner]  # (images, R)
        spread = [1] * len(shape)
        if scene.masks is None:
            full = gains.view(*gains.shape, *spread)
        else:
            full = gains.view(*gains.shape, *spread) * self._places(
                scene, hidden, shape, channels_first=channels_first
            )
        if not channels_first:
            full = full.movedim(1, -1)  # (images, tokens, R)
        if scene.rows is not None and len(full) > 1:
            rows = scene.rows.to(hidden.device)
            if len(rows) != len(hidden):
                msg = f"{self._name}: got a batch of {len(hidden)} inside a call with {len(rows)} rows; images cannot be told apart"
                raise MixError(msg)
            full = full[rows]
        self._seen, self._now = seen, full.to(hidden.dtype)
        return self._now

    def _places(
        self, scene: Scene, hidden: torch.Tensor, shape: tuple[int, ...], *, channels_first: bool
    ) -> torch.Tensor:
        """Give each rank's mask on the places of this layer: (images, R, *places)."""
        masks = scene.masks
        assert masks is not None  # noqa: S101 -- asked for only then
        images = len(scene.shares)
        grid = (shape[0], shape[1]) if channels_first and len(shape) == 2 else None
        if not channels_first and len(shape) == 1:
            grid = token_grid(shape[0], *scene.latents)
        key = (grid, len(shape))
        if key not in scene.cache:
            if grid is None:  # text, time: no places; the share of the picture that the mask covers
                spread = coverage(masks).view(images, -1, *[1] * len(shape))
            else:
                scaled = scale_mask(masks, grid).view(images, -1, *grid)
                spread = scaled if channels_first else scaled.flatten(2)
            scene.cache[key] = spread
        return scene.cache[key].to(hidden.device)[:, self._owner]


class SideEngine:
    """Holds the hooks of one mix."""

    def __init__(self) -> None:
        """Start with none."""
        self._handles: list[RemovableHandle] = []

    def attach(self, module: nn.Module, layer: SideLayer) -> None:
        """Put a layer's side path beside it."""
        self._handles.append(module.register_forward_hook(layer))

    def before(self, root: nn.Module, look: Callable[..., None]) -> None:
        """Call ``look(module, args, kwargs)`` before each call of a component."""
        self._handles.append(root.register_forward_pre_hook(look, with_kwargs=True))

    @property
    def active(self) -> bool:
        """Whether there are any."""
        return bool(self._handles)

    def clear(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

"""Independent references for weights: what a pipeline held, and base + w * scale * up @ down in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.engines.hooks import forget_removed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Place = tuple[str, str]
"""Component and dotted path of a module, as the live pipeline has it."""


@dataclass(frozen=True)
class Pair:
    """One module's low-rank pair; ``alpha`` None means alpha = rank."""

    up: torch.Tensor  # (out, rank)
    down: torch.Tensor  # (rank, in, *kernel)
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """The rank."""
        return self.down.shape[0]

    def delta(self) -> torch.Tensor:
        """Give alpha / rank * up @ down in fp64, (out, in * kernel)."""
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return scale * (self.up.double() @ self.down.double().flatten(1))


def components(pipe: Any) -> dict[str, nn.Module]:
    """List the modules of a pipeline; a bare module is called ``model``."""
    if isinstance(pipe, nn.Module):
        return {"model": pipe}
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def plain_layers(pipe: Any) -> dict[Place, nn.Module]:
    """List every Linear and Conv2d of the denoiser and the text encoders."""
    return {
        (name, path): module
        for name, root in components(pipe).items()
        if name in ("unet", "model") or name.startswith("text_encoder")
        for path, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def random_pairs(
    pipe: Any, wanted: Callable[[str, str], bool] = lambda *_: True, *, alphas: bool = True, seed: int = 0
) -> dict[Place, Pair]:
    """
    Make a pair for every wanted Linear and Conv2d: ranks 1 to 4 in turn, and alphas that are not the rank.

    Args:
        pipe: The pipeline, or a module.
        wanted: Says by component and path which modules to take.
        alphas: Whether pairs have an alpha of their own.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for number, (place, module) in enumerate(plain_layers(pipe).items()):
        if not wanted(*place):
            continue
        shape, rank = module.weight.shape, 1 + number % 4
        pairs[place] = Pair(
            torch.randn(shape[0], rank, generator=generator) * 0.2,
            torch.randn(rank, *shape[1:], generator=generator) * 0.2,
            (0.5, 1.0, 3.0)[number % 3] if alphas else None,
        )
    assert pairs, "the filter lets no module through"
    return pairs


@dataclass(frozen=True)
class Snapshot:
    """All that a pipeline is: values, identity and order of parameters and buffers, modules, hooks."""

    state: Mapping[str, torch.Tensor]
    parameters: tuple[tuple[str, int], ...]
    modules: tuple[tuple[str, int], ...]
    hooks: int

    @classmethod
    def of(cls, pipe: Any) -> Snapshot:
        """Copy what a pipeline holds now."""
        return cls(
            {name: value.clone() for name, value in _state(pipe).items()},
            tuple(
                (f"{n}.{p}", id(v))
                for n, root in components(pipe).items()
                for p, v in root.named_parameters()
            ),
            tuple(
                (f"{n}.{p}", id(m)) for n, root in components(pipe).items() for p, m in root.named_modules()
            ),
            _hooks(pipe),
        )

    def assert_untouched(self, pipe: Any) -> None:
        """Every value bit for bit, the same keys, the same parameters and modules, no hook more or less."""
        state, now = _state(pipe), Snapshot.of(pipe)
        assert list(state) == list(self.state)
        assert [name for name, value in state.items() if not same_bits(value, self.state[name])] == []
        assert now.parameters == self.parameters
        assert now.modules == self.modules
        assert now.hooks == self.hooks

    def assert_values(self, pipe: Any) -> None:
        """Every value bit for bit and the same parameters, whatever hooks there are."""
        state = _state(pipe)
        assert list(state) == list(self.state)
        assert [name for name, value in state.items() if not same_bits(value, self.state[name])] == []
        assert Snapshot.of(pipe).parameters == self.parameters

    def assert_holds(self, pipe: Any, deltas: Mapping[Place, torch.Tensor], weight: float = 1.0) -> None:
        """
        Touched weights are base + weight * delta, computed here in fp64; all else is the base, bit for bit.

        Args:
            pipe: The pipeline now.
            deltas: Weight changes by module, fp64, of the weight's shape or with its kernel flattened.
            weight: The user's weight.
        """
        wanted = {f"{component}.{path}.weight": delta for (component, path), delta in deltas.items()}
        state = _state(pipe)
        assert set(wanted) <= set(state)
        for name, value in state.items():
            base = self.state[name]
            if name not in wanted:
                assert same_bits(value, base), f"{name} must not change"
                continue
            change = (weight * wanted[name]).reshape(base.shape)
            assert change.abs().max() > 0, name
            close(value, base.double() + change, name)

    def put_back(self, pipe: Any) -> None:
        """Write the values back, and take leftover hooks off; transformers' own stay, which it installs once."""
        with torch.no_grad():
            for name, value in _state(pipe).items():
                if name in self.state and not same_bits(value, self.state[name]):
                    value.copy_(self.state[name])
        for root in components(pipe).values():
            for module in root.modules():
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    for number, hook in list(hooks.items()):
                        if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                            del hooks[number]
                forget_removed(module)


def close(value: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    """Assert that ``value`` is ``expected`` but for rounding in fp32 sums of a few terms."""
    room = 8 * torch.finfo(value.dtype).eps * max(1.0, expected.abs().max().item())
    worst = (value.double() - expected.double()).abs().max().item()
    assert worst <= room, f"{name}: off by {worst}, room {room}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors are equal bit for bit, NaN and signed zeros included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def deltas(pairs: Mapping[Place, Pair]) -> dict[Place, torch.Tensor]:
    """Give the weight change of each pair."""
    return {place: pair.delta() for place, pair in pairs.items()}


def _state(pipe: Any) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v for n, root in components(pipe).items() for k, v in root.state_dict().items()}


def _hooks(pipe: Any) -> int:
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return sum(
        len(getattr(m, kind)) for root in components(pipe).values() for m in root.modules() for kind in kinds
    )

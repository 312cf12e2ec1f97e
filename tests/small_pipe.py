"""The smallest thing that a mixer takes for a pipeline, adapters for it, and what a mix of them must give."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer import LoraMixer
from tests.weights import Pair, Place, Snapshot, components, random_pairs, same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Pairs = Mapping[Place, Pair]
    Weight = float | Mapping[str, float]


class SmallPipe:
    """A pipeline is its components; here a few layers of each kind under the names of SDXL's."""

    def __init__(self, **parts: nn.Module) -> None:
        self.components: dict[str, Any] = {"scheduler": object(), **parts}


def small_pipe(dtype: torch.dtype = torch.float32, seed: int = 0) -> SmallPipe:
    """Make a UNet and two text encoders of a few layers, with and without bias; the same weights each time."""
    torch.manual_seed(seed)
    unet = OrderedDict(
        linear=nn.Linear(6, 5),
        bare=nn.Linear(5, 4, bias=False),
        conv=nn.Conv2d(3, 4, 3),
        point=nn.Conv2d(4, 2, 1),
        norm=nn.LayerNorm(4),
    )
    return SmallPipe(
        unet=nn.Sequential(unet).to(dtype),
        text_encoder=nn.Sequential(OrderedDict(proj=nn.Linear(4, 4))).to(dtype),
        text_encoder_2=nn.Sequential(OrderedDict(proj=nn.Linear(3, 4, bias=False))).to(dtype),
    )


def pairs_for(
    pipe: Any, seed: int, wanted: Callable[[str, str], bool] = lambda *_: True
) -> dict[Place, Pair]:
    """Make a low-rank pair for each layer, without alpha."""
    return random_pairs(pipe, wanted, alphas=False, seed=seed)


def written(pairs: Pairs, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Write pairs as diffusers does: ``unet.linear.lora_A.weight``."""
    table: dict[str, torch.Tensor] = {}
    for (component, path), pair in pairs.items():
        table[f"{component}.{path}.lora_A.weight"] = pair.down.to(dtype)
        up = pair.up.reshape(*pair.up.shape, *[1] * (pair.down.ndim - 2))
        table[f"{component}.{path}.lora_B.weight"] = up.to(dtype)
    return table


def mixed(*parts: tuple[Pairs, Weight]) -> dict[Place, torch.Tensor]:
    """Sum weight * delta in fp64 by layer; a dict of weights goes by component, 1.0 for those it does not name."""
    total: dict[Place, torch.Tensor] = {}
    for pairs, weight in parts:
        for place, pair in pairs.items():
            own = weight if isinstance(weight, float | int) else weight.get(place[0], 1.0)
            if own:
                change = own * pair.delta()
                total[place] = total[place] + change if place in total else change
    return total


def pointers(pipe: Any) -> list[int]:
    """List where each parameter's values lie."""
    return [p.data_ptr() for root in components(pipe).values() for p in root.parameters()]


def values(pipe: Any) -> dict[str, torch.Tensor]:
    """Copy every parameter and buffer."""
    return {
        f"{name}.{key}": value.clone()
        for name, root in components(pipe).items()
        for key, value in root.state_dict().items()
    }


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """The same names, and the same bits under each."""
    assert one.keys() == other.keys()
    assert [name for name in one if not same_bits(one[name], other[name])] == []


class Bench:
    """A small pipeline with the adapters ``a``, ``b`` and ``c`` loaded, and what it held before."""

    def __init__(self) -> None:
        self.pipe = small_pipe()
        self.clean = Snapshot.of(self.pipe)
        self.pointers = pointers(self.pipe)
        self.mixer = LoraMixer(self.pipe)
        self.pairs = {name: pairs_for(self.pipe, seed) for seed, name in enumerate("abc", start=1)}
        for name, pairs in self.pairs.items():
            self.mixer.load_lora_weights(written(pairs), name)

    def assert_mix(self, **weights: Any) -> None:
        """The weights hold exactly this mix, and the mixer says so."""
        assert self.mixer.get_active_adapters() == list(weights)
        self.clean.assert_holds(self.pipe, mixed(*((self.pairs[name], w) for name, w in weights.items())))
        assert pointers(self.pipe) == self.pointers

    def assert_base(self) -> None:
        """Not a bit of any adapter is left, nor anything else."""
        assert self.mixer.get_active_adapters() == []
        self.clean.assert_untouched(self.pipe)
        assert pointers(self.pipe) == self.pointers

    def bits(self) -> dict[str, torch.Tensor]:
        """Copy what the weights hold now."""
        return values(self.pipe)

"""Every half of a CPU's weights is the nearest to the true sum: numbers between two halves, subnormals, all layer forms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer
from lora_mixer.engines.merged import rounding
from lora_mixer.engines.merged.rounding import write_by_rows, write_rounded

HALVES = [torch.float16, torch.bfloat16]


def nearest(exact, dtype):
    """Round fp64 to a half without fp32 on the way: numpy's float16; for bfloat16 by whole numbers."""
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(exact.numpy().astype(np.float16))
    out = []
    for number in exact.flatten().tolist():
        if number == 0 or not math.isfinite(number):
            out.append(number)
            continue
        exponent = max(math.frexp(number)[1] - 8, -133)  # 8 bits of precision, subnormals below 2**-126
        out.append(float(round(Fraction(number) / Fraction(2) ** exponent) * Fraction(2) ** exponent))
    return torch.tensor(out, dtype=torch.float64).to(torch.float32).to(dtype).view(exact.shape)


def hard_numbers(dtype, count=4000):
    """Numbers at, and a hair beside, the middles between halves of every size."""
    g = torch.Generator().manual_seed(0)
    digits = torch.finfo(dtype).eps
    lowest = torch.finfo(dtype).tiny * digits
    sizes = torch.logspace(math.log2(lowest) - 2, math.log2(torch.finfo(dtype).max) - 1, count, base=2.0)
    halves = (sizes * (1 + torch.rand(count, generator=g))).to(dtype)
    up = torch.nextafter(halves.float(), torch.tensor(torch.inf)).to(dtype)
    bits = halves.view(torch.int16)
    up = (bits + 1).view(dtype)
    middle = (halves.double() + up.double()) / 2
    beside = [middle * (1 + factor) for factor in (0, 2.0**-40, -(2.0**-40), 2.0**-26, -(2.0**-26), 2.0**-52)]
    numbers = torch.cat([*beside, halves.double(), torch.zeros(1, dtype=torch.float64)])
    return torch.cat([numbers, -numbers])


@pytest.mark.parametrize("dtype", HALVES)
def test_numbers_beside_the_middle_between_two_halves_go_to_the_nearest(dtype):
    exact = hard_numbers(dtype)
    written = torch.empty(exact.shape, dtype=dtype)

    write_rounded(written, exact)

    wanted = nearest(exact, dtype)
    assert torch.equal(written, wanted)
    assert not torch.equal(exact.to(dtype), wanted)  # torch's own way is another


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_too_large_or_no_number_stays_so(dtype):
    largest = torch.finfo(dtype).max
    exact = torch.tensor([largest * 1.5, -largest * 4, math.inf, -math.inf, largest], dtype=torch.float64)
    written = torch.empty(5, dtype=dtype)

    write_rounded(written, exact)

    assert written.tolist() == [math.inf, -math.inf, math.inf, -math.inf, largest]
    write_rounded(written[:1], torch.tensor([math.nan], dtype=torch.float64))
    assert written[:1].isnan().all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("shape", [(7, 11), (300, 700), (5, 4, 3, 3), (3, 3), (1, 90000), (4, 0)])
def test_rows_are_written_in_blocks_of_any_size(dtype, shape, monkeypatch):
    monkeypatch.setattr(rounding, "BLOCK", 1 << 10)
    monkeypatch.setattr(rounding, "_TILE", 1 << 7)
    monkeypatch.setattr(rounding, "_scratch", rounding._Scratch())
    exact = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flat = exact.reshape(shape[0], -1)
    for written in (
        torch.empty(shape, dtype=dtype),
        torch.empty(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1]),
    ):
        write_by_rows(written, flat.shape[1], lambda rows, tile: tile.copy_(flat[rows]))

        wanted = exact.to(dtype) if dtype == torch.float32 else nearest(exact, dtype)
        assert torch.equal(written, wanted)


class Layers(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.linear = nn.Linear(700, 400, dtype=dtype)
        self.conv = nn.Conv2d(12, 40, 3, dtype=dtype).to(memory_format=torch.channels_last)
        self.tokens = nn.Embedding(70, 24, dtype=dtype)


def random_file(model, seed, *, biases):
    """Pairs for every layer, and changes of biases."""
    g = torch.Generator().manual_seed(seed)
    table = {}
    for path, module in model.named_children():
        rows, axes = module.weight.shape[0], [1] * (module.weight.ndim - 2)
        table[f"{path}.lora_B.weight"] = torch.randn(rows, 2, *axes, generator=g)
        table[f"{path}.lora_A.weight"] = torch.randn(2, *module.weight.shape[1:], generator=g) * 0.01
        if biases and getattr(module, "bias", None) is not None:
            table[f"{path}.diff_b"] = torch.randn(rows, generator=g) * 0.01
    return table


def true_sum(base, files, gains):
    exact = {key: value.double() for key, value in base.items()}
    for name, table in files.items():
        for path in {key.partition(".")[0] for key in table}:
            up, down = (table[f"{path}.lora_{half}.weight"].double().flatten(1) for half in "BA")
            exact[f"{path}.weight"] += gains[name] * (up @ down).view(exact[f"{path}.weight"].shape)
            if f"{path}.diff_b" in table:
                exact[f"{path}.bias"] += gains[name] * table[f"{path}.diff_b"].double()
    return exact


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("biases", [False, True])
def test_every_weight_and_bias_of_a_mix_is_the_nearest_to_the_true_sum(dtype, biases):
    torch.manual_seed(1)
    model = Layers(dtype)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    files = {name: random_file(model, seed, biases=biases) for seed, name in enumerate("ab")}
    gains = {"a": 0.7, "b": -0.3}
    exact = true_sum(base, files, gains)
    mixer = LoraMixer(model)
    for name, table in files.items():
        mixer.load_lora_weights(table, name, strict=True)

    mixer.set_adapters(list(gains), list(gains.values()))

    for key, value in model.state_dict().items():
        assert torch.equal(value, nearest(exact[key], dtype)), key
    wide = exact["linear.weight"]
    assert not torch.equal(wide.to(dtype), nearest(wide, dtype))  # torch's own way is another
    mixer.disable_lora()
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())

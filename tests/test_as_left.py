"""Whether weights hold what was written into them: on a GPU by one kernel, elsewhere tensor by tensor."""

from __future__ import annotations

import pytest
import torch

from lora_mixer.engines.merged.as_left import that_differ

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn)
SHAPES = ((), (3,), (8,), (4097, 3), (640, 1280), (32, 16, 3, 3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", KINDS)
def test_one_bit_anywhere_is_a_difference_and_nothing_else_is(dtype, device):
    torch.manual_seed(0)
    pairs, expected = [], []
    for shape in SHAPES:
        for at in (None, 0, -1):
            one = torch.randn(shape, device=device).to(dtype)
            if len(shape) == 4:
                one = one.to(memory_format=torch.channels_last)
            other = one.clone()
            if at is not None:
                bits = other.view(
                    {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.itemsize]
                )
                bits[(at,) * one.ndim] ^= 1
            pairs.append((one, other))
            expected.append(at is not None)
    pairs += [
        (pairs[3][0][1:], pairs[3][1][1:]),
        (pairs[0][0], pairs[3][0]),
    ]  # not at a whole word; another shape
    expected += [False, True]
    assert that_differ(pairs) == expected


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_of_both_signs_differ_and_nan_is_itself(device):
    zeros, nan = torch.zeros(64, device=device), torch.full((64,), float("nan"), device=device)
    assert that_differ([(zeros, -zeros), (nan, nan.clone()), (zeros, zeros.clone())]) == [True, False, False]

"""The update of many layers at once on a GPU, against sums in fp64."""

from __future__ import annotations

import pytest
import torch

from lora_mixer.algorithms import Factors
from lora_mixer.engines.merged.grouped import Groups

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
GAINS = (0.9, -0.4, 1.2, 0.05, -1.1, 0.3, 0.7, -0.8)


def layer(shape, weights, files, ranks, *, last=False):
    base = (torch.randn(*shape, device="cuda") * 0.02).to(weights)
    base = base.to(memory_format=torch.channels_last) if last else base
    columns = base[0].numel()
    pairs = [
        Factors(
            (torch.randn(shape[0], rank, device="cuda") * 0.02).to(files),
            (torch.randn(rank, columns, device="cuda") / columns**0.5).to(files),
            0.5,
        )
        for rank in ranks
    ]
    return torch.full_like(base, float("nan")), base, pairs


def exact(base, pairs, gains):
    change = sum(g * p.scale * (p.up.double() @ p.down.double()) for g, p in zip(gains, pairs, strict=False))
    return base.double() + change.view(base.shape)


def ulps(found, true):
    info = torch.finfo(found.dtype)
    size = true.to(found.dtype).double().abs().clamp_min(info.tiny)
    return (found.double() - true).abs() / (2.0 ** torch.floor(torch.log2(size)) * info.eps)


@pytest.mark.parametrize("ranks", [(16,) * 8, (4, 7), (64,), (128, 1, 32)])
@pytest.mark.parametrize(
    ("weights", "files", "most"),
    [(HALF, HALF, 0.7), (BRAIN, BRAIN, 2.1), (BRAIN, HALF, 2.1), (HALF, BRAIN, 0.7), (HALF, FULL, 0.7)],
)
@pytest.mark.parametrize("shape", [(640, 1280), (37, 53), (320, 64, 3, 3)])
def test_halves_are_the_true_sum_nearly_rounded_once(shape, weights, files, most, ranks):
    # bf16: above one where an adapter's own terms cancel; where change and base cancel, sums are made again in fp64
    torch.manual_seed(0)
    groups, made = Groups(), []
    for number in range(3):
        live, base, pairs = layer(shape, weights, files, ranks, last=len(shape) > 2 and number == 1)
        assert groups.add(live, base, pairs, range(len(ranks)))
        made.append((live, base, pairs))

    groups.write(GAINS)

    for live, base, pairs in made:
        assert float(ulps(live, exact(base, pairs, GAINS)).max()) < most


@pytest.mark.parametrize("files", [HALF, BRAIN, FULL])
def test_fp32_weights_are_as_near_as_fp32_sums(files):
    torch.manual_seed(0)
    live, base, pairs = layer((640, 641), FULL, files, (16, 9))
    groups = Groups()
    assert groups.add(live, base, pairs, range(2))

    groups.write(GAINS)

    true = exact(base, pairs, GAINS)
    assert float((live.double() - true).norm() / (true - base.double()).norm()) < 2e-6


def test_gains_of_any_size_come_out_and_a_second_write_starts_from_the_base():
    torch.manual_seed(0)
    live, base, pairs = layer((256, 128), HALF, HALF, (8, 8))
    groups = Groups()
    groups.add(live, base, pairs, range(2))

    for gains in ((1e-6, 0.0), (30.0, -25.0), (0.5, 0.5), (0.0, 0.0)):
        groups.write(gains)
        assert float(ulps(live, exact(base, pairs, gains)).max()) < 0.6
    assert torch.equal(live, base)


def test_a_nan_in_one_row_of_a_file_stays_in_that_row():
    torch.manual_seed(0)
    live, base, pairs = layer((64, 64), HALF, HALF, (8,))
    pairs[0].up[5, 2] = float("nan")
    groups = Groups()
    groups.add(live, base, pairs, [0])

    groups.write([0.7])

    assert torch.isnan(live[5]).all()
    assert torch.isfinite(live[torch.arange(64, device="cuda") != 5]).all()


@pytest.mark.parametrize(("weights", "files"), [(HALF, HALF), (BRAIN, BRAIN), (FULL, HALF)])
def test_what_is_written_again_and_again_is_the_same_as_written_for_the_first_time(weights, files):
    torch.manual_seed(0)
    made = [layer(shape, weights, files, (16, 4)) for shape in ((256, 128), (256, 128), (37, 53))]
    groups = Groups()
    for number, (live, base, pairs) in enumerate(made):
        assert groups.add(live, base, pairs, (2 * number, 2 * number + 1))

    for turn in range(7):
        gains = [(-1) ** (turn + place) * (turn + 1) / (place + 3) for place in range(6)]
        for live, *_ in made:
            live.fill_(float("nan"))
        groups.write(gains)
        for number, (live, base, pairs) in enumerate(made):
            alone, once = torch.full_like(live, float("nan")), Groups()
            once.add(alone, base, pairs, range(2))
            once.write(gains[2 * number : 2 * number + 2])
            assert torch.equal(live, alone)


def test_a_write_within_somebody_elses_graph_is_a_part_of_that_graph():
    torch.manual_seed(0)
    live, base, pairs = layer((256, 128), HALF, HALF, (8,))
    groups = Groups()
    groups.add(live, base, pairs, [0])
    for gain in (0.1, 0.2, 0.3, 0.4):
        groups.write([gain])

    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError), torch.cuda.graph(graph):
        groups.write([0.5])  # the gains come from host memory, which no graph can read
    torch.cuda.synchronize()

    groups.write([0.7])
    assert float(ulps(live, exact(base, pairs, [0.7])).max()) < 0.6

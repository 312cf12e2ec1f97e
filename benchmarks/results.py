"""
The page of results: switches, loads and batches on a CPU, each with diffusers + PEFT and the limit of the machine, as plots.

Run ``python -m benchmarks.results measure --json benchmarks/results/cpu.json`` (some minutes), and ``python -m benchmarks.results
page`` to make docs/results.md and its plots from that file anew. Times are processor time of all threads, medians of turns in which every side
comes once, in one process: a machine that others load slows all sides alike, and what it gives to others does not count.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from benchmarks.models import pipeline, step_inputs, write_kohya
from lora_mixer import LoraMixer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Plot = Mapping[str, Any]

WEIGHTS = (0.7, -0.3, 0.5, 0.21, 0.9, 0.13, 0.37, 0.41)
ROOT = Path(__file__).parents[1]
COLOURS = ("#1b6ca8", "#c0392b", "#7f8c8d", "#2e7d32")


def cost(call: Callable[[], object]) -> float:
    """Give the processor time of a call, in milliseconds."""
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def by_turns(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Give the median cost of each call; each comes once in a turn, and one turn does not count."""
    costs: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            took = cost(call)
            if turn:
                costs[name].append(took)
    return {name: round(statistics.median(took), 3) for name, took in costs.items()}


class Sides:
    """A pipeline with the mixer, another one with PEFT, and a copy of what a mix writes."""

    def __init__(self, size: str, folder: Path, count: int, rank: int = 16, *, peer: bool = True) -> None:
        """Make both, and load the same files into them."""
        self.pipe = pipeline(size, "cpu", torch.float32)
        self.files = [folder / f"{size}-{rank}-{seed}.safetensors" for seed in range(count)]
        unet_alone: Any = SimpleNamespace(unet=self.pipe.unet)
        for seed, file in enumerate(self.files):
            write_kohya(unet_alone, file, seed, rank)
        self.names = [f"a{seed}" for seed in range(count)]
        self.mixer = LoraMixer(self.pipe)
        self.peer = pipeline(size, "cpu", torch.float32) if peer else None
        for file, name in zip(self.files, self.names, strict=True):
            report = self.mixer.load_lora_weights(file, name, activate=False)
            if self.peer is not None:
                self.peer.load_lora_weights(str(file), adapter_name=name)
        paths = {path for part in report.components for path in part.matched}
        self.touched = [self.pipe.unet.get_submodule(path).weight.data for path in paths]
        self.spare = [torch.empty_like(weight) for weight in self.touched]

    @property
    def megabytes(self) -> float:
        """What a mix writes, in 10^6 bytes."""
        return sum(weight.nbytes for weight in self.touched) / 1e6

    def switches(self, count: int) -> dict[str, Callable[[], object]]:
        """Give what sets a mix of some adapters, with other weights each time, on each side."""
        signs = iter(range(1 << 62))
        names = self.names[:count]

        def weights() -> list[float]:
            sign = 1 if next(signs) % 2 else -1
            return [sign * weight for weight in WEIGHTS[:count]]

        calls: dict[str, Callable[[], object]] = {
            "lora_mixer": lambda: self.mixer.set_adapters(names, weights()),
            "a copy of the weights": lambda: torch._foreach_copy_(self.spare, self.touched),
        }
        if self.peer is not None:
            peer = self.peer

            def fused() -> None:
                peer.set_adapters(names, weights())
                peer.fuse_lora()
                peer.unfuse_lora()

            calls["diffusers + PEFT, set_adapters (steps are slower then)"] = lambda: peer.set_adapters(
                names, weights()
            )
            calls["diffusers + PEFT, fused and unfused (not exact)"] = fused
        return calls


def plot(title: str, x: str, y: str, points: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, Any]:
    """Give a plot's facts: points (x, y) of each line."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for at, values in points:
        for name, value in values.items():
            lines.setdefault(name, []).append((at, value))
    return {"title": title, "x": x, "y": y, "lines": lines}


def of_adapters(folder: Path, turns: int) -> dict[str, Any]:
    """Measure a switch against the adapters in the mix."""
    sides = Sides("tiny", folder, 8)
    title = f"A switch against adapters (rank 16, {sides.megabytes:.0f} MB of weights)"
    points = [(count, by_turns(sides.switches(count), turns)) for count in (1, 2, 4, 8)]
    return plot(title, "adapters in the mix", "ms of processor", points)


def of_rank(folder: Path, turns: int) -> dict[str, Any]:
    """Measure a switch of one adapter against its rank."""
    points = []
    for rank in (4, 16, 64, 128):
        sides = Sides("tiny", folder, 1, rank)
        points.append((rank, by_turns(sides.switches(1), turns)))
    return plot("A switch of one adapter against its rank", "rank", "ms of processor", points)


def of_size(folder: Path, turns: int) -> dict[str, Any]:
    """Measure a switch of two adapters against the weights that it writes."""
    points = []
    for size in ("sdxl-thin", "tiny", "sd15"):
        sides = Sides(size, folder, 2, peer=size != "sd15")
        points.append((round(sides.megabytes), by_turns(sides.switches(2), turns if size != "sd15" else 2)))
        del sides
        gc.collect()
    return plot("A switch of two adapters against the model", "MB of weights", "ms of processor", points)


def of_resident(folder: Path, most: int, most_of_peer: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Measure a load against the adapters that are loaded already, and the memory of these."""
    sides = Sides("tiny", folder, 1, 4)
    file = sides.files[0]
    points: list[tuple[float, dict[str, float]]] = []
    window: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for number in range(2, most + 1):
        took = {
            "lora_mixer": cost(lambda n=number: sides.mixer.load_lora_weights(file, f"b{n}", activate=False)),  # type: ignore[misc]
            "a plain read of the file": cost(lambda: load_file(file)),
        }
        if sides.peer is not None and number <= most_of_peer:
            took["diffusers + PEFT"] = cost(
                lambda n=number: sides.peer.load_lora_weights(str(file), adapter_name=f"b{n}")
            )  # type: ignore[misc]
        for name, value in took.items():
            window.setdefault(name, []).append(value)
        if number % 10 == 0:
            points.append(
                (number, {name: round(statistics.median(values), 3) for name, values in window.items()})
            )
            window = {}
        if number in (50, 100):
            memory[f"memory of {number}, MB"] = round(sum(sides.mixer.memory().adapters.values()) / 1e6, 2)
    memory["data of a file, MB"] = round(sum(t.nbytes for t in load_file(file).values()) / 1e6, 3)
    title = "A load against adapters that are loaded (medians of ten)"
    return plot(title, "adapters loaded", "ms of processor", points), memory


def of_batch(folder: Path, turns: int) -> dict[str, Any]:
    """Measure a denoiser's call of eight rows against the mixes in it."""
    sides = Sides("tiny", folder, 8)
    inputs = step_inputs("tiny", 8, "cpu", torch.float32)
    peer = sides.peer

    @torch.no_grad()
    def step(unet: Any, rows: slice = slice(0, 8)) -> None:
        cut = {
            key: value[rows] if isinstance(value, torch.Tensor) and value.ndim else value
            for key, value in inputs.items()
        }
        unet(**cut)

    points = []
    for count in (1, 2, 4, 8):
        mixes = [
            {name: 0.5 + 0.05 * number for number, name in enumerate(sides.names[k : k + 2])}
            for k in range(count)
        ]
        rows = [mixes[row * count // 8] for row in range(8)]

        def one_by_one(mixes: list[dict[str, float]] = mixes, each: int = 8 // count) -> None:
            for number, mix in enumerate(mixes):
                peer.set_adapters(list(mix), list(mix.values()))
                step(peer.unet, slice(number * each, (number + 1) * each))

        with sides.mixer.applied(rows if count > 1 else mixes[0]):
            took = by_turns(
                {
                    "lora_mixer, one call": lambda: step(sides.pipe.unet),
                    "diffusers + PEFT, a call for each mix": one_by_one,
                },
                turns,
            )
        with sides.mixer.applied({}):
            took |= by_turns({"the base": lambda: step(sides.pipe.unet)}, turns)
        points.append((count, {name: round(8e3 / value, 2) for name, value in took.items()}))
    return plot(
        "Rows of a batch of 8 against mixes in it",
        "mixes in the batch",
        "rows per second of processor",
        points,
    )


def of_modes(turns: int) -> dict[str, dict[str, float]]:
    """Measure a switch of four adapters of rank 16 and the way back for each mode of keeping bases, on 6 layers of 1280 x 1280."""
    rows: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.float16):
        mixers = {}
        for mode in ("device", "patch"):
            torch.manual_seed(0)
            net = torch.nn.Sequential(*(torch.nn.Linear(1280, 1280, bias=False) for _ in range(6))).to(dtype)
            mixers[mode] = LoraMixer(net, keep_base=mode)
            for seed in range(4):
                draw = torch.Generator().manual_seed(seed)
                file = {f"{n}.lora_A.weight": torch.randn(16, 1280, generator=draw).half() for n in range(6)}
                file |= {
                    f"{n}.lora_B.weight": (2e-4 * torch.randn(1280, 16, generator=draw)).half()
                    for n in range(6)
                }
                mixers[mode].load_lora_weights(file, f"a{seed}", activate=False)
        names, signs = [f"a{seed}" for seed in range(4)], iter(range(1 << 62))

        def switch(mixer: LoraMixer, names: list[str] = names, signs: Any = signs) -> None:
            sign = 1 if next(signs) % 2 else -1
            mixer.set_adapters(names, [sign * weight for weight in WEIGHTS[:4]])

        took = by_turns({mode: lambda m=mixer: switch(m) for mode, mixer in mixers.items()}, turns)  # type: ignore[misc]
        size = 6 * 1280 * 1280 * dtype.itemsize
        kept = {mode: sum(mixer.memory().base.values()) / size for mode, mixer in mixers.items()}
        for mode, mixer in mixers.items():
            back = []
            for _ in range(turns):
                mixer.enable_lora()
                back.append(cost(mixer.disable_lora))
            rows[f"`{mode}`, {str(dtype).removeprefix('torch.')}"] = {
                "kept beside the weights, of their bytes": round(kept[mode], 4),
                "switch of 4, ms": took[mode],
                "take away, ms": round(statistics.median(back), 3),
            }
    return rows


def drawn(facts: Plot) -> str:
    """Draw a plot as SVG, both axes from 0."""
    lines = facts["lines"]
    width, height, left, top, bottom = 640, 300, 60, 30, 250
    right, far = 620, max(x for line in lines.values() for x, _ in line)
    high = max(y for line in lines.values() for _, y in line) * 1.05

    def at(x: float, y: float) -> tuple[float, float]:
        return round(left + (right - left) * x / far, 1), round(bottom - (bottom - top) * y / high, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 18 * len(lines)}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="18" font-weight="bold">{facts["title"]}</text>',
    ]
    for part in range(5):
        y = at(0, high * part / 4)[1]
        parts.append(
            f'<path d="M{left} {y}H{right}" stroke="#ddd"/><text x="{left - 6}" y="{y + 4}" text-anchor="end">{high * part / 4:.3g}</text>'
        )
    marks = sorted({x for line in lines.values() for x, _ in line})
    parts += [f'<text x="{at(x, 0)[0]}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>' for x in marks]
    parts.append(
        f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">{facts["x"]}; upwards: {facts["y"]}</text>'
    )
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(*point) for point in line]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        y = height + 18 * number
        parts.append(
            f'<path d="M{left} {y - 4}h20" stroke="{colour}" stroke-width="2"/><text x="{left + 28}" y="{y}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def table(facts: Plot) -> str:
    """Write a plot's points as a Markdown table."""
    columns = sorted({x for line in facts["lines"].values() for x, _ in line})
    rows = [
        f"| {facts['x']} | {' | '.join(f'{x:g}' for x in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for name, line in facts["lines"].items():
        values = dict(line)
        rows.append(f"| {name} | {' | '.join(f'{values[x]:.3g}' if x in values else '' for x in columns)} |")
    return "\n".join(rows)


def page(facts: Mapping[str, Any]) -> str:
    """Write the page."""
    machine = ", ".join(f"{name} {value}" for name, value in facts["machine"].items())
    memory = ", ".join(f"{name}: {value:g}" for name, value in facts["memory"].items())
    blocks = [
        "# Results on a CPU",
        (
            "`python -m benchmarks.results measure` wrote the figures (`benchmarks/results/cpu.json`), `python -m benchmarks.results page` this page. "
            "All sides ran in one process, turn by turn; times are processor time of all threads, medians, fp32, random weights and Kohya files: "
            "other work on the machine does not count, and memory that it takes from the caches does. Figures of a GPU are in [speed](speed.md)."
        ),
        f"The machine: {machine}.",
    ]
    for name, each in facts["plots"].items():
        blocks += [
            f"## {each['title']}",
            f"![{each['title']}](images/results-{name}.svg)",
            f"In {each['y']}:",
            table(each),
        ]
        if name == "resident":
            blocks.append(f"What adapters take: {memory}.")
    columns = list(next(iter(facts["modes"].values())))
    lines = [f"| `keep_base` | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [
        f"| {name} | {' | '.join(f'{row[c]:.3g}' for c in columns)} |" for name, row in facts["modes"].items()
    ]
    told = "Six layers of 1280 x 1280, four adapters of rank 16 that change a weight by some 0.04 of its size; milliseconds of processor."
    blocks += ["## Where bases are kept", told, "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def measure(turns: int, most: int, path: Path) -> None:
    """Run everything once; what is there is kept where the rest is cut off."""
    facts: dict[str, Any] = {
        "machine": {
            "processor": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "Python": platform.python_version(),
            "torch": torch.__version__,
        },
        "plots": {},
        "memory": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts["modes"] = of_modes(turns)
        for what, make in (("adapters", of_adapters), ("rank", of_rank), ("batch", of_batch)):
            facts["plots"][what] = make(folder, turns)
            path.write_text(json.dumps(facts, indent=1) + "\n")
        facts["plots"]["resident"], facts["memory"] = of_resident(folder, most, min(most, 20))
        path.write_text(json.dumps(facts, indent=1) + "\n")
        facts["plots"]["size"] = of_size(folder, turns)
        path.write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=("measure", "page"))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "cpu.json")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--most", type=int, default=100, help="adapters that are loaded at once")
    options = parser.parse_args()
    if options.what == "measure":
        measure(options.turns, options.most, options.json)
        return
    facts = json.loads(options.json.read_text())
    for name, each in facts["plots"].items():
        (ROOT / "docs" / "images" / f"results-{name}.svg").write_text(drawn(each))
    (ROOT / "docs" / "results.md").write_text(page(facts))


if __name__ == "__main__":
    main()

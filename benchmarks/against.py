"""
What a call costs today and at an older commit: the same calls on the same files, turn by turn, in one run.

Run ``python -m benchmarks.against 9c3c91f --size tiny`` (or ``--size sd15``, ``--device cuda``). Each commit has a process
of its own, since both packages bear one name; they live at the same time and take turns at every call, so that whatever
else the machine does hits both. The older commit runs twice: what its two processes differ by is the noise of the run.
Only calls that both commits have are used, by names that no redrawing changed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COUNTS = (1, 2, 4, 8)
WEIGHTS = (0.7, -0.3, 0.5, 0.21, 0.9, 0.13, 0.37, 0.41)


def work(size: str, device: str, files: list[str]) -> None:
    """Serve one commit: read the name of a call a line, answer how long it took; the package is the one in this folder."""
    import torch

    from lora_mixer import LoraMixer

    models = runpy.run_path(str(ROOT / "benchmarks" / "models.py"))  # today's, for both

    dtype = torch.float16 if device == "cuda" else torch.float32
    pipe = models["pipeline"](size, device, dtype)
    inputs = models["step_inputs"](size, 2, device, dtype)
    names = [Path(file).stem for file in files]
    base = [tensor.clone() for tensor in (*pipe.unet.parameters(), *pipe.text_encoder.parameters())]
    mixer = LoraMixer(pipe)
    sign = 1

    def step() -> None:
        with torch.no_grad():
            pipe.unet(**inputs)

    def load_all() -> None:
        for file, name in zip(files, names, strict=True):
            mixer.load_lora_weights(file, name)

    def set_of(count: int) -> None:
        nonlocal sign
        sign = -sign
        mixer.set_adapters(names[:count], [sign * weight for weight in WEIGHTS[:count]])

    calls: dict[str, Any] = {
        "load one, first of all": lambda: mixer.load_lora_weights(files[0], "first"),
        "unload": mixer.unload_lora_weights,
        "load eight": load_all,
        **{f"set {count}": lambda count=count: set_of(count) for count in COUNTS},
        "disable": mixer.disable_lora,
        "enable": mixer.enable_lora,
        "step": step,
    }
    print(json.dumps({"package": str(Path(sys.modules["lora_mixer"].__file__ or "").parent)}), flush=True)
    for line in sys.stdin:
        call = calls[line.strip()]
        start, busy = time.perf_counter(), time.process_time()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        took, busy = time.perf_counter() - start, time.process_time() - busy
        exact = None
        if line.strip() == "disable":
            now = (*pipe.unet.parameters(), *pipe.text_encoder.parameters())
            exact = all(torch.equal(a, b) for a, b in zip(now, base, strict=True))
        print(json.dumps({"wall": took, "cpu": busy, "exact": exact}), flush=True)


class Side:
    """One commit at work in its own process."""

    def __init__(self, tree: Path, size: str, device: str, files: list[Path]) -> None:
        """Start it in a folder that holds ``lora_mixer``."""
        start = f"import runpy; runpy.run_path({str(Path(__file__))!r})['work']({size!r}, {device!r}, {[str(f) for f in files]!r})"
        # -c puts the folder first on the path, before an installed lora_mixer.
        process = subprocess.Popen(
            [sys.executable, "-c", start], cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if process.stdin is None or process.stdout is None:
            raise SystemExit("no pipes")
        self.process, self.asked, self.told = process, process.stdin, process.stdout
        package = Path(self._answer()["package"])
        if package.parent != tree:
            raise SystemExit(f"{tree}: measured {package} instead")
        self.times: dict[str, list[tuple[float, float]]] = {}
        self.exact = True

    def _answer(self) -> dict[str, Any]:
        """Read one answer."""
        line = self.told.readline()
        if not line:
            raise SystemExit(f"one side ended with {self.process.wait()}; its error is above")
        return dict(json.loads(line))

    def call(self, name: str) -> None:
        """Have a call made, and keep its time."""
        self.asked.write(name + "\n")
        self.asked.flush()
        answer = self._answer()
        self.times.setdefault(name, []).append((answer["wall"], answer["cpu"]))
        self.exact = self.exact and answer["exact"] is not False

    def median(self, name: str) -> tuple[float, float]:
        """Return a call's median wall time and processor time in seconds; its first round warms up."""
        rounds = self.times[name]
        wall, cpu = zip(*(rounds[1:] or rounds), strict=True)
        return statistics.median(wall), statistics.median(cpu)


def export(commit: str, into: Path) -> Path:
    """Put a commit's package into a folder; a folder that holds one is taken as it is, where there is no git."""
    if Path(commit).is_dir():
        return Path(commit).resolve()
    tar = subprocess.run(
        ["git", "archive", commit, "lora_mixer"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(into, filter="data")
    return into


def main() -> None:
    """Run all three, and print the medians, their ratios and whether each ``disable`` gave the base."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="what to measure against: a commit, or a folder with its package")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = runpy.run_path(str(ROOT / "benchmarks" / "models.py"))
        import torch

        pipe = models["pipeline"](options.size, "cpu", torch.float32)
        files = [Path(folder) / f"style{i}.safetensors" for i in range(max(COUNTS))]
        for seed, file in enumerate(files):
            models["write_kohya"](pipe, file, seed)
        del pipe
        tree = export(options.commit, Path(folder) / "then")
        then, again, now = sides = [
            Side(each, options.size, options.device, files) for each in (tree, tree, ROOT)
        ]
        once = ["load one, first of all"]
        rounds = [
            "unload",
            "load eight",
            *(f"set {n}" for n in COUNTS for _ in range(2)),
            "step",
            "disable",
            "enable",
            "disable",
        ]
        for turn, name in enumerate((*once, *rounds * options.rounds)):
            for side in (*sides[turn % 3 :], *sides[: turn % 3]):
                side.call(name)
        for side in sides:
            side.asked.close()
            side.process.wait()
    print(f"`python -m benchmarks.against {' '.join(sys.argv[1:])}`, {platform.processor() or platform.machine()}, "
          f"{os.cpu_count()} cores, torch {torch.__version__}; medians in ms of {options.rounds} rounds\n")  # fmt: skip
    print(
        f"| call | {options.commit}, wall | now, wall | now / then, wall | noise, wall | now / then, processor | noise, processor |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in then.times:
        (a, a_cpu), (b, b_cpu), (c, c_cpu) = (side.median(name) for side in (then, again, now))
        print(f"| {name} | {1e3 * a:.2f} | {1e3 * c:.2f} | {2 * c / (a + b):.2f} | {b / a:.2f} "
              f"| {2 * c_cpu / (a_cpu + b_cpu):.2f} | {b_cpu / a_cpu:.2f} |")  # fmt: skip
    exact = {side.exact for side in sides}
    print(f"\nbase back bit for bit after each disable, everywhere: {exact == {True}}")


if __name__ == "__main__":
    main()

"""How fast mixes are on this machine: each time beside the limit that the hardware sets, all measured in one go."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file

from lora_mixer import __version__
from lora_mixer.binding import find_components
from lora_mixer.components import DENOISERS, TEXT_ENCODERS
from lora_mixer.errors import MatchError, MixError
from lora_mixer.mixer import LoraMixer
from lora_mixer.mixes import Mix
from lora_mixer.pictures import PictureMaker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.engines import KeepBase
    from lora_mixer.pictures import PictureRequest

__all__ = ["Measurement", "SpeedReport", "measure_speed"]

Unit = Literal["seconds", "bytes", "times", "values"]
_WEIGHTS = (0.7, -0.3, 0.5, 0.21, 0.9, 0.13, 0.37, 0.41)
_UP = 0.02
"""The spread of random factors, whose changes are small beside most weights."""


@dataclass(frozen=True)
class Measurement:
    """
    One figure.

    Attributes:
        name: What was measured.
        value: The figure; of times the median.
        unit: ``seconds``, ``bytes``, ``times`` (a ratio) or ``values`` (a count).
        limit: The least that the hardware allows, in the same unit, where that was measured, too.
        limit_name: What the limit is.

    Example:
        >>> Measurement("a switch", 0.004, "seconds").value
        0.004
    """

    name: str
    value: float
    unit: Unit
    limit: float | None = None
    limit_name: str = ""

    def __str__(self) -> str:
        """Return one line of a table."""
        line = f"{self.name:<46} {_written(self.value, self.unit):>11}"
        if not self.limit:
            return line
        return (
            f"{line}   {self.value / self.limit:5.2f} x {self.limit_name} ({_written(self.limit, self.unit)})"
        )


@dataclass(frozen=True)
class SpeedReport:
    """
    All figures of one run.

    Attributes:
        machine: What it ran on: hardware and versions.
        measurements: The figures.

    Example:
        >>> report = SpeedReport({"device": "cpu"}, (Measurement("a switch", 0.004, "seconds"),))
        >>> report["a switch"], report.to_json()["machine"]
        (0.004, {'device': 'cpu'})
    """

    machine: Mapping[str, str]
    measurements: tuple[Measurement, ...]

    def __getitem__(self, name: str) -> float:
        """Return the figure of a name."""
        return next(one.value for one in self.measurements if one.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``."""
        return {
            "machine": dict(self.machine),
            "measurements": [asdict(one) for one in self.measurements],
        }

    def __str__(self) -> str:
        """Return a table."""
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        return "\n".join((machine, *(f"  {one}" for one in self.measurements)))


def measure_speed(
    pipe: Any,
    files: Sequence[str | Path] = (),
    *,
    request: PictureRequest | None = None,
    defaults: Mapping[str, Any] | None = None,
    rank: int = 16,
    repeats: int = 5,
    keep_base: KeepBase = "device",
) -> SpeedReport:
    """
    Measure loading, mixing, restoring and, where a picture is asked for, what mixes add to it, beside the hardware's limits.

    Args:
        pipe: A pipeline or a bare module without adapters; it is what it was afterwards.
        files: Safetensors files of adapters for it; with none, four are made: random pairs over all linear layers.
        request: A picture that is made with and without adapters; its own mix does not count.
        defaults: What such pictures are made with where the request does not say, by the fields of a request.
        rank: The rank of adapters that are made.
        keep_base: Where bases are kept, as :class:`LoraMixer` has it.
        repeats: How often each time is taken, after one that does not count; medians are reported.

    Returns:
        The figures: seconds, bytes and ratios, with the limits: reading the file's bytes to the device, and copying the
        weights that adapters touch.

    Raises:
        MatchError: When there is no linear layer to make adapters for, or a file does not fit.
        MixError: When ``repeats`` or ``rank`` is not positive.
        LoraMixerError: As :meth:`LoraMixer.load_lora_weights` does.

    Example:
        >>> report = measure_speed(torch.nn.Sequential(torch.nn.Linear(8, 8)), repeats=1)
        >>> report["values that differ from the base afterwards"]
        0
    """
    if repeats < 1 or rank < 1:
        raise MixError(f"repeats and rank must be at least 1, got {repeats} and {rank}", argument="repeats")
    with tempfile.TemporaryDirectory(prefix="lora-mixer-bench-") as folder:
        paths = [Path(file) for file in files] or _random_files(pipe, Path(folder), rank)
        run = _Run(LoraMixer(pipe, keep_base=keep_base), paths, repeats)
        try:
            run.loads()
            run.switches()
            if request is not None:
                run.pictures(request, defaults or {})
            run.memory()
        finally:
            run.mixer.unload_lora_weights()
        run.afterwards()
    return SpeedReport(_machine(run.device), tuple(run.made))


class _Run:
    """One run, which gathers figures."""

    def __init__(self, mixer: LoraMixer, paths: Sequence[Path], repeats: int) -> None:
        self.mixer, self.paths, self.repeats = mixer, paths, repeats
        self.names = [f"{number} {path.stem}" for number, path in enumerate(paths)]
        self.made: list[Measurement] = []
        self.touched: list[torch.Tensor] = []
        self.device = torch.device("cpu")
        self.base: list[torch.Tensor] = []
        self.copy = 0.0

    def note(self, name: str, value: float, unit: Unit, limit: float | None = None, of: str = "") -> None:
        self.made.append(Measurement(name, value, unit, limit, of))

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, call: Callable[[], object]) -> float:
        self.sync()
        start = time.perf_counter()
        call()
        self.sync()
        return time.perf_counter() - start

    def median(self, call: Callable[[], object]) -> float:
        call()
        return statistics.median(self.once(call) for _ in range(self.repeats))

    def loads(self) -> None:
        """Load every file without putting it into effect, beside reading its bytes to where it goes."""
        mixer, components = self.mixer, find_components(self.mixer.pipe)
        report = mixer.load_lora_weights(self.paths[0], self.names[0], activate=False)
        parameters: dict[int, torch.Tensor] = {}
        for part in report.components:
            for path in part.matched:
                owner = components[part.component].get_submodule(path.removesuffix(".in_proj_weight"))
                for tensor in owner.parameters(recurse=False):
                    parameters.setdefault(id(tensor), tensor.data)
        self.touched = list(parameters.values())
        self.device = self.touched[0].device
        self.base = [tensor.clone() for tensor in self.touched]
        mixer.delete_adapters(self.names[0])
        took = [
            self.once(lambda p=path, n=name: mixer.load_lora_weights(p, n, activate=False))  # type: ignore[misc]
            for path, name in zip(self.paths, self.names, strict=True)
        ]
        file = self.paths[0]
        read = (
            self.median(lambda: load_file(file, device=str(self.device)))
            if file.suffix == ".safetensors"
            else None
        )
        self.note("load a file", statistics.median(took), "seconds", read, "a plain read")
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.touched)
        self.note("weights that it touches", size, "bytes")

    def switches(self) -> None:
        """Set mixes of more and more adapters, and take them away."""
        mixer, copies = self.mixer, [tensor.clone() for tensor in self.touched]
        self.copy = self.median(lambda: torch._foreach_copy_(copies, self.touched))  # noqa: F821
        del copies
        weights = [_WEIGHTS[number % len(_WEIGHTS)] for number in range(len(self.names))]
        first = self.once(lambda: mixer.set_adapters(self.names[:1], weights[:1]))
        self.note("set the very first mix, which keeps bases", first, "seconds")
        counts = sorted({1, 2, 4, 8, len(self.names)} & set(range(1, len(self.names) + 1)))
        for count in counts:
            signs = iter(range(1 << 62))
            names = self.names[:count]

            def switch(names: list[str] = names, signs: Any = signs) -> None:
                sign = 1 if next(signs) % 2 else -1
                mixer.set_adapters(names, [sign * weight for weight in weights[: len(names)]])

            self.note(
                f"set a mix of {count}", self.median(switch), "seconds", self.copy, "a copy of the weights"
            )
        took = []
        for _ in range(self.repeats + 1):
            mixer.enable_lora()
            took.append(self.once(mixer.disable_lora))
        self.note("take it away", statistics.median(took[1:]), "seconds", self.copy, "a copy of the weights")

    def pictures(self, request: PictureRequest, defaults: Mapping[str, Any]) -> None:
        """Make one picture without adapters and with all of them."""
        maker = PictureMaker(self.mixer, defaults=dict(defaults))
        weights = [_WEIGHTS[number % len(_WEIGHTS)] for number in range(len(self.names))]
        mix = Mix.of(dict(zip(self.names, weights, strict=True)))
        plain, mixed = replace(request, mix=Mix.of({})), replace(request, mix=mix)
        times: dict[str, list[float]] = {"base": [], "mixed": []}
        for turn in range(self.repeats + 1):  # by turns, so that a machine that slows down slows both
            for kind, one in (("base", plain), ("mixed", mixed)):
                took = self.once(lambda r=one: list(maker.make([r])))  # type: ignore[misc]
                if turn:
                    times[kind].append(took)
        base = statistics.median(times["base"])
        self.note("a picture of the base", base, "seconds")
        self.note(
            f"a picture with {len(self.names)} adapters",
            statistics.median(times["mixed"]),
            "seconds",
            base,
            "that",
        )

    def memory(self) -> None:
        """Count what the mixer holds with everything loaded and in effect."""
        self.mixer.set_adapters(self.names)
        held = self.mixer.memory()
        self.note("memory of the adapters", sum(held.adapters.values()), "bytes")
        self.note("memory of kept bases", sum(held.base.values()), "bytes")
        if self.device.type == "cuda":
            self.note("peak memory of the GPU", torch.cuda.max_memory_allocated(self.device), "bytes")

    def afterwards(self) -> None:
        """Compare the weights with what they were."""
        odd = sum(int((now != before).sum()) for now, before in zip(self.touched, self.base, strict=True))
        self.note("values that differ from the base afterwards", odd, "values")


def _random_files(pipe: Any, folder: Path, rank: int) -> list[Path]:
    """Write four files of random pairs over all linear layers of the denoiser and the text encoders."""
    shapes = {
        f"{part}.{path}": (layer.out_features, layer.in_features)
        for part, root in find_components(pipe).items()
        if part in (*TEXT_ENCODERS, *DENOISERS)
        for path, layer in root.named_modules()
        if isinstance(getattr(layer, "in_features", None), int)
    }
    if not shapes:
        raise MatchError("there is no linear layer here to make adapters for: give files of adapters")
    files = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for name, (rows, columns) in shapes.items():
            key = name.removeprefix("model.")
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=generator).half()
            tensors[f"{key}.lora_B.weight"] = (torch.randn(rows, rank, generator=generator) * _UP).half()
        files.append(folder / f"random{seed}.safetensors")
        save_file(tensors, files[-1])
    return files


def _machine(device: torch.device) -> dict[str, str]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    facts = {
        "GPU": gpu,
        "CPU": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "lora_mixer": __version__,
    }
    return {name: value for name, value in facts.items() if value}


def _written(value: float, unit: Unit) -> str:
    if unit == "seconds":
        return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "bytes":
        return f"{value / 1e9:.3f} GB" if value >= 1e8 else f"{value / 1e6:.2f} MB"
    return f"{value:.3g}"

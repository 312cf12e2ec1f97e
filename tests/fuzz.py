"""
Mutated adapter files over every algorithm and kind of layer: headers, dtypes, shapes, names, alphas, NaN, huge ranks, keys
that stand twice, nested metadata, hostile patterns, pickles, FIFOs, links, files that change while they are read, axes of
thousands in small files, types that no adapter has, hundreds of names that are nearly alike, leaves of several algorithms at once;
and files of one kind with other contents, which have to be what they are to those who have seen no other file of that kind.

``python -m tests.fuzz --seed 7 --seconds 300`` runs as many as the time has room for and counts what came of them; failures
are written to ``tests/fuzz_cases``, which the suite replays. A nightly run is ``--seconds 3600`` with the day as seed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import threading
import time
import warnings
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_mixer import LoraMixer, LoraMixerError, read_adapter
from lora_mixer.formats.file_moulds import forget_moulds
from lora_mixer.library import layer_norms
from tests.test_algorithms_fuzz import CONFIGS, MORE, NAMES, OPTIONS, mutated
from tests.test_algorithms_mixing import copy, model, same

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
SPELLINGS = ("net", "base_model.model.net", "lora_unet_net", "lycoris_net", "lora_te_net", "nothing")
HUGE = (-1, 0, 7, 1 << 20, 1 << 40, 1 << 63, 10**30)
VALUES = (None, True, -1, 1.5, "F32", [], {}, [1, 2, 3], "x" * 5000, 1 << 62)


def file_bytes(tensors: dict[str, torch.Tensor], dice: random.Random, *, broken: float = 0.5) -> bytes:
    """Write a safetensors file, and in two of three cases break its header or its data; in ``broken`` of them an entry."""
    entries: list[tuple[str, Any]] = []
    data = b""
    for key, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        place = [len(data), len(data) + len(raw)]
        entries.append(
            (
                key,
                {"dtype": TYPES.get(tensor.dtype, "F64"), "shape": list(tensor.shape), "data_offsets": place},
            )
        )
        data += raw
    if dice.random() < broken and entries:
        _break(entries, dice)
    text = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in entries) + "}"
    header = text.encode()
    kind = dice.randrange(16 if broken > 0.2 else 100)
    if kind == 0:
        header = header[: dice.randrange(len(header) + 1)]
    elif kind == 1:
        at = dice.randrange(len(header))
        header = header[:at] + bytes([dice.randrange(256)]) + header[at + 1 :]
    elif kind == 2:
        data = data[: dice.randrange(len(data) + 1)]
    length = dice.choice(HUGE[2:6]) if kind == 3 else len(header)
    return struct.pack("<Q", length) + header + data


EXOTIC = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
"""Types that a header may name, and the bytes of one number."""


def exotic_bytes(tensors: dict[str, torch.Tensor], dice: random.Random) -> bytes:
    """Write a file whose header is right, of random bytes in types that few or no adapters have."""
    header, data = {}, b""
    for key, tensor in tensors.items():
        kind = dice.choice(tuple(EXOTIC))
        raw = dice.randbytes(tensor.numel() * EXOTIC[kind])
        place = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def stretched(tensors: dict[str, torch.Tensor], dice: random.Random) -> dict[str, torch.Tensor]:
    """Give axes that are alike another length, thousands at times: a small file that stands for something huge."""
    lengths: dict[int, int] = {}
    table = {}
    for key, tensor in tensors.items():
        shape = []
        for axis in tensor.shape:
            if axis not in lengths:
                lengths[axis] = dice.choice((1, 1, 2, axis, axis, 3, 97, 5000, 30_000))
            shape.append(lengths[axis])
        numbers = 1
        for axis in shape:
            numbers *= axis
        if numbers > 1 << 18:  # files of the fuzzer stay small
            shape = list(tensor.shape)
        table[key] = torch.ones(shape, dtype=tensor.dtype) if dice.random() < 0.5 else torch.randn(shape)
    return table


def crowd(tensors: dict[str, torch.Tensor], dice: random.Random) -> dict[str, torch.Tensor]:
    """Have the same tensors under hundreds of names, some of them nearly the same, some of other spellings."""
    table = {}
    for number in range(dice.choice((2, 20, 300))):
        front = dice.choice(
            (
                "net",
                "net.",
                "net_",
                "Net",
                "net.net",
                "unet.net",
                "net\u0000",
                "nёt",
                f"net{number}",
                "a" * 200,
            )
        )
        for key, tensor in tensors.items():
            table[key.replace("net", front, 1)] = tensor
    return table


def crossed(tensors: dict[str, torch.Tensor], dice: random.Random) -> dict[str, torch.Tensor]:
    """Put leaves of other algorithms beside those of one, under the same and other spellings."""
    table = dict(tensors)
    for _ in range(dice.randrange(1, 5)):
        front, other = dice.choice(SPELLINGS), MORE[dice.choice(list(MORE))]
        leaves = dice.sample(sorted(other), dice.randint(1, len(other)))
        table.update({f"{front}.{leaf}": torch.as_tensor(other[leaf]).clone() for leaf in leaves})
    return table


PATTERNS = ("(a|a)*b", "net", ".*", "(", "^net$", "n.t", "[", "a" * 5000, "(n|ne|net)(n|e|t)*", r"\d+\d+\d+x")
NUMBERS = (10**400, -(10**400), 1e308, -1e308, 1e-320, 0, -3, 10**9, True, None, "4", [1], {"a": 1})


def hostile(dice: random.Random) -> dict[str, Any]:
    """Write a header's metadata with patterns, numbers and depths that hurt."""
    table: dict[str, Any] = {
        dice.choice(("r", "lora_alpha", "net.r", "unet.lora_alpha", "use_rslora")): dice.choice(NUMBERS),
        dice.choice(("alpha_pattern", "rank_pattern", "unet.alpha_pattern")): {
            dice.choice(PATTERNS): dice.choice(NUMBERS) for _ in range(dice.randrange(4))
        },
    }
    text = json.dumps(table)
    depth = dice.choice((0, 0, 1, 50, 5000))
    return {"lora_adapter_metadata": "[" * depth + text + "]" * depth, "ss_tag_frequency": text}


def _break(entries: list[tuple[str, Any]], dice: random.Random) -> None:
    at = dice.randrange(len(entries))
    key, entry = entries[at]
    entry = dict(entry)
    kind = dice.randrange(7)
    if kind == 0:
        entry["shape"] = [dice.choice(HUGE) for _ in range(dice.randint(0, 5))]
    elif kind == 1:  # a claim of a terabyte and more
        entry["data_offsets"] = [dice.choice(HUGE), dice.choice(HUGE)]
    elif kind == 2:
        entry[dice.choice(("dtype", "shape", "data_offsets"))] = dice.choice(VALUES)
    elif kind == 3:
        entries.append((key, entry))
    elif kind == 4:
        entries.append(
            (
                "__metadata__",
                dice.choice(({}, {"a": 1}, None, [], {"lora_adapter_metadata": "{"}, hostile(dice))),
            )
        )
    elif kind == 5:
        key = dice.choice(
            (key[:-1], key + ".x", "", "\N{LATIN SMALL LETTER A WITH ACUTE}", "a" * 9999, f"<{key}>")
        )
    else:
        entry["dtype"] = dice.choice(("F64", "F8_E4M3", "U64", "C64", "X"))
    entries[at] = (key, entry)


class HangError(AssertionError):
    """A file took longer than it may."""


SECONDS_AT_MOST = 5.0
BYTES_AT_MOST = 64 << 20
TIMES_AT_MOST = 20
CASES = Path(__file__).parent / "fuzz_cases"
"""One folder for each failure that was found: its files, and ``case.json`` with what came of them."""


def layers(dice: random.Random) -> nn.Module:
    """Make a small model whose ``net`` is one of several kinds of layers."""
    root = nn.Module()
    root.net = dice.choice(
        (
            lambda: nn.Linear(8, 8),
            lambda: nn.Linear(8, 8, bias=False),
            lambda: Conv1D(8, 8),
            lambda: nn.Embedding(8, 8),
            lambda: nn.Conv1d(8, 8, 1),
            lambda: nn.Conv2d(8, 8, 3),
            lambda: nn.Conv3d(8, 8, 1),
            lambda: nn.Conv2d(8, 8, 3, groups=4),
            lambda: nn.ConvTranspose2d(8, 8, 2),
            lambda: nn.LayerNorm(8),
            lambda: nn.GroupNorm(2, 8),
            lambda: nn.MultiheadAttention(8, 2),
        )
    )()
    return root


def odd_file(path: Path, dice: random.Random) -> str:
    """Put something at a path that is not a regular file, or that leads elsewhere."""
    path.unlink(missing_ok=True)
    kind = dice.choice(
        ("fifo", "loop", "zero", "nowhere", "folder", "socket name", "proc", "config fifo", "config zero")
    )
    config = path.with_name("adapter_config.json")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "nowhere":
        path.symlink_to(path.with_name("gone"))
    elif kind == "folder":
        path.mkdir()
    elif kind == "proc":
        path.symlink_to("/proc/self/maps")
    elif kind.startswith("config"):
        config.unlink(missing_ok=True)
        os.mkfifo(config) if kind == "config fifo" else config.symlink_to("/dev/zero")
    return kind


def pickled(tensors: dict[str, torch.Tensor], dice: random.Random) -> bytes:
    """Write a pickle of torch's, and in most cases break it; in some, few bytes stand for huge tensors."""
    if dice.random() < 0.2:
        tensors = {
            # at most two such dimensions: torch itself cannot count the values of four of them
            key: x.flatten()[:1].expand(
                [dice.choice((n, n, 1 << 14, 1 << 20)) if i < 2 else n for i, n in enumerate(x.shape)]
            )
            if x.numel() and x.ndim
            else x
            for key, x in tensors.items()
        }
    content: Any = dice.choice(
        (tensors, {"state_dict": tensors, "step": 3}, list(tensors.values()), {"a": [tensors]}, 7)
    )
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=dice.random() < 0.7)
    raw = bytearray(stream.getvalue())
    for _ in range(dice.choice((0, 1, 1, 5))):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    return bytes(raw[: dice.randrange(1, len(raw))] if dice.random() < 0.2 else raw)


def _clean(folder: Path) -> None:
    for file in folder.iterdir():
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()


def _peak() -> int | None:
    """Give the most memory since the last look, and begin anew; None where the system does not tell."""
    try:
        with Path("/proc/self/status").open() as stream:
            found = next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, StopIteration):
        return None
    return found


def _write(seed: int, folder: Path, dice: random.Random) -> tuple[Path, str]:
    """Write the file of a seed, and whatever stands beside it."""
    names = list(MORE)
    name = names[seed % len(names)]
    path = folder / "adapter_model.safetensors"
    config = CONFIGS.get(name)
    if config is not None:
        changed = {**config, dice.choice(NAMES): dice.choice(OPTIONS)} if dice.random() < 0.5 else config
        (folder / "adapter_config.json").write_text(json.dumps(changed))
    spelling = "base_model.model.net" if config is not None else dice.choice(SPELLINGS)
    idea = dice.choice(
        ("file",) * 12
        + ("twins",) * 4
        + ("odd", "changing", "pickle", "hostile config") * 2
        + ("exotic", "stretched", "stretched", "stretched", "crowd", "crossed", "crossed")
    )
    is_whole = idea == "twins" and dice.random() < 0.8
    leaves = (
        {leaf: torch.as_tensor(x) for leaf, x in MORE[name].items()}
        if is_whole
        else mutated(MORE[name], dice)
    )
    if is_whole and config is None:
        spelling = dice.choice(SPELLINGS[:4])
    if is_whole and dice.random() < 0.5:
        leaves["alpha"] = torch.tensor(dice.choice((1.0, 2.0, 4.0)))
    table = {f"{spelling}.{leaf}": tensor for leaf, tensor in leaves.items()}
    change = {"stretched": stretched, "crowd": crowd, "crossed": crossed}.get(idea)
    if change is not None:
        table = change(table, dice)
    if idea == "pickle":
        path = path.with_suffix(dice.choice((".pt", ".bin", ".ckpt")))
        path.write_bytes(pickled(table, dice))
        return path, idea
    path.write_bytes(
        exotic_bytes(table, dice)
        if idea == "exotic"
        else file_bytes(table, dice, broken=0.5 if change is None and idea != "twins" else 0.05)
    )
    if idea == "odd":
        return path, odd_file(path, dice)
    if idea == "hostile config":
        text = json.dumps({"peft_type": "LORA", **hostile(dice), dice.choice(NAMES): dice.choice(OPTIONS)})
        depth = dice.choice((0, 0, 3, 90_000))
        (folder / "adapter_config.json").write_text("[" * depth + text + "]" * depth)
    return path, idea


@contextlib.contextmanager
def _changing(path: Path, dice: random.Random) -> Iterator[None]:
    """Cut and rewrite a file while it is read."""
    whole, stop = path.read_bytes(), threading.Event()
    cuts = [dice.randrange(len(whole) + 1) for _ in range(4)]

    def work() -> None:
        while not stop.is_set():
            for cut in cuts:
                path.write_bytes(whole[:cut])
                path.write_bytes(whole)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _try(path: Path, module: nn.Module, dice: random.Random, outcomes: collections.Counter[str]) -> None:
    """Describe and load one file; only the package's own errors are an outcome."""
    mixer, pickles = LoraMixer(module), path.suffix != ".safetensors"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixer.load_lora_weights(path, "a", load_embeddings=dice.random() < 0.2, allow_pickle=pickles)
            mixer.set_adapters("a", -0.5)
            outcomes["loaded"] += 1
            _use(mixer, module, dice, path.parent)
    except LoraMixerError as error:
        outcomes[type(error).__name__] += 1
        if len(str(error)) > 20_000:
            raise AssertionError(f"a message of {len(str(error))} letters") from error
    with contextlib.suppress(LoraMixerError):
        read_adapter(path, allow_pickle=pickles)
        layer_norms(path, allow_pickle=pickles)
    mixer.unload_lora_weights()


def _twins(path: Path, module: nn.Module, dice: random.Random, outcomes: collections.Counter[str]) -> None:
    """
    Load files of one kind one after the other, and each as if it were the first of its kind.

    What is kept of a kind has to be the same to who compares: outcome, texts, description and weights.
    """
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    other = deepcopy(module)
    mixer = LoraMixer(module)
    for _ in range(dice.randint(2, 4)):
        path.write_bytes(whole[:start] + _contents(whole[start:], dice))
        known = _seen(mixer, module, path)
        forget_moulds()
        fresh = LoraMixer(other)
        outcomes["twins loaded" if known[2] else "twins refused"] += 1
        if not _alike(known, _seen(fresh, other, path)):
            raise AssertionError(f"a file of a kind that is known is read otherwise: {known[:2]}")
        fresh.unload_lora_weights()


def _contents(raw: bytes, dice: random.Random) -> bytes:
    """Give the data of a file of the same kind: some bytes, runs of numbers or all of them are others."""
    data = bytearray(raw)
    for _ in range(dice.randint(0, 3)):
        kind, size = dice.randrange(5), len(data)
        if not size:
            break
        at = dice.randrange(size) // 4 * 4
        if kind == 0:
            data[at] = dice.randrange(256)
        elif kind == 1:
            data[at : at + 4] = struct.pack(
                "<f", dice.choice((0.0, 1.0, float("nan"), float("inf"), 1e30, -2.0))
            )[: size - at]
        elif kind == 2:
            data = bytearray(size) if dice.random() < 0.5 else data[at:] + data[:at]
        elif kind == 3:  # small numbers stay small
            data[3::4] = bytes(byte & 0x80 | dice.choice((0x3D, 0x3E, 0x3F)) for byte in data[3::4])
        else:
            data[at:] = dice.randbytes(size - at)
    return bytes(data)


def _seen(mixer: LoraMixer, module: nn.Module, path: Path) -> tuple[Any, ...]:
    """Give all that comes of a file: an error's text, or what is said of it and the weights that it makes."""
    texts: list[Any] = []
    weights: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            mixer.load_lora_weights(path, "twin", activate=False)
            texts += [repr(mixer.adapters["twin"]), str(mixer.reports["twin"])]
            mixer.set_adapters("twin", -0.5)
            weights = {key: value.clone() for key, value in module.state_dict().items()}
        except LoraMixerError as error:
            texts += [type(error).__name__, str(error)]
        finally:
            mixer.unload_lora_weights()
        try:
            texts.append(repr(read_adapter(path)))
            texts.append(repr(layer_norms(path)))
        except LoraMixerError as error:
            texts += [type(error).__name__, str(error)]
    return texts, [str(each.message) for each in told], weights


def _alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return bool(
        one[:2] == other[:2]
        and one[2].keys() == other[2].keys()
        and all(
            torch.equal(value.view(torch.uint8), other[2][key].view(torch.uint8))
            if value.is_floating_point() and value.dim()
            else torch.equal(value, other[2][key])
            for key, value in one[2].items()
        )
    )


def _use(mixer: LoraMixer, module: nn.Module, dice: random.Random, folder: Path) -> None:
    """Do with what was loaded what people do: run it, have it beside the weights, save it, measure it."""
    net: Any = module.net
    axes = len(getattr(net, "kernel_size", ()))
    x: Any = torch.ones(1, 8, *[4] * axes)
    if isinstance(net, nn.Embedding):
        x = torch.tensor([0, 7])
    with torch.no_grad():
        net(x, x, x) if isinstance(net, nn.MultiheadAttention) else net(x)
        with contextlib.suppress(LoraMixerError), mixer.applied({"a": 0.5}, engine="side"):
            net(x, x, x) if isinstance(net, nn.MultiheadAttention) else net(x)
    for form in ("diffusers", "peft"):
        with contextlib.suppress(LoraMixerError):
            mixer.save_lora_weights(folder / f"out-{form}", "a", format=form, rank=dice.choice((None, 2)))
    with contextlib.suppress(LoraMixerError):
        mixer.save_lora_weights(
            folder / "out-merged", ["a"], weights=[0.5], format="diffusers", rank=2, dtype="float16"
        )


def _bounded(
    path: Path,
    module: nn.Module,
    dice: random.Random,
    outcomes: collections.Counter[str],
    *,
    twins: bool = False,
) -> None:
    """The same within its bounds of time and memory."""
    size = path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    resident, before = _resident(), _peak()
    start = time.thread_time()  # of the processor: who only waits is ended by the alarm
    (_twins if twins else _try)(path, module, dice, outcomes)
    took, after = time.thread_time() - start, _peak()
    outcomes["most ms"] = max(outcomes["most ms"], int(took * 1000))
    if took > SECONDS_AT_MOST:
        raise HangError(f"took {took:.1f} s")
    if before is None or after is None:
        return
    outcomes["most MiB above"] = max(outcomes["most MiB above"], (after - resident) >> 20)
    if after - resident > TIMES_AT_MOST * size + BYTES_AT_MOST:
        raise AssertionError(f"{size} bytes took {(after - resident) >> 20} MiB at the most")


def _resident() -> int:
    with Path("/proc/self/statm").open() as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()


def _hang(*_: object) -> None:
    raise HangError(f"no end within {4 * SECONDS_AT_MOST:.0f} s")


def run(
    seeds: Iterable[int], folder: Path, *, until: float = float("inf"), keep: Path | None = None
) -> collections.Counter[str]:
    """
    Load mutated files and check after each that the model is as it was.

    Args:
        seeds: One for each file.
        folder: Where to write them.
        until: When to stop, by ``time.monotonic``.
        keep: Where failures are written as cases, one folder for each; None raises the first.

    Returns:
        How often each outcome came: ``loaded``, or the error's name; anything but the package's own errors is raised, and so
        are hangs over 5 s and memory above 20 times the file and 64 MiB.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    before = (
        signal.signal(signal.SIGALRM, _hang)
        if threading.current_thread() is threading.main_thread()
        else None
    )
    try:
        for seed in seeds:
            if time.monotonic() > until:
                break
            dice = random.Random(seed)
            _clean(folder)
            module = layers(dice) if dice.random() < 0.3 else model()
            base = copy(module)
            path, idea = _write(seed, folder, dice)
            outcomes[f"({idea})"] += 1
            if before is not None:
                signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS_AT_MOST)
            try:
                with _changing(path, dice) if idea == "changing" else contextlib.nullcontext():
                    _bounded(path, module, dice, outcomes, twins=idea == "twins")
                if not same(module, base):
                    raise AssertionError("the model is not as it was")  # noqa: TRY301
            except Exception as error:
                error.add_note(f"seed {seed}, {idea}")
                if keep is None:
                    raise
                outcomes["FAILED"] += 1
                _keep(keep / f"{seed}", folder, f"{idea}: {type(error).__name__}: {error}"[:500])
            finally:
                if before is not None:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        if before is not None:
            signal.signal(signal.SIGALRM, before)
    return outcomes


def _keep(place: Path, folder: Path, what: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and not file.is_symlink():
            shutil.copyfile(file, place / file.name)
    (place / "case.json").write_text(json.dumps({"what": what}))


def replay(case: Path) -> collections.Counter[str]:
    """Load what once failed, on every kind of layer; raises what fails again."""
    outcomes: collections.Counter[str] = collections.Counter()
    for file in sorted(case.glob("adapter_model.*")):
        for seed in range(24):
            dice = random.Random(seed)
            module = layers(dice)
            base = copy(module)
            _bounded(file, module, dice, outcomes)
            if file.suffix == ".safetensors":
                with TemporaryDirectory() as folder:
                    twin = Path(shutil.copy(file, folder))
                    _bounded(twin, module, dice, outcomes, twins=True)
            assert same(module, base)
    return outcomes


def main() -> None:
    """Run and print the counts; failures are kept as cases, and the exit code says whether there were any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1 << 40, help="how many files at most")
    parser.add_argument("--seconds", type=float, default=300.0, help="when to stop")
    parser.add_argument("--seed", type=int, default=0, help="that of the first file")
    parser.add_argument(
        "--keep", type=Path, default=CASES, help="where failures are written, for the suite to replay"
    )
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        outcomes = run(
            range(chosen.seed, chosen.seed + chosen.count),
            Path(folder),
            until=time.monotonic() + chosen.seconds,
            keep=chosen.keep,
        )
    ideas = {name: count for name, count in outcomes.items() if name.startswith("(")}
    print(f"{sum(ideas.values())} files of {len(MORE)} algorithms from seed {chosen.seed} on")  # noqa: T201
    for name, count in outcomes.most_common():
        print(f"  {name:26} {count}")  # noqa: T201
    sys.exit(1 if outcomes["FAILED"] else 0)


if __name__ == "__main__":
    main()

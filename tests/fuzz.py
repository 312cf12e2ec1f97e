"""
Mutated adapter files over every algorithm: headers, dtypes, shapes, names, alphas, NaN, huge ranks, keys that stand twice.

``python -m tests.fuzz --count 10000`` runs as many as wanted and counts what came of them; the tests run some.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import resource
import struct
import warnings
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer import LoraMixer, LoraMixerError, read_adapter
from tests.test_algorithms_fuzz import CONFIGS, MORE, NAMES, OPTIONS, mutated
from tests.test_algorithms_mixing import copy, model, same

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

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


def file_bytes(tensors: dict[str, torch.Tensor], dice: random.Random) -> bytes:
    """Write a safetensors file, and in two of three cases break its header or its data."""
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
    if dice.random() < 0.66 and entries:
        _break(entries, dice)
    text = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in entries) + "}"
    header = text.encode()
    kind = dice.randrange(12)
    if kind == 0:
        header = header[: dice.randrange(len(header) + 1)]
    elif kind == 1:
        at = dice.randrange(len(header))
        header = header[:at] + bytes([dice.randrange(256)]) + header[at + 1 :]
    elif kind == 2:
        data = data[: dice.randrange(len(data) + 1)]
    length = dice.choice(HUGE[2:6]) if kind == 3 else len(header)
    return struct.pack("<Q", length) + header + data


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


def run(seeds: Iterable[int], folder: Path) -> collections.Counter[str]:
    """
    Load mutated files and check after each that the model is as it was.

    Returns:
        How often each outcome came: ``loaded``, or the error's name; anything but the package's own errors is raised.
    """
    module = model()
    base = copy(module)
    outcomes: collections.Counter[str] = collections.Counter()
    names = list(MORE)
    path = folder / "adapter_model.safetensors"
    for seed in seeds:
        dice = random.Random(seed)
        name = names[seed % len(names)]
        config = CONFIGS.get(name)
        (folder / "adapter_config.json").unlink(missing_ok=True)
        if config is not None:
            changed = {**config, dice.choice(NAMES): dice.choice(OPTIONS)} if dice.random() < 0.5 else config
            (folder / "adapter_config.json").write_text(json.dumps(changed))
        spelling = "base_model.model.net" if config is not None else dice.choice(SPELLINGS)
        table = {f"{spelling}.{leaf}": tensor for leaf, tensor in mutated(MORE[name], dice).items()}
        path.write_bytes(file_bytes(table, dice))
        mixer = LoraMixer(module)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mixer.load_lora_weights(path, "a", load_embeddings=dice.random() < 0.2)
                mixer.set_adapters("a", -0.5)
            outcomes["loaded"] += 1
        except LoraMixerError as error:
            outcomes[type(error).__name__] += 1
        with contextlib.suppress(LoraMixerError):
            read_adapter(path)
        mixer.unload_lora_weights()
        if not same(module, base):
            raise AssertionError(f"seed {seed}: the model is not as it was")
    return outcomes


def main() -> None:
    """Run and print the counts, and the largest memory the process ever had."""
    import tempfile
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(range(chosen.seed, chosen.seed + chosen.count), Path(folder))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    print(f"{chosen.count} mutated files of {len(MORE)} algorithms; memory grew by {more:.0f} MiB at most")  # noqa: T201
    for name, count in outcomes.most_common():
        print(f"  {name:26} {count}")  # noqa: T201


if __name__ == "__main__":
    main()

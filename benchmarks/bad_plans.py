"""
Bad plans by the thousand: each must give a PlanError with a line number, and nothing else.

Run ``python -m benchmarks.bad_plans --count 10000 --seed 0``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import save_file

from lora_mixer.batches import check_plan, parse_plan
from lora_mixer.errors import PlanError
from lora_mixer.pictures import load_outline

if TYPE_CHECKING:
    from collections.abc import Callable

Plan = dict[str, Any]
BAD_MIXES: tuple[Any, ...] = (
    *(
        "a:",
        "a:nan",
        "a:1,a:2",
        "a:0.5,lbw=1,2",
        "a:1 | magic(3)",
        "a:1,schedule=window(0.8,0.2)",
        "[1",
        "{",
        ":",
        "nobody:1",
    ),
    *(
        {"a": None},
        {"a": True},
        {"a": {"unet": "x"}},
        {"a": []},
        {"": 1},
        {"a": float("inf")},
        {"nobody": 1},
        7,
        True,
        [["a"]],
    ),
    *(
        {"a": {"weight": "x"}},
        {"a": {"nowhere": 1}},
        {"a": {"blocks": "NOPE"}},
        {"a": {"blocks": {"down": [1, 2, 3, 4, 5, 6]}}},
    ),
)
BAD_FIELDS: dict[str, tuple[Any, ...]] = {
    "seed": (-1, 2**63, 1.5, "one", True, [], {}),
    "steps": (0, -3, 10**9, "many", 2.5, False, [1]),
    "guidance_scale": ("x", float("nan"), float("inf"), [], True),
    "width": (7, 12, 10**6, "wide", 64.0),
    "height": (0, 20, -8, {}),
    "size": ("64", "64x", "ax64", "9999999x64", 64, "7x7"),
    "prompt": (7, [], {}, True, "a __nothing__", "<lora:nobody:1>", "<lora:a:x>", "<lora:a:1> <lora:a:2>"),
    "negative_prompt": (1, ["x"], "__nothing__"),
    "repeat": (0, -1, 10**7, "twice", 1.5),
    "name": ("", 5, "x" * 200),
    "sheet": ("maybe", 2, []),
    "grid": (
        *(
            {"seed": []},
            {"seed": "5..1"},
            {"seed": "a..b"},
            {"seed": ["x"]},
            {"nothing": [1]},
            {"weight nobody": [1]},
        ),
        *(
            {"weight a": ["x"]},
            {"weight": [1]},
            {"mix": ["a:nan"]},
            {"mix": [{"b": {"x": {}}}]},
            {"__none__": "all"},
            {"prompt": [1]},
        ),
        *(
            {"steps": [0]},
            {"size": ["1"]},
            [],
            "x",
            {"seed": 3},
            {"blocks a": [{}, 5]},
            {"seed": "0..99999999"},
        ),
    ),
    "zip": ({"seed": [1, 2], "steps": [1]}, {"seed": "1..3", "steps": "1..2"}, {"seed": None}, 3),
    "typo": (1, "x"),
}
BAD_TOPS: dict[str, tuple[Any, ...]] = {
    "model": ("", 5, "/nowhere/at/all", [], "no\0thing"),
    "adapters": ({"a": ""}, {"a": 5}, {"a": "missing.safetensors"}, {"a": "garbage.safetensors"}, {"a": "wrong.safetensors"},
                 {"a": {"source": "a.safetensors", "rank": 3}}, {"a": {"source": "demo:nobody"}}, {"\n": "a.safetensors"}, [], "a",
                 {"a": "nowhere://x"}, {"a": {"source": "a.safetensors", "component": "nowhere"}}, {"a": "."}),
    "adapter_folders": (["/nowhere/at/all"], "x", [5]),
    "wildcards": ({"w": "missing.txt"}, {"w": []}, {"w": 5}, {"w w": ["x"]}, [], {"w": [1]}),
    "defaults": ({"steps": 0}, {"mix": "a:nan"}, {"size": "x"}, {"typo": 1}, 5, {"seed": "1..3"}),
    "output": ({"name": "{nothing}"}, {"name": "same"}, {"name": "../{index}"}, {"name": "/{index}"}, {"name": "{index"}, {"name": ""},
               {"name": "{index.__class__}"}, {"name": "{index:999999}"}, {"format": "bmp"}, {"quality": 0}, {"folder": ""}, {"typo": 1},
               {"manifest": "x.txt"}, {"name": "{index!r}"}, {"name": "{0}"}, {"name": ".{index}"}, {"name": "a\0{index}"}),
    "run": ({"threads": 0}, {"batch_size": 0}, {"batch_size": "big"}, {"dtype": "int8"}, {"retries": -1}, {"cache_gb": 0}, {"typo": 1},
            {"cache_adapters": "x"}, {"strict": "yes"}, {"mixed_batches": True}),
    "jobs": ([], {}, None, "x", [5], [None], [[]], [{}]),
    "typo": (1, {}),
}  # fmt: skip


def make_files(folder: Path) -> None:
    """Write the files that plans name: two that fit the demo, one that does not, one that is none."""
    pair = {
        "unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(64, 1, 1, 1),
    }
    for name in "ab":
        save_file(pair, folder / f"{name}.safetensors")
    save_file({"unet.conv_in.lora_A.weight": torch.ones(1, 9), "unet.conv_in.lora_B.weight": torch.ones(3, 1)},
              folder / "wrong.safetensors")  # fmt: skip
    (folder / "garbage.safetensors").write_bytes(b"no adapter" * 99)


def good_plan(rng: random.Random) -> Plan:
    """Make a plan that is right."""
    jobs: list[Plan] = []
    for _ in range(rng.randint(1, 4)):
        job: Plan = {"prompt": rng.choice(("a cat", "an __w__", "a castle <lora:b:0.5>", "ä, 'x': \"y\" #z"))}
        for key, values in (
            ("seed", (0, 7, 2**40)), ("steps", (1, 20)), ("guidance_scale", (1, 3.5)), ("mix", ("a:0.5", {"a": 1}, "a:1,te=0")),
            ("repeat", (1, 3)), ("size", ("64x64",)), ("grid", ({"seed": [1, 2]}, {"weight a": [0, 1], "steps": "1..3"})),
        ):  # fmt: skip
            if rng.random() < 0.4:
                job[key] = rng.choice(values)
        jobs.append(job)
    return {
        "model": "demo",
        "adapters": {"a": "a.safetensors", "b": {"source": "b.safetensors"}},
        "wildcards": {"w": ["owl", "ox"]},
        "jobs": jobs,
    }


def _text(plan: Plan, kind: str, rng: random.Random) -> str:
    if kind == "yaml":
        return str(
            yaml.safe_dump(
                plan, sort_keys=False, allow_unicode=True, default_flow_style=rng.choice((None, False))
            )
        )
    if kind == "json":
        return json.dumps(plan, indent=rng.choice((None, 1, "\t")))
    head = {key: value for key, value in plan.items() if key != "jobs"}
    jobs = plan.get("jobs") or []
    if kind == "jsonl":
        return "\n".join(json.dumps(row) for row in ({"plan": head}, *jobs)) + "\n"
    out = io.StringIO()
    columns = list(dict.fromkeys(key for job in jobs for key in job))
    rows = csv.DictWriter(out, columns)
    rows.writeheader()
    rows.writerows(jobs)
    comment = "".join(
        f"# {line}\n" for line in yaml.safe_dump(head, sort_keys=False, allow_unicode=True).splitlines()
    )
    return comment + out.getvalue()


def _bad_field(plan: Plan, rng: random.Random) -> str:
    key = rng.choice((*BAD_FIELDS, "mix"))
    job = rng.choice(plan["jobs"])
    job[key] = rng.choice(BAD_MIXES if key == "mix" else BAD_FIELDS[key])
    if key in ("prompt", "negative_prompt", "mix", "seed", "steps", "size"):
        job.pop("grid", None)  # which could put something right in its place
    if key == "size":
        job.pop("width", None)
    return key


def _bad_top(plan: Plan, rng: random.Random) -> str:
    key = rng.choice(tuple(BAD_TOPS))
    plan[key] = rng.choice(BAD_TOPS[key])
    if key == "output" and plan[key].get("name") == "same":
        plan["jobs"][0]["repeat"] = 3
    if key in ("adapters", "wildcards"):  # what is right beside it stays
        plan["jobs"].append({"prompt": "an __w__", "mix": "a:1"})
    return key


def _bad_text(text: str, kind: str, rng: random.Random) -> bytes:
    raw = text.encode()
    spot = rng.randrange(len(raw))
    choices: list[Callable[[], bytes]] = [
        lambda: raw[:spot] + b"\xff\xfe" + raw[spot:],
        lambda: raw[:spot] + b"\0" + raw[spot:],
        lambda: b"",
        lambda: b"\n\n",
    ]
    if kind == "yaml":
        choices += [
            lambda: b"? [\n" + raw, lambda: raw + b"\n  x: [1, {\n", lambda: raw + b"\njobs: []\n", lambda: b"x: *nothing\n" + raw,
            lambda: b"x: !!python/object/apply:os.system [ls]\n" + raw, lambda: b"\t- a\n" + raw, lambda: b"[" * 3000,
            lambda: b"a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\njobs: [*c]\n", lambda: raw + b"\n... x\n", lambda: b"just text\n",
        ]  # fmt: skip
    elif kind == "json":
        choices += [
            lambda: raw[: max(1, len(raw) - rng.randint(1, 20))], lambda: raw.replace(b":", b"", 1), lambda: b"[" * 3000,
            lambda: b'{"jobs": 1, ' + raw[1:], lambda: raw + b"}", lambda: b'{"jobs": [{"prompt": "a", "guidance_scale": NaN}]}',
        ]  # fmt: skip
    elif kind == "jsonl":
        choices += [
            lambda: raw + b"{\n",
            lambda: raw + b"[]\n",
            lambda: raw + b'{"plan": {}}\n',
            lambda: raw + b'{"prompt": "a", "prompt": "b"}\n',
        ]
    else:
        choices += [lambda: raw + b"a,b,c,d,e,f,g,h,i,j,k,l\n", lambda: raw + b'"open\n', lambda: b"# [\n" + raw, lambda: b"prompt,prompt\na,b\n",
                    lambda: raw + b'"a"b,c\n', lambda: b"prompt,\na,b\n"]  # fmt: skip
    return rng.choice(choices)()


def bad_plan(seed: int) -> tuple[bytes, str, str]:
    """
    Make one bad plan.

    Args:
        seed: Which one.

    Returns:
        Its bytes, its kind, and what is wrong with it.
    """
    rng = random.Random(seed)  # noqa: S311 -- plans, not secrets
    kind = rng.choice(("yaml", "yaml", "json", "jsonl", "csv"))
    plan = good_plan(rng)
    if kind == "csv":  # cells are texts and numbers
        for job in plan["jobs"]:
            job.pop("grid", None)
            if not isinstance(job.get("mix", ""), str):
                del job["mix"]
    way = rng.random()
    if way < 0.25:
        return _bad_text(_text(plan, kind, rng), kind, rng), kind, "text"
    if kind == "csv":
        rng.choice(plan["jobs"])[rng.choice(("seed", "steps", "repeat"))] = rng.choice(
            ("x", -4, "1.5", "[1]")
        )
        return _text(plan, kind, rng).encode(), kind, "cell"
    wrong = _bad_field(plan, rng) if way < 0.65 else _bad_top(plan, rng)
    if kind == "jsonl" and not isinstance(plan["jobs"], list):
        kind = "json"
    return _text(plan, kind, rng).encode(), kind, wrong


def verdict(raw: bytes, kind: str, folder: Path, outline: Any) -> str:
    """Say what became of a plan: ``line`` is right."""
    try:
        plan = parse_plan(raw, kind, folder=folder)
        check_plan(plan, outline=outline if plan.model == "demo" else None)
    except PlanError as error:
        return (
            "line"
            if error.problems and all(problem.line is not None for problem in error.problems)
            else "no line"
        )
    except Exception as error:  # noqa: BLE001 -- exactly what must not be
        return f"traceback: {type(error).__name__}: {error}"
    return "accepted"


def main() -> None:
    """Read the command line, try all, and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outline = load_outline("demo")
    found: Counter[str] = Counter()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name))
        for seed in range(options.seed, options.seed + options.count):
            raw, kind, wrong = bad_plan(seed)
            result = verdict(raw, kind, Path(name), outline)
            found[result.partition(":")[0]] += 1
            if result != "line":
                print(f"seed {seed}, {kind}, {wrong}: {result[:300]}")
    print(f"{options.count} bad plans in {time.perf_counter() - start:.1f} s: {dict(found)}")


if __name__ == "__main__":
    main()

"""Mutated leaves of every algorithm: only the package's own errors come out, and the model is as it was."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from lora_mixer import CorruptFileError, LoraMixer, LoraMixerError
from lora_mixer.sources import AdapterSource
from tests.layers import randn
from tests.test_algorithms_mixing import LEAVES, copy, model, same

CONFIGS = {
    "adalora": {"peft_type": "ADALORA", "lora_alpha": 8},
    "hra": {"peft_type": "HRA"},
    "ia3 peft": {"peft_type": "IA3", "feedforward_modules": []},
    "oft peft": {"peft_type": "OFT", "use_cayley_neumann": True},
}
MORE = {
    **LEAVES,
    "loha cores": {f"hada_{n}": randn(2, 8) for n in ("w1_a", "w1_b", "w2_a", "w2_b")}
    | {"hada_t1": randn(2, 2, 1, 1), "hada_t2": randn(2, 2, 1, 1)},
    "lokr core": {
        "lokr_w1": randn(2, 4),
        "lokr_w2_a": randn(2, 4),
        "lokr_w2_b": randn(2, 2),
        "lokr_t2": randn(2, 2, 1),
    },
    "sparse": {
        "bias_indices": torch.tensor([[0, 1], [2, 3]]),
        "bias_values": randn(2),
        "bias_size": torch.tensor([8, 8]),
    },
    "norm": {"w_norm": randn(8), "b_norm": randn(8)},
    "hira": {"hira_A": randn(2, 8), "hira_B": randn(8, 2)},
    "c3a": {"c3a_kernel": randn(2, 2, 4)},
    "gralora": {
        "gralora_A": randn(2, 4, 4),
        "gralora_B": randn(2, 4, 4),
        "gralora_A_general.weight": randn(2, 8),
        "gralora_B_general.weight": randn(8, 2),
    },
    "miss": {"miss_block": randn(2, 8)},
    "delora": {
        "delora_A": randn(2, 8),
        "delora_B": randn(8, 2),
        "delora_lambda": randn(1),
        "delora_w_norm": randn(8),
    },
}
CASES = Path(__file__).parent / "fuzz_cases"
ROUNDS = 60
OPTIONS = [None, -1, 0, 1e308, float("nan"), "x", "(", [], {}, {"net": "x"}, [True, False], 10**30]
NAMES = [
    "r",
    "lora_alpha",
    "rank_pattern",
    "feedforward_modules",
    "num_cayley_neumann_terms",
    "peft_type",
    "eps",
    "coft",
]


def mutated(leaves, dice):
    """Change one to three things: a shape, a value, a dtype, a missing or an added leaf."""
    table = {name: torch.as_tensor(value).clone() for name, value in leaves.items()}
    for _ in range(dice.randint(1, 3)):
        name = dice.choice(list(table) or ["lora_E"])
        tensor = table.get(name, torch.ones(1))
        kind = dice.randrange(8)
        if kind == 0:
            table.pop(name, None)
        elif kind == 1:
            table[name] = torch.randn([dice.choice((1, 2, 3, 4, 8)) for _ in range(dice.randint(0, 4))])
        elif kind == 2:
            table[name] = tensor.to(dice.choice((torch.float16, torch.bfloat16, torch.int64, torch.bool)))
        elif kind == 3:
            table[name] = tensor * dice.choice((0.0, 1e30, -1e30, float("inf"), float("nan")))
        elif kind == 4:
            table[name] = tensor.unsqueeze(-1)
        elif kind == 5:
            table[name] = tensor.flatten()[: dice.randint(0, 3)]
        elif kind == 6:
            other = MORE[dice.choice(list(MORE))]
            table.update({key: torch.as_tensor(value).clone() for key, value in other.items()})
        else:
            table["alpha"] = torch.tensor(dice.choice((0.0, -1.0, 1e30, float("nan"))))
    return table


@pytest.mark.parametrize("name", MORE)
def test_mutations_end_in_an_adapter_or_in_an_error_of_the_package(name):
    dice = random.Random(name)
    module = model()
    base = copy(module)
    for _ in range(ROUNDS):
        config = CONFIGS.get(name)
        if config is not None and dice.random() < 0.5:
            config = {**config, dice.choice(NAMES): dice.choice(OPTIONS)}
        prefix = "base_model.model.net" if config is not None else "net"
        table = {f"{prefix}.{leaf}": tensor for leaf, tensor in mutated(MORE[name], dice).items()}
        mixer = LoraMixer(module)
        try:
            load(mixer, AdapterSource(weights=table, label="mutated", config=config))
            mixer.set_adapters("a", -0.5)
        except LoraMixerError:
            pass
        mixer.unload_lora_weights()
        assert same(module, base)


def load(mixer, source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_mixer.mixer.resolve_source", lambda *_, **__: source)
        mixer.load_lora_weights("x", "a")


def test_mutated_files_end_in_an_adapter_or_in_an_error_of_the_package(tmp_path):
    """As ``python -m tests.fuzz`` does, on some files; the first terabyte that is claimed costs nothing."""
    from tests.fuzz import run  # it takes this file's mutations

    outcomes = run(range(400), tmp_path)

    assert sum(count for name, count in outcomes.items() if name.startswith("(")) == 400
    assert outcomes["loaded"] > 10
    assert outcomes["CorruptFileError"] > 100
    assert outcomes["InvalidAdapterError"] > 20
    assert outcomes["twins loaded"] > 40  # files of a kind that is known


def test_what_the_fuzzer_once_found_stays_mended(tmp_path):
    from tests.fuzz import replay

    for case in sorted(CASES.iterdir()) if CASES.is_dir() else ():
        assert replay(Path(shutil.copytree(case, tmp_path / case.name))).total(), (
            case.name
        )  # it saves beside the file


def test_a_failure_is_kept_as_a_case_that_fails_again_until_it_is_mended(tmp_path, monkeypatch):
    from tests import fuzz

    def foreign(*_, **__):
        raise ZeroDivisionError("not ours")

    folder, keep = tmp_path / "work", tmp_path / "cases"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(fuzz, "read_adapter", foreign)
        outcomes = fuzz.run(range(3), folder, keep=keep)
        assert outcomes["FAILED"] == 3
        case = next(place for place in sorted(keep.iterdir()) if list(place.glob("adapter_model.*")))
        assert "ZeroDivisionError: not ours" in json.loads((case / "case.json").read_text())["what"]
        with pytest.raises(ZeroDivisionError):
            fuzz.replay(case)
    assert fuzz.replay(case).total()


def test_a_header_that_claims_a_terabyte_allocates_nothing(tmp_path):
    size = 1 << 40
    header = json.dumps(
        {"net.lora_down.weight": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, size]}}
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 64)
    mixer = LoraMixer(model())
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was asked for"))
        with pytest.raises(CorruptFileError, match="truncated"):
            mixer.load_lora_weights(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1 << 20

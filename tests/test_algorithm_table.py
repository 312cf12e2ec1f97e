"""What the rows of ``algorithms/table.py`` say of keys holds wherever keys are looked at."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import UnsupportedAdapterError, read_adapter
from lora_mixer.algorithms.peft_starts import PEFT_STARTS
from lora_mixer.algorithms.table import ALGORITHMS
from lora_mixer.formats.leaves import split_key
from lora_mixer.formats.reader import read_source
from lora_mixer.fresh.starts import STARTS
from lora_mixer.pictures import read_checkpoint
from lora_mixer.sources import resolve_source
from tests.leaf_examples import examples


def keys_of(pattern):
    """Return a key for each of a leaf's spellings."""
    return ["unet.one" + (end if end[0] in "._" else f".{end}") for end in examples(pattern)]


LEAVES = [(name, pattern) for name, kind in ALGORITHMS.items() for pattern, _ in kind.leaves]
PREFIXES = sorted({prefix for kind in ALGORITHMS.values() for prefix in kind.prefixes})


def test_examples_are_of_their_rows():
    keys = {(name, key) for name, pattern in LEAVES for key in keys_of(pattern)}

    odd = {(name, key) for name, key in keys if split_key(key)[1].algorithm != name}
    assert (len(keys) > 90, odd) == (True, set())


@pytest.mark.parametrize(
    "half", ["lora_A", "lora_B", "lora_A.default", "lora_A.weight", "lora.down", "lora_up"]
)
def test_an_alpha_of_a_half_is_that_of_its_pair(half):
    pair = {"one.lora_A.weight": torch.ones(2, 6), "one.lora_B.weight": torch.ones(6, 2)}

    assert read_adapter({**pair, f"one.{half}.alpha": torch.tensor(4.0)}).alphas == (4.0,)


@pytest.mark.parametrize(("name", "pattern"), LEAVES)
def test_a_file_that_holds_a_part_of_any_algorithm_is_no_model(name, pattern, tmp_path):
    for number, key in enumerate(keys_of(pattern)):
        path = tmp_path / f"{number}.safetensors"
        save_file({key: torch.ones(2, 2)}, path)

        # what any algorithm may have, an alpha or a scale, models have too
        assert read_checkpoint(path).kind == ("adapter" if name else "unknown"), key


def peft_folder(folder, tensors, **config):
    folder.mkdir()
    save_file(
        {f"base_model.model.{key}": value for key, value in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_part_that_no_row_has_is_no_module_of_a_model(prefix, tmp_path):
    pair = {"one.lora_A.weight": torch.ones(2, 6), "one.lora_B.weight": torch.ones(6, 2)}
    folder = peft_folder(
        tmp_path / "a", {**pair, f"one.{prefix}unheard.weight": torch.ones(6)}, peft_type="LORA", r=2
    )

    with pytest.raises(UnsupportedAdapterError, match=f"{prefix}unheard"):
        read_adapter(folder)


def test_every_name_that_peft_gives_to_what_it_trains_begins_as_a_row_says():
    ends = [
        end for kind in ALGORITHMS.values() if kind.peft_types
        for pattern, _ in kind.leaves if "<name>" in pattern
        for end in examples(pattern)
    ]  # fmt: skip
    last = [end.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2] for end in ends]

    assert len(last) > 40
    # whole modules are no part of one, and AdaLoRA's count is beside a pair
    assert {name for name in last if not name.startswith(tuple(PREFIXES))} == {"modules_to_save", "ranknum"}


@pytest.mark.parametrize(
    "kind", ["hra", "c3a", "delora", "miss", "gralora", "hira", "fourierft", "boft_peft", "lora"]
)
def test_a_changed_module_is_no_saved_one(kind, tmp_path):
    parts = {
        "hra": {"hra_u": torch.ones(6, 2)},
        "c3a": {"c3a_kernel": torch.ones(2, 2, 3)},
        "delora": {
            "delora_A": torch.ones(2, 6), "delora_B": torch.ones(6, 2),
            "delora_lambda": torch.ones(1), "delora_w_norm": torch.ones(6),
        },
        "miss": {"miss_block": torch.ones(2, 6)},
        "gralora": {"gralora_A": torch.ones(2, 3, 2), "gralora_B": torch.ones(2, 2, 3)},
        "hira": {"hira_A": torch.ones(2, 6), "hira_B": torch.ones(6, 2)},
        "fourierft": {"fourierft_spectrum": torch.ones(4)},
        "boft_peft": {"boft_R": torch.zeros(1, 3, 2, 2), "boft_s": torch.ones(6, 1)},
        "lora": {"lora_A.weight": torch.ones(2, 6), "lora_B.weight": torch.ones(6, 2)},
    }  # fmt: skip
    (peft_type, *_) = ALGORITHMS[kind].peft_types
    folder = peft_folder(
        tmp_path / "a", {f"head.{key}": value for key, value in parts[kind].items()},
        peft_type=peft_type, r=2, modules_to_save=["head"], n_frequency=4, gralora_k=2, boft_block_size=2,
    )  # fmt: skip
    notes = [str(note) for note in read_source(resolve_source(folder)).notes]

    assert any("modules_to_save head, and the file holds nothing of it" in note for note in notes), notes


@pytest.mark.parametrize("start", PEFT_STARTS)
def test_every_start_of_pairs_is_read_or_refused_by_its_row(start, tmp_path):
    pair = {"one.lora_A.weight": torch.ones(2, 6), "one.lora_B.weight": torch.ones(6, 2)}
    row = PEFT_STARTS[start]
    name = f"{start}_4" if row.counted else start
    config = {"peft_type": "LORA", "r": 2, "init_lora_weights": name}
    folder = peft_folder(tmp_path / "a", pair, **config)

    if row.refused:
        with pytest.raises(UnsupportedAdapterError, match=re.escape(row.refused)):
            read_adapter(folder)
    else:
        assert read_adapter(folder).algorithms == (("lora", start) if row.from_base else ("lora",))
    for number, field in enumerate(row.without):
        odd = peft_folder(tmp_path / f"{number}", pair, **config, **{field: True})
        with pytest.raises(UnsupportedAdapterError, match=f"{start} together with {field}"):
            read_adapter(odd)


def test_pairs_start_anew_by_the_names_that_files_have():
    names = {name for name in STARTS if isinstance(name, str)}

    assert names <= {name for name, row in PEFT_STARTS.items() if not row.refused}
    assert {name for name in names if STARTS[name].from_base} == {"pissa", "olora"}

"""Descriptions from the header alone say what the full reading says, of every file there is."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import save

from lora_mixer import LoraMixerError, read_adapter
from lora_mixer.formats import read_source
from lora_mixer.formats.describing import survey
from lora_mixer.formats.header import read_header
from lora_mixer.sources import adapter_files, resolve_source


def both(source):
    """What the quick and the full reading make of a source: a description, or an error."""

    def outcome(job):
        try:
            found = job().to_dict()
        except LoraMixerError as error:
            return type(error), str(error)
        found["metadata"] = dict(found["metadata"])
        return found

    return outcome(lambda: read_adapter(source)), outcome(lambda: read_source(resolve_source(source)).info)


def test_every_shared_file_is_described_alike(shared_data):
    files = [*adapter_files(shared_data / "files"), *adapter_files(shared_data / "generated")]
    assert len(files) > 80
    for path in files:
        quick, full = both(path)
        assert quick == full, path


def pairs(count=4, dtype=torch.float16):
    table = {}
    for number in range(count):
        name = f"lora_unet_down_blocks_{number}_attentions_0_transformer_blocks_0_attn2_to_k"
        table[f"{name}.lora_down.weight"] = torch.ones(2 + number, 768, dtype=dtype)
        table[f"{name}.lora_up.weight"] = torch.ones(320, 2 + number, dtype=dtype)
        table[f"{name}.alpha"] = torch.tensor(1.5 + number, dtype=dtype)
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_alphas_are_read_in_every_type(dtype):
    info = read_adapter(save(pairs(dtype=dtype)))

    assert info.alphas == (1.5, 2.5, 3.5, 4.5)
    assert info.ranks == (2, 3, 4, 5)
    assert info.base == "SD 1.x"


def test_plain_files_are_not_built():
    """The quick way is taken for them, or its speed is nobody's."""
    import io

    raw = save(pairs())
    header = read_header(io.BytesIO(raw), "x")

    found = survey(header, raw, {})

    assert found is not None
    assert found.modules.ranks == {2, 3, 4, 5}
    assert (
        survey(read_header(io.BytesIO(save({**pairs(), "x.hada_w1_a": torch.ones(1)})), "x"), raw, {}) is None
    )


def test_mutated_files_are_described_or_refused_alike():
    dice = random.Random(0)
    outcomes = set()
    for _ in range(300):
        table = pairs(2)
        for _ in range(dice.randint(1, 2)):
            mutate(table, dice)
        metadata = (
            {"lora_adapter_metadata": json.dumps(dice.choice(HEADERS))} if dice.random() < 0.3 else None
        )
        quick, full = both(save(table, metadata))
        assert quick == full
        outcomes.add(type(quick))
    assert outcomes == {dict, tuple}


HEADERS = [{"unet.r": 4, "unet.lora_alpha": 7}, {"unet.lora_alpha": "x"}, {"r": 1, "lora_alpha": 3}, []]
ODD_KEYS = [
    *("<s1>", "image_proj.x", "x.hada_w1_a", "unet:0:up", "a.lora_A.default.weight", "x.scale", "emb_params"),
    *("lora_unet_conv_in.lora_down.weight", "x" * 300 + ".lora_up.weight", "a.lora_up.bias", "what"),
]


def mutate(table, dice):
    key = dice.choice(list(table))
    kind = dice.randrange(6)
    if kind == 0:
        del table[key]
    elif kind == 1:
        table[key] = torch.ones([dice.choice((0, 1, 2, 768)) for _ in range(dice.randint(0, 4))])
    elif kind == 2:
        table[key] = table[key].to(dice.choice((torch.int64, torch.bool, torch.float8_e4m3fn, torch.float64)))
    elif kind == 3:
        table[key] = table[key] * dice.choice((0.0, float("nan"), float("inf")))
    elif kind == 4:
        table[dice.choice(ODD_KEYS)] = torch.ones(dice.choice(((1,), (2, 768), (320, 2))))
    else:
        table[key.replace("lora_down", "lora_A").replace("lora_up", "lora_B")] = table.pop(key)

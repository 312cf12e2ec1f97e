"""Models that PEFT has wrapped, and configurations that ask for what is not known."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from lora_mixer import LoraMixer, read_adapter
from lora_mixer.algorithms import table
from lora_mixer.errors import UnsupportedAdapterError
from lora_mixer.formats import peft_config
from tests.small_language_models import distance, reference, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["llama/lora", "opt/lora_modules_to_save_head", "bert/lora_seq_cls"])
def test_a_wrapped_model_takes_adapters_by_the_paths_of_the_model_inside(
    name: str, shared_data: Path
) -> None:
    wanted = reference(shared_data, name)
    inputs = wanted.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses words of transformers that go
        config = peft.LoraConfig(
            target_modules=["v_proj", "value"], init_lora_weights=True
        )  # adds nothing yet
        wrapped: Any = peft.get_peft_model(wanted.model(), config).eval()
    values = {key: tensor.clone() for key, tensor in wrapped.state_dict().items()}
    mixer = LoraMixer(wrapped)

    report = mixer.load_lora_weights(wanted.adapters["x"])

    assert report.complete
    found = run(wrapped, inputs, generate=False)
    assert distance(found["logits"], wanted.tensors["out@1.0/logits"]) < 1e-5
    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, values[key]) for key, tensor in wrapped.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "randomised SVD"),
        ({"init_lora_weights": "corda"}, "CorDA"),
        ({"init_lora_weights": "loftq"}, "LoftQ"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        ({"init_lora_weights": "tomorrow"}, "'tomorrow', which this version does not know"),
        ({"kasa_config": {"beta": 1}, "use_dora": True}, "KaSA together with use_dora"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "pissa together with use_dora"),
        ({"turn_by": 0.5, "also": "x"}, "the field also = x, .*the field turn_by = 0.5, which"),
    ],
)
def test_what_a_configuration_asks_for_and_is_not_known_is_refused_by_name(
    fields: dict[str, Any], words: str, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "transformers" / "adapters" / "llama" / "lora"
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    (tmp_path / "adapter_model.safetensors").write_bytes((source / "adapter_model.safetensors").read_bytes())
    assert load_file(tmp_path / "adapter_model.safetensors")

    with pytest.raises(UnsupportedAdapterError, match=words):
        read_adapter(tmp_path)

    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "turn_by": None, "also": False}))
    assert read_adapter(tmp_path).algorithms == ("lora",)


@pytest.mark.parametrize("kind", sorted(peft.PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_field_of_the_kinds_that_are_read_is_known(kind: Any) -> None:
    name = str(getattr(kind, "value", kind))
    if name not in table.peft_types():
        pytest.skip(f"{name} is refused by name")
    fields = {field.name for field in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind])}

    assert fields <= peft_config._KNOWN | table.peft_fields() | peft_config._REFUSED.keys()

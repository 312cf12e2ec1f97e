"""
Adapters of PEFT on Transformers models against what PEFT makes of them: ``../shared/data/transformers``.

Outputs are held at 1e-5 and generated tokens at equality, at every weight and mix given; afterwards the base is what it
was, bit for bit and object for object.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lora_mixer import LoraMixer
from lora_mixer.errors import UnsupportedAdapterError
from tests.small_language_models import distance, reference, run

if TYPE_CHECKING:
    from tests.small_language_models import Reference

_DATA = Path(os.environ.get("LORA_MIXER_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
_GOLDEN = _DATA / "transformers" / "golden"
NAMES = sorted(str(path.relative_to(_GOLDEN).with_suffix("")) for path in _GOLDEN.glob("*/*.json"))
REFUSED = {
    "llama/lora_alora": "activated LoRA",
    "llama/lora_layer_replication": "replicated layers",
    "llama/prefix_tuning": "PREFIX_TUNING",
    "llama/randlora": "RANDLORA",
    "llama/road": "ROAD",
    "llama/vblora": "VBLORA",
    "llama/waveft": "WAVEFT",
}
"""What need not be applied, and the name that the refusal gives it."""


def test_all_references_are_there(shared_data: Path) -> None:
    assert (shared_data / "transformers").samefile(_GOLDEN.parent)
    assert len(NAMES) == 147


@pytest.mark.parametrize("name", NAMES or ["none"])
def test_outputs_tokens_and_base_are_those_of_peft(name: str, shared_data: Path) -> None:
    wanted = reference(shared_data, name)
    model, inputs = wanted.model(), wanted.inputs()
    values = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    objects = dict(model.named_parameters(remove_duplicate=False))
    before = run(model, inputs, generate=False)
    mixer = LoraMixer(model)

    if name in REFUSED:
        assert not wanted.facts["required"]
        with pytest.raises(UnsupportedAdapterError, match=REFUSED[name]):
            mixer.load_lora_weights(wanted.adapters["x"])
    else:
        _check(mixer, model, inputs, wanted)
        mixer.disable_lora()
        after = run(model, inputs, generate=False)
        assert all(torch.equal(after[key], before[key]) for key in before)
    mixer.unload_lora_weights()

    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(tensor, values[key]) for key, tensor in model.state_dict().items())
    now = dict(model.named_parameters(remove_duplicate=False))
    assert now.keys() == objects.keys()
    assert all(now[key] is objects[key] for key in objects)


def _check(mixer: LoraMixer, model: object, inputs: dict[str, torch.Tensor], wanted: Reference) -> None:
    for adapter, folder in wanted.adapters.items():
        mixer.load_lora_weights(folder, adapter_name=adapter)
    for check in wanted.facts["checks"]:
        tag = check["tag"]
        mixer.set_mix(check["weights"] if "weights" in check else check["rows"])
        found = run(model, inputs, generate=f"{tag}/tokens" in wanted.tensors)
        keys = [key for key in found if f"{tag}/{key}" in wanted.tensors]
        assert keys
        for key in keys:
            value = wanted.tensors[f"{tag}/{key}"]
            if key == "tokens":
                assert torch.equal(found[key], value), f"{tag}: {found[key]}"
            else:
                assert distance(found[key], value) < 1e-5, f"{tag}/{key}"

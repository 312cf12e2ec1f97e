"""A copy of one part of a pipeline is no second owner of the pipeline."""

from __future__ import annotations

import copy
import gc

import pytest

from lora_mixer import LoraMixer
from tests.small_pipe import pairs_for, small_pipe, written


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("kept", [True, False])
def test_the_next_mixer_takes_over_though_a_part_was_copied(part: str, kept: bool) -> None:
    pipe = small_pipe()
    base = {key: value.clone() for key, value in pipe.components[part].state_dict().items()}
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1)), "a")
    own = copy.deepcopy(pipe.components[part])
    held = [own] if kept else []
    del mixer, own
    gc.collect() if kept else None

    again = LoraMixer(pipe)
    assert again.get_active_adapters() == ["a"]
    again.unload_lora_weights()
    assert all(value.equal(base[key]) for key, value in pipe.components[part].state_dict().items())
    for each in held:  # the copy has the mix, and the way back of its own
        assert any(not value.equal(base[key]) for key, value in each.state_dict().items())
        LoraMixer(each).unload_lora_weights()
        assert all(value.equal(base[key]) for key, value in each.state_dict().items())

"""Bases put back again and again, where all that is left to do are the copies."""

from __future__ import annotations

import pytest
import torch

from lora_mixer.engines.merged.kept_weight import KeptWeight, Restoration


def mixed(layers, *, keep_on="device"):
    """Return what keeps the weights of layers, with something else in these than their base."""
    slots = [
        KeptWeight(f"unet.{number}.weight", layer, "weight", keep_on) for number, layer in enumerate(layers)
    ]
    for slot in slots:
        slot.stamp()
    mix(slots)
    return slots


def mix(slots):
    for slot in slots:
        slot.keep()
        slot.blended = True
        slot.live.add_(0.5)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return [torch.nn.Linear(3, 4), torch.nn.Linear(4, 3).half(), torch.nn.Conv2d(2, 3, 3)]


def test_bases_come_back_each_time_and_those_without_a_mix_stay_what_they_are(layers):
    bases = [layer.weight.clone() for layer in layers]
    slots = mixed(layers)
    restoration = Restoration(slots)
    restoration.restore()
    for turn in (slots, slots, slots[:1], slots[1:], [], slots, slots):
        mix(turn)
        others = [slot for slot in slots if slot not in turn]
        for slot in others:
            slot.live.fill_(7)  # somebody else's, and nobody's to take away
        restoration.restore()
        for slot, layer, base in zip(slots, layers, bases, strict=True):
            assert torch.equal(layer.weight, torch.full_like(base, 7) if slot in others else base)
            assert not slot.blended
        for slot, base in zip(slots, bases, strict=True):
            slot.live.copy_(base)


def test_another_base_kept_since_is_the_one_that_comes_back(layers):
    slots = mixed(layers)
    restoration = Restoration(slots)
    for _ in range(2):
        restoration.restore()
        mix(slots)
    new = torch.full_like(layers[0].weight, 3)
    slots[0].base = new.clone()

    restoration.restore()

    assert torch.equal(layers[0].weight, new)


@pytest.mark.parametrize("keep_on", ["none", "patch"])
def test_bases_that_are_not_to_be_kept_are_let_go_of_each_time(layers, keep_on):
    bases = [layer.weight.clone() for layer in layers]
    slots = mixed(layers, keep_on=keep_on)
    restoration = Restoration(slots)
    for _ in range(3):
        restoration.restore()
        assert all(torch.equal(layer.weight, base) for layer, base in zip(layers, bases, strict=True))
        assert not any(slot.has_base for slot in slots)
        mix(slots)


def test_weights_made_in_inference_mode_come_back_each_time():
    with torch.inference_mode():
        layers = [torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)]
    layers.append(torch.nn.Linear(3, 4))
    bases = [layer.weight.clone() for layer in layers]
    slots = [
        KeptWeight(f"unet.{number}.weight", layer, "weight", "device") for number, layer in enumerate(layers)
    ]
    restoration = Restoration(slots)
    for _ in range(3):
        for slot in slots:
            slot.stamp()
            slot.keep()
            slot.blended = True
            with torch.inference_mode(mode=slot.live.is_inference()), torch.no_grad():
                slot.live.add_(0.5)
        restoration.restore()
        assert all(torch.equal(layer.weight, base) for layer, base in zip(layers, bases, strict=True))


def test_a_weight_that_is_computed_from_others_since_gets_its_base_where_that_is(layers):
    slots = mixed(layers)
    restoration = Restoration(slots)
    base = slots[0].base.clone()
    torch.nn.utils.parametrizations.weight_norm(layers[0])
    torch.nn.utils.parametrize.remove_parametrizations(layers[0], "weight")
    restoration.restore()

    assert torch.equal(layers[0].weight, base)

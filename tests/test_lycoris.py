"""
LyCORIS as a peer: what it writes gives its own forward here, and what is written here loads there.

These fixtures need no data beside the checkout.
"""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mixer import LoraMixer
from tests.test_writing import sd_unet

lycoris = pytest.importorskip("lycoris")
pytestmark = pytest.mark.filterwarnings("ignore")


class Small(nn.Module):
    """A module of every kind that LyCORIS adapts."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.conv, self.point = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.last = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        x = self.last(torch.relu(self.norm(self.first(x))))
        return self.point(torch.relu(self.conv(x.reshape(-1, 4, 2, 2))))


CONV = {"use_tucker": True, "conv_dim": 2, "conv_alpha": 1}
CASES = {
    "locon": ({"algo": "locon"}, {"lora"}),
    "locon tucker": ({"algo": "locon", **CONV}, {"lora"}),
    "locon scalar": ({"algo": "locon", "use_scalar": True}, {"lora"}),
    "locon rank stabilised": ({"algo": "locon", "rs_lora": True}, {"lora"}),
    "dora by output": ({"algo": "locon", "dora_wd": True, "wd_on_output": True}, {"dora", "lora"}),
    "dora by input": ({"algo": "locon", "dora_wd": True, "wd_on_output": False}, {"dora", "lora"}),
    "loha": ({"algo": "loha"}, {"loha"}),
    "loha tucker": ({"algo": "loha", **CONV}, {"loha"}),
    "loha dora": ({"algo": "loha", "dora_wd": True}, {"dora", "loha"}),
    "lokr": ({"algo": "lokr", "factor": 4, "linear_dim": 1}, {"lokr"}),
    "lokr both": ({"algo": "lokr", "factor": 4, "linear_dim": 1, "decompose_both": True}, {"lokr"}),
    "lokr full": ({"algo": "lokr", "full_matrix": True}, {"lokr"}),
    "lokr tucker": ({"algo": "lokr", "factor": 2, **CONV, "conv_dim": 1}, {"lokr"}),
    "glora": ({"algo": "glora"}, {"glora"}),
    "ia3": ({"algo": "ia3"}, {"ia3"}),
    "diag-oft": ({"algo": "diag-oft"}, {"oft"}),
    "diag-oft rescaled": ({"algo": "diag-oft", "rescaled": True, "constraint": 0.01}, {"oft"}),
    "boft": ({"algo": "boft"}, {"boft"}),
    "full": ({"algo": "full"}, {"full"}),
    "norms beside": ({"algo": "locon", "train_norm": True}, {"lora", "norm"}),
}


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, logger="LyCORIS")


def adapted(module, multiplier=1.0, **options):
    """Let LyCORIS adapt a module, and train it a little at random."""
    kinds = ["Linear", "Conv2d", *(["LayerNorm"] if options.get("train_norm") else [])]
    lycoris.LycorisNetwork.apply_preset({"enable_conv": True, "target_module": kinds, "target_name": []})
    settings = {"linear_dim": 4, "linear_alpha": 2, **options}
    network = lycoris.create_lycoris(module, multiplier, **settings)
    network.apply_to()
    network.eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return network


def close(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("weight", [1.0, 0.6])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_it_writes_gives_its_own_forward(name, weight, tmp_path):
    options, algorithms = CASES[name]
    torch.manual_seed(0)
    theirs = Small().eval()
    ours, x = copy.deepcopy(theirs), torch.randn(3, 8)
    clean = ours(x)
    network = adapted(theirs, weight, **options)
    wanted = theirs(x)
    save_file(
        {key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "a.safetensors"
    )
    mixer = LoraMixer(ours)

    strength = "lycoris" if "dora" in algorithms else None
    report = mixer.load_lora_weights(tmp_path / "a.safetensors", "a", strict=True, dora_strength=strength)
    mixer.set_adapters("a", weight)

    assert report.matched == len(network.loras)
    assert set(mixer.adapters["a"].algorithms) == algorithms
    assert close(wanted, clean) > 1e-3
    assert close(ours(x), wanted) < 2e-6
    mixer.unload_lora_weights()
    assert torch.equal(ours(x), clean)


@torch.no_grad()
def run(unet):
    g = torch.Generator().manual_seed(3)
    sample, text = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 5, 8, generator=g)
    return unet(sample, torch.tensor([10]), text).sample


@pytest.mark.parametrize("algo", ["locon", "loha", "lokr", "dora"])
@torch.no_grad()
def test_what_is_written_here_loads_there_with_the_same_output(algo, tmp_path):
    """Its adapter, loaded here, written as a pair, loaded there again; all but LoCon by singular values."""
    torch.manual_seed(1)
    unet = sd_unet().eval()
    options = {"algo": "locon", "dora_wd": True} if algo == "dora" else {"algo": algo}
    network = adapted(copy.deepcopy(unet), 1.0, **options, linear_dim=2)
    mixer = LoraMixer(unet)
    mixer.load_lora_weights(dict(network.state_dict()), "a", strict=True)
    live = run(unet)
    rank = None if algo == "locon" else 16 * 9 * 8  # more than any layer has: nothing is cut

    mixer.save_lora_weights(tmp_path / "a.safetensors", weights={"a": 1.0}, format="kohya", rank=rank)
    mixer.unload_lora_weights()
    table = {
        k.replace("lora_unet_", "lycoris_", 1): v for k, v in load_file(tmp_path / "a.safetensors").items()
    }
    peer = sd_unet().eval()
    peer.load_state_dict(unet.state_dict())
    again, _ = lycoris.create_lycoris_from_weights(1.0, None, peer, table)
    again.apply_to()

    assert len(again.loras) == len(network.loras)
    assert close(run(peer), live) < 1e-5


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
@torch.no_grad()
def test_pairs_come_back_equal_in_every_format(form, tmp_path):
    """Read, written, read again: every tensor the same."""
    torch.manual_seed(1)
    unet = sd_unet().eval()
    network = adapted(copy.deepcopy(unet), 1.0, algo="locon", linear_dim=2)
    mixer = LoraMixer(unet)
    mixer.load_lora_weights(dict(network.state_dict()), "a", strict=True)

    def deltas():
        return {key: value.clone() for key, value in unet.state_dict().items()}

    first = deltas()
    target = tmp_path / ("folder" if form == "peft" else "a.safetensors")
    mixer.save_lora_weights(target, "a", format=form)
    mixer.load_lora_weights(target, "b", strict=True)
    mixer.set_adapters("b")
    second = deltas()
    mixer.save_lora_weights(tmp_path / "again.safetensors", "b", format="kohya")
    mixer.save_lora_weights(tmp_path / "first.safetensors", "a", format="kohya")

    one, two = load_file(tmp_path / "first.safetensors"), load_file(tmp_path / "again.safetensors")
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key].float(), two[key].float())] == []
    assert all(torch.equal(first[key], second[key]) for key in first)
    mixer.unload_lora_weights()

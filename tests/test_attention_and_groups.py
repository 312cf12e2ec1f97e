"""``nn.MultiheadAttention`` (open_clip's text encoders) and convolutions in groups: equal to PEFT, or refused with the reason."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, LoraMixerError, MatchError, PipelineStateError, SaveError

if TYPE_CHECKING:
    from pathlib import Path


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln(x)
        return x + self.fc(self.attn(y, y, y, need_weights=False)[0])


class Encoder(nn.Module):
    """As open_clip's: residual blocks around an attention with one matrix for queries, keys and values."""

    def __init__(self, width: int = 12, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


def assert_base(net: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def copy(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("targets", [["attn"], ["attn", "fc"]])
def test_pefts_adapter_of_an_attention_is_its_matrix_and_its_output(
    targets: list[str], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    peer = get_peft_model(
        Encoder(), LoraConfig(target_modules=targets, r=3, lora_alpha=2, init_lora_weights=False)
    ).eval()
    peer.save_pretrained(tmp_path)
    net, x = Encoder().eval(), torch.randn(2, 5, 12)
    before, base, mixer = copy(net), net(x), LoraMixer(net)

    report = mixer.load_lora_weights(tmp_path, adapter_name="a")

    assert report.complete
    assert torch.allclose(net(x), peer(x), atol=1e-5)
    assert not torch.allclose(net(x), base, atol=1e-2)
    mixer.unload_lora_weights()
    assert_base(net, before)


@pytest.mark.parametrize("front", ["resblocks.1.attn.", "lora_te_resblocks_1_attn_"])
def test_queries_keys_and_values_apart_are_rows_of_the_one_matrix(front: str) -> None:
    net = Encoder().eval()
    before, mixer, g = copy(net), LoraMixer(net), torch.Generator().manual_seed(1)
    if front.startswith("lora"):
        halves = {"in_proj_weight": (torch.randn(36, 2, generator=g), torch.randn(2, 12, generator=g))}
        halves["out_proj"] = (torch.randn(12, 2, generator=g), torch.randn(2, 12, generator=g))
    else:
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        halves = {n: (torch.randn(12, 2, generator=g), torch.randn(2, 12, generator=g)) for n in names}
    table: dict[str, Any] = {}
    for name, (up, down) in halves.items():
        table |= {f"{front}{name}.lora_up.weight": up, f"{front}{name}.lora_down.weight": down}

    mixer.load_lora_weights(table, adapter_name="a")
    mixer.set_adapters("a", -0.5)

    rows = [n for n in halves if n != "out_proj"]
    change = torch.cat([halves[n][0].double() @ halves[n][1].double() for n in rows])
    attn = net.resblocks[1].attn
    assert torch.allclose(
        attn.in_proj_weight.double(),
        before["resblocks.1.attn.in_proj_weight"].double() - 0.5 * change,
        atol=1e-6,
    )
    out = halves["out_proj"][0].double() @ halves["out_proj"][1].double()
    wanted = before["resblocks.1.attn.out_proj.weight"].double() - 0.5 * out
    assert torch.allclose(attn.out_proj.weight.double(), wanted, atol=1e-6)
    mixer.disable_lora()
    assert_base(net, before)


def test_an_adapter_of_an_attention_is_written_and_read_back(tmp_path: Path) -> None:
    net, g = Encoder(depth=1).eval(), torch.Generator().manual_seed(2)
    table = {
        "resblocks.0.attn.lora_A.weight": torch.randn(2, 12, generator=g),
        "resblocks.0.attn.lora_B.weight": torch.randn(36, 2, generator=g),
    }
    mixer = LoraMixer(net)
    mixer.load_lora_weights(table, adapter_name="a")
    wanted = net.resblocks[0].attn.in_proj_weight.clone()

    for form in ("diffusers", "peft"):
        mixer.save_lora_weights(tmp_path / form, "a", format=form)
    mixer.unload_lora_weights()

    for form in ("diffusers", "peft"):
        mixer.load_lora_weights(tmp_path / form, adapter_name="again")
        assert torch.allclose(net.resblocks[0].attn.in_proj_weight, wanted, atol=1e-6)
        mixer.unload_lora_weights()


def test_what_the_one_matrix_cannot_take_is_refused_by_name() -> None:
    net = Encoder(depth=1)
    before, mixer = copy(net), LoraMixer(net)
    pair = {
        "resblocks.0.attn.lora_A.weight": torch.ones(2, 12),
        "resblocks.0.attn.lora_B.weight": torch.ones(36, 2),
    }

    with pytest.raises(MatchError, match="bias, which stands apart"):
        mixer.load_lora_weights({**pair, "resblocks.0.attn.lora_B.bias": torch.ones(36)})
    with pytest.raises(MatchError, match=r"made for a weight \(12, 12\), the module has \(36, 12\)"):
        mixer.load_lora_weights({**pair, "resblocks.0.attn.lora_B.weight": torch.ones(12, 2)})
    assert_base(net, before)


class Grouped(nn.Module):
    """A convolution in groups between two layers that weights can hold."""

    def __init__(self, kind: Any, groups: int, **more: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        point = {nn.Conv1d: nn.Conv1d, nn.Conv2d: nn.Conv2d, nn.Conv3d: nn.Conv3d}[kind]
        self.first, self.conv = point(6, 8, 1), kind(8, 12, 3, groups=groups, **more)
        self.last = point(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.conv(self.first(x))))


def peft_folder(net: nn.Module, folder: Path, **config: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = get_peft_model(net, LoraConfig(init_lora_weights=False, **config)).eval()
        peer.save_pretrained(folder)
    return peer


SIZES = {nn.Conv1d: (9,), nn.Conv2d: (7, 5), nn.Conv3d: (4, 5, 3)}


@pytest.mark.parametrize("targets", [["conv"], ["first", "conv", "last"]])
@pytest.mark.parametrize(
    ("kind", "groups", "more"),
    [
        (nn.Conv2d, 2, {"bias": False}),
        (nn.Conv2d, 4, {"padding": 1, "stride": 2}),
        (nn.Conv1d, 4, {"padding": "same"}),
        (nn.Conv3d, 2, {"padding": (0, 1, 1)}),
    ],
)
def test_pefts_pair_over_groups_runs_beside_the_layer_in_every_mix(
    kind: Any, groups: int, more: dict[str, Any], targets: list[str], tmp_path: Path
) -> None:
    """Each output hears every input, which no weight of such a layer can hold; the others of the file are merged."""
    peer = peft_folder(Grouped(kind, groups, **more), tmp_path, target_modules=targets, r=4, lora_alpha=6)
    x = torch.randn(2, 6, *SIZES[kind])
    net = Grouped(kind, groups, **more)
    before, plain, mixer = copy(net), net(x), LoraMixer(net)

    report = mixer.load_lora_weights(tmp_path, "a")

    wanted = peer(x)
    assert (net(x) - wanted).norm() < 1e-6 * wanted.norm()
    assert report.matched == len(targets)
    assert "conv" in report.notes[-1]
    assert "beside" in report.notes[-1]
    assert torch.equal(net.conv.weight, before["conv.weight"])
    assert ("first" in targets) != torch.equal(net.first.weight, before["first.weight"])
    assert not mixer.is_in_parameters

    mixer.set_adapters("a", -0.5)
    for module in peer.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(-0.5)
    assert (net(x) - peer(x)).norm() < 1e-6 * peer(x).norm()
    with mixer.applied({}):
        assert torch.equal(net(x), plain)
    mixer.disable_lora()
    assert torch.equal(net(x), plain)
    mixer.enable_lora()
    mixer.unload_lora_weights()
    assert torch.equal(net(x), plain)
    assert not net.conv._forward_hooks
    assert_base(net, before)


def over_all_inputs(groups: int, *, rank: int = 3) -> dict[str, torch.Tensor]:
    """Write a pair as Kohya does: over all inputs, without groups."""
    gen = torch.Generator().manual_seed(groups)
    return {
        "conv.lora_down.weight": torch.randn(rank, 8, 3, 3, generator=gen),
        "conv.lora_up.weight": torch.randn(12, rank, 1, 1, generator=gen),
        "conv.alpha": torch.tensor(2.0),
    }


@pytest.mark.parametrize("groups", [2, 4])
def test_kohyas_pair_over_all_inputs_runs_beside_a_convolution_in_groups(groups: int) -> None:
    net, file = Grouped(nn.Conv2d, groups), over_all_inputs(groups)
    x = torch.randn(1, 6, 5, 5)
    mixer = LoraMixer(net)
    mixer.load_lora_weights(file, "k")
    mixer.set_adapters("k", 0.7)
    inner = net.first(x)
    conv = torch.nn.functional.conv2d
    pair = conv(conv(inner, file["conv.lora_down.weight"]), file["conv.lora_up.weight"])
    own = conv(inner, net.conv.weight, net.conv.bias, groups=groups)
    wanted = net.last(torch.tanh(own + 0.7 * 2 / 3 * pair))
    assert torch.allclose(net(x), wanted, atol=1e-6)


def test_such_a_pair_mixes_with_what_weights_of_the_layer_hold(tmp_path: Path) -> None:
    net = Grouped(nn.Conv2d, 4)
    x = torch.randn(1, 6, 5, 5)
    own = {"conv.lora_down.weight": torch.randn(2, 2, 3, 3), "conv.lora_up.weight": torch.randn(12, 2, 1, 1)}
    mixer = LoraMixer(net)
    mixer.load_lora_weights(own, "own")
    within = net.conv.weight.detach().clone()
    mixer.load_lora_weights(over_all_inputs(4), "over")
    over = net(x)
    with mixer.applied({"own": 1.0, "over": 0.5}):
        assert torch.equal(net.conv.weight, within)
        mixed = net(x)
    with mixer.applied({"over": 0.5}):
        half = net(x)
    assert not torch.allclose(mixed, half)
    assert not torch.allclose(half, over)
    with pytest.raises(SaveError, match=r"conv.*beside"):
        mixer.save_lora_weights(tmp_path / "x.safetensors", weights={"own": 1.0, "over": 0.5})
    with pytest.raises(PipelineStateError, match=r"conv.*no weight of a convolution in groups"):
        mixer.set_mix({"over": 1.0}, engine="merged")
    assert torch.equal(net(x), over)
    mixer.reserve(rank=8)
    assert torch.allclose(net(x), over, atol=1e-6)
    mixer.release()
    assert torch.equal(net(x), over)


def test_what_such_a_pair_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    net, file = Grouped(nn.Conv2d, 4), over_all_inputs(4)
    before, mixer = copy(net), LoraMixer(net)
    with pytest.raises(MatchError, match="can have no bias"):
        mixer.load_lora_weights({**file, "conv.lora_up.bias": torch.ones(12)})
    with pytest.raises(MatchError, match=r"of a pair over all inputs|made for a weight"):
        mixer.load_lora_weights({**file, "conv.dora_scale": torch.ones(12, 1, 1, 1)})
    circular = Grouped(nn.Conv2d, 4, padding=1, padding_mode="circular")
    with pytest.raises(PipelineStateError, match="cannot run beside them either"):
        LoraMixer(circular).load_lora_weights(file)
    with pytest.raises(LoraMixerError):
        mixer.load_lora_weights(file, "t", trainable=True)
    assert_base(net, before)
    peft_folder(Grouped(nn.Conv2d, 2), tmp_path, target_modules=["conv"], r=4)
    with pytest.raises(MatchError):  # of another number of groups
        LoraMixer(nn.ModuleDict({"conv": nn.Conv2d(4, 12, 3, groups=4)})).load_lora_weights(tmp_path)

"""``nn.MultiheadAttention`` (open_clip's text encoders) and convolutions in groups: equal to PEFT, or refused with the reason."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import FormatError, LoraMixer, MatchError

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


@pytest.mark.parametrize(("kind", "groups"), [(nn.Conv2d, 2), (nn.Conv1d, 4), (nn.Conv3d, 2)])
def test_pefts_pair_over_groups_is_refused_since_each_output_hears_every_input(
    kind: Any, groups: int, tmp_path: Path
) -> None:
    """What PEFT computes is not a change of such a layer's weight: silence in the own group's inputs still reaches outputs."""
    from peft import LoraConfig, get_peft_model

    net = nn.Sequential(kind(8, 12, 3, groups=groups, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = get_peft_model(net, LoraConfig(target_modules=["0"], r=4, init_lora_weights=False)).eval()
    peer.save_pretrained(tmp_path)
    axes = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    x = torch.randn(1, 8, *[4] * axes)
    x[:, : 8 // groups] = 0
    assert peer(x)[:, : 12 // groups].abs().max() > 1e-3
    mine = nn.Sequential(kind(8, 12, 3, groups=groups, bias=False))
    before, mixer = copy(mine), LoraMixer(mine)

    with pytest.raises(FormatError, match=f"works in {groups} groups .* no weight of such a layer can hold"):
        mixer.load_lora_weights(tmp_path)

    assert_base(mine, before)

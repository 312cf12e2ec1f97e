"""The second file of a kind: what names and shapes mean is worked out once, and what comes out is what a first load gives."""

from __future__ import annotations

import io
import json
import struct

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import nn

from lora_mixer import InvalidAdapterError, LoraMixer
from lora_mixer.binding import ModuleIndex
from lora_mixer.errors import CorruptFileError
from lora_mixer.formats import file_moulds, header, reader

FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


class Net(nn.Module):
    """A layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, 8)
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.LayerNorm(8)


PAIR = {"linear.lora_A.weight": (3, 12), "linear.lora_B.weight": (8, 3), "linear.alpha": ()}
KINDS = {
    "pairs": {
        **PAIR,
        "conv.lora_down.weight": (2, 4, 3, 3),
        "conv.lora_up.weight": (6, 2, 1, 1),
        "conv.alpha": (),
    },
    "a core": {
        "conv.lora_down.weight": (2, 4, 1, 1),
        "conv.lora_mid.weight": (2, 2, 3, 3),
        "conv.lora_up.weight": (6, 2, 1, 1),
    },
    "loha": {f"linear.hada_w{n}_{x}": size for n in "12" for x, size in (("a", (8, 2)), ("b", (2, 12)))},
    "lokr": {
        "linear.lokr_w1": (2, 3),
        "linear.lokr_w2_a": (4, 2),
        "linear.lokr_w2_b": (2, 4),
        "linear.alpha": (),
    },
    "dora": {**PAIR, "linear.dora_scale": (8, 1)},
    "dora of inputs": {**PAIR, "linear.dora_scale": (1, 12)},
    "glora": {
        "linear.a1.weight": (12, 2),
        "linear.a2.weight": (2, 12),
        "linear.b1.weight": (8, 2),
        "linear.b2.weight": (2, 12),
    },
    "whole changes": {
        "linear.diff": (8, 12),
        "linear.diff_b": (8,),
        "norm.w_norm": (8,),
        "norm.b_norm": (8,),
    },
    "a pair and a bias": {**PAIR, "linear.diff_b": (8,)},
    "two dtypes": {**PAIR, "conv.lora_down.weight": (2, 4, 3, 3), "conv.lora_up.weight": (6, 2, 1, 1)},
    "an empty tensor beside": {**PAIR, "norm.strange": (0,)},
    "a rotation": {"linear.oft_blocks": (2, 4, 4), "linear.alpha": ()},
}
FUSED = {
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (2, 32),
    "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (96, 2),
    "lora_unet_double_blocks_0_img_attn_qkv.alpha": (),
    "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": (2, 32),
    "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": (64, 2),
}


@pytest.fixture(autouse=True)
def _nothing_known():
    file_moulds.forget_moulds()
    yield
    file_moulds.forget_moulds()


def written(path, shapes, seed, *, alpha=2.0, dtypes=(torch.float32,), **metadata):
    generator = torch.Generator().manual_seed(seed)
    table = {
        key: torch.randn(shape, generator=generator).to(dtypes[n % len(dtypes)])
        if shape
        else torch.tensor(alpha)
        for n, (key, shape) in enumerate(shapes.items())
    }
    # one of another dtype that has no values
    table = {key: value if value.numel() else value.double() for key, value in table.items()}
    save_file(table, path, {"seed": str(seed), **metadata})
    return path


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fresh(make, path, **options):
    file_moulds.forget_moulds()
    model = make()
    report = LoraMixer(model).load_lora_weights(path, "b", **options)
    return state(model), report


def flux():
    torch.manual_seed(0)
    return FluxTransformer2DModel(**FLUX)


CASES = [
    *((kind, Net, shapes) for kind, shapes in KINDS.items()),
    ("fused rows, and halves swapped", flux, FUSED),
]


@pytest.mark.filterwarnings("ignore:only a part of the adapter:lora_mixer.PartialMatchWarning")
@pytest.mark.parametrize(("kind", "make", "shapes"), CASES, ids=[case[0] for case in CASES])
def test_a_second_file_of_a_kind_gives_what_a_first_one_gives(kind, make, shapes, tmp_path, monkeypatch):
    dtypes = (torch.float16, torch.float32) if kind == "two dtypes" else (torch.float32,)
    one, two = (written(tmp_path / f"{n}.safetensors", shapes, n, dtypes=dtypes) for n in (1, 2))
    model = make()
    mixer = LoraMixer(model)
    mixer.load_lora_weights(one, "a")
    before = state(model)
    if kind != "a rotation":  # whose values are looked at
        monkeypatch.setattr(reader, "build_layers", None)
        monkeypatch.setattr(ModuleIndex, "find", None)
    report = mixer.load_lora_weights(two, "b")
    monkeypatch.undo()
    found = state(model)
    wanted, told = fresh(make, two)
    assert str(report) == str(told)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not all(torch.equal(found[name], before[name]) for name in wanted)
    mixer.set_adapters("a")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    base = make().state_dict()
    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, base[name]) for name, tensor in state(model).items())


@pytest.mark.parametrize("second", [{"alpha": 1.0}, {"dtypes": (torch.float16,)}])
def test_a_file_that_differs_in_a_number_or_a_dtype_is_of_another_kind(second, tmp_path):
    one = written(tmp_path / "1.safetensors", PAIR, 1)
    two = written(tmp_path / "2.safetensors", PAIR, 2, **second)
    model = Net()
    mixer = LoraMixer(model)
    mixer.load_lora_weights(one, "a")
    mixer.load_lora_weights(two, "b")
    found = state(model)
    wanted, _ = fresh(Net, two)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_rule_of_scale_in_the_header_makes_another_kind(tmp_path):
    rule = {"lora_adapter_metadata": json.dumps({"r": 3, "lora_alpha": 12, "target_modules": ["linear"]})}
    shapes = {key: shape for key, shape in PAIR.items() if shape}
    one = written(tmp_path / "1.safetensors", shapes, 1)
    two = written(tmp_path / "2.safetensors", shapes, 1, **rule)
    model = Net()
    mixer = LoraMixer(model)
    mixer.load_lora_weights(one, "a")
    once = model.linear.weight - Net().linear.weight
    mixer.load_lora_weights(two, "b")
    assert torch.allclose(model.linear.weight - Net().linear.weight, 4 * once, atol=1e-5)


def test_what_values_say_is_said_of_each_file(tmp_path):
    one, zeros, bad = (written(tmp_path / f"{n}.safetensors", PAIR, n) for n in (1, 2, 3))
    save_file(
        {key: torch.zeros(shape) if shape else torch.tensor(2.0) for key, shape in PAIR.items()},
        zeros,
        {"seed": "2"},
    )
    broken = {key: torch.ones(shape) if shape else torch.tensor(2.0) for key, shape in PAIR.items()}
    broken["linear.lora_B.weight"][3, 1] = float("nan")
    save_file(broken, bad, {"seed": "3"})
    for order in ((zeros, one), (one, zeros)):
        file_moulds.forget_moulds()
        model = Net()
        mixer = LoraMixer(model)
        told = {path: mixer.load_lora_weights(path).notes for path in order}
        assert told[one] == ()
        assert "hold zeros" in told[zeros][0]
    before = state(model)
    with pytest.raises(InvalidAdapterError, match=r"NaN or Inf in 1 of 1 modules \(model.linear\)"):
        mixer.load_lora_weights(bad, "bad")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    mixer.load_lora_weights(bad, "bad", allow_nonfinite=True)
    assert model.linear.weight.isnan().any()


def test_parts_that_were_trained_apart_are_seen_in_each_file(tmp_path):
    shapes = {key: (6, 32) if "down" in key else (96, 6) if "up" in key else () for key in [*FUSED][:3]}
    together = written(tmp_path / "1.safetensors", shapes, 1)
    blocks = torch.block_diag(*torch.ones(3, 32, 2))
    table = {key: torch.ones(shape) if shape else torch.tensor(2.0) for key, shape in shapes.items()}
    save_file({**table, [*shapes][1]: blocks}, tmp_path / "2.safetensors", {"seed": "2"})
    mixer = LoraMixer(flux())
    assert mixer.load_lora_weights(together).notes == ()
    assert "trained apart" in mixer.load_lora_weights(tmp_path / "2.safetensors").notes[0]
    assert mixer.load_lora_weights(together).notes == ()


def test_a_model_that_has_changed_is_looked_at_anew(tmp_path):
    one, two, three = (written(tmp_path / f"{n}.safetensors", PAIR, n) for n in (1, 2, 3))
    model = Net()
    mixer = LoraMixer(model)
    mixer.load_lora_weights(one, "a")
    mixer.unload_lora_weights()
    model.linear = nn.Linear(12, 8)
    base = model.linear.weight.clone()
    mixer.load_lora_weights(two, "b")
    moved = model.linear.weight - base
    assert moved.any()
    mixer.unload_lora_weights()
    assert torch.equal(model.linear.weight, base)
    model.linear = nn.Linear(13, 8)
    with pytest.raises(Exception, match="another shape"):
        mixer.load_lora_weights(three, "c")
    model.linear.weight.data = base.clone()  # the same module and parameter, another shape
    model.linear.in_features = 12
    mixer.load_lora_weights(two, "d")
    assert torch.equal(model.linear.weight - base, moved)
    model.other, model.linear = model.linear, nn.Identity()
    mixer.unload_lora_weights()
    with pytest.raises(Exception, match="none of its 1 modules"):
        mixer.load_lora_weights(two, "e")


def test_kinds_are_told_apart_by_the_model_that_they_are_loaded_into(tmp_path):
    one, two = (written(tmp_path / f"{n}.safetensors", PAIR, n) for n in (1, 2))
    first, second = Net(), Net()
    LoraMixer(first).load_lora_weights(one)
    LoraMixer(second).load_lora_weights(two)
    wanted, _ = fresh(Net, two)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(second).items())


def test_few_kinds_are_kept(tmp_path):
    mixer = LoraMixer(Net())
    for rank in range(1, 13):
        shapes = {"linear.lora_A.weight": (rank, 12), "linear.lora_B.weight": (8, rank)}
        mixer.load_lora_weights(written(tmp_path / f"{rank}.safetensors", shapes, rank))
    assert len(file_moulds._kept) <= 8
    assert len(mixer._state.memory._bindings) <= 8
    assert header._known_table.cache_info().currsize <= 8


GOOD = '"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
HEADERS = {
    "twice": "{" + GOOD + "," + GOOD + "}",
    "metadata twice": '{"__metadata__":{},"__metadata__":{},' + GOOD + "}",
    "metadata twice, hidden": '{"__metadata__":{},"__met\\u0061data__":{},' + GOOD + "}",
    "a key of metadata twice": '{"__metadata__":{"x":"1","x":"2"},' + GOOD + "}",
    "metadata behind": "{" + GOOD + ',"__metadata__":{"x":"1"}}',
    "metadata of numbers": '{"__metadata__":{"x":1},' + GOOD + "}",
    "no comma": '{"__metadata__":{"x":"1"} ' + GOOD + "}",
    "behind the end": '{"__metadata__":{"x":"1"},' + GOOD + "}}",
    "a gap": '{"__metadata__":{"x":"1"},' + GOOD.replace("[0,4]", "[2,6]") + "}",
    "metadata that look like a tensor": '{"__metadata__":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},'
    + GOOD
    + "}",
    "good": '{"__metadata__":{"x":"{\\"a\\":1}"},' + GOOD + "}",
    "spaces": '{"__metadata__":{"x":"1"} , ' + GOOD + " }  ",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_judged_alike_whether_its_table_is_known(name, monkeypatch):
    def read(text, data=4):
        raw = text.encode()
        try:
            found = header.read_header(io.BytesIO(struct.pack("<Q", len(raw)) + raw + bytes(data)), "x")
        except CorruptFileError as error:
            return str(error)
        return dict(found.tensors), dict(found.metadata)

    read(HEADERS["good"])
    known = [read(HEADERS[name]), read(HEADERS[name]), read(HEADERS[name], 3)]
    monkeypatch.setattr(header, "_known_parts", lambda raw: None)
    assert known == [read(HEADERS[name]), read(HEADERS[name]), read(HEADERS[name], 3)]

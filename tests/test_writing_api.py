"""``lora_mixer.writing`` from Python: every method on layers of every kind, cuts, what is read back, other bases."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file, save, save_file
from torch import nn

from lora_mixer import LoraMixer, MatchError, MixError, SaveError, demo_adapters
from lora_mixer.families.skeleton import Skeleton
from lora_mixer.merging import METHODS, MergeMethod, pair_of
from lora_mixer.problem import SaveReason
from lora_mixer.writing import convert, export, extract, merge, parts, read_back, resize
from lora_mixer.writing.compose import RankCut
from lora_mixer.writing.differences import changes

DENSITY = {name for name, spec in METHODS.items() if any(s.name == "density" for s in spec.settings)}
OUT, IN = 10, 6


def whole(name):
    """A method that keeps every entry."""
    settings = {"density": 1} if name in DENSITY else {}
    settings |= {"epsilon": 0} if name == "della" else {"outliers": 0} if name == "breadcrumbs" else {}
    return MergeMethod(name, **settings)


def pair(seed, rank=2, shape=(OUT, IN), front="transformer.blocks.0.to_q"):
    g = torch.Generator().manual_seed(seed)
    return {
        f"{front}.lora_A.weight": torch.randn(rank, *shape[1:], generator=g),
        f"{front}.lora_B.weight": torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=g),
    }


def change(table, front="transformer.blocks.0.to_q"):
    up, down = table[f"{front}.lora_B.weight"], table[f"{front}.lora_A.weight"]
    return up.double().flatten(1) @ down.double().flatten(1)


@pytest.fixture
def two(tmp_path):
    """Two adapters that share one layer; each has one of its own."""
    tables = [
        pair(1) | pair(2, front="transformer.top.only_a", shape=(OUT, 3, 3, 3)),
        pair(3, rank=3) | pair(4, front="transformer.top.only_b"),
    ]
    for name, table in zip("ab", tables, strict=True):
        save_file(table, tmp_path / f"{name}.safetensors")
    return tables, {tmp_path / "a.safetensors": 0.7, tmp_path / "b.safetensors": -0.4}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_writes_what_it_gives_on_each_layer(name, tmp_path, two):
    (a, b), weights = two
    method = whole(name)
    rank = 6 if method.needs_rank else None

    report = merge(weights, tmp_path / "m.safetensors", method=method, rank=rank)

    assert report.worst_error < 1e-6
    written = load_file(tmp_path / "m.safetensors")
    gains, place = {"a": 0.7, "b": -0.4}, "transformer.blocks.0.to_q"
    if method.needs_rank:
        expected = method.merge_changes({"a": change(a), "b": change(b)}, gains, place)
    else:
        halves = {
            n: (t[f"{place}.lora_B.weight"].double(), t[f"{place}.lora_A.weight"].double())
            for n, t in (("a", a), ("b", b))
        }
        up, down = method.merge_pairs(halves, gains, place)
        expected = up @ down
    assert (change(written) - expected).norm() < 1e-5 * expected.norm()
    for table, gain, front in ((a, 0.7, "transformer.top.only_a"), (b, -0.4, "transformer.top.only_b")):
        wanted = gain * change(table, front)
        assert (change(written, front) - wanted).norm() < 1e-5 * wanted.norm()


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.linear = torch.nn.Linear(8, 8)
        self.conv = torch.nn.Conv2d(4, 6, 3)
        self.norm = torch.nn.LayerNorm(8)


def odd_file(kind):
    """One layer that is not a pair, beside a norm and a bias."""
    g = torch.Generator().manual_seed(5)
    table = {"norm.w_norm": torch.randn(8, generator=g), "norm.b_norm": torch.randn(8, generator=g)}
    if kind == "full":
        return table | {
            "linear.diff": torch.randn(8, 8, generator=g),
            "linear.diff_b": torch.randn(8, generator=g),
        }
    if kind == "oft":
        return table | {
            "linear.oft_blocks": torch.randn(2, 4, 4, generator=g),
            "linear.alpha": torch.tensor(0.0),
        }
    dora = {
        "linear.lora_up.weight": torch.randn(8, 2, generator=g),
        "linear.lora_down.weight": torch.randn(2, 8, generator=g),
        "linear.dora_scale": torch.rand(8, 1, generator=g) + 0.5,
    }
    return table | dora


@pytest.mark.parametrize("kind", ["full", "oft", "dora"])
@pytest.mark.parametrize("name", METHODS)
def test_layers_that_are_not_pairs_and_norms_follow_the_method(name, kind, monkeypatch):
    """The mixer's save, against the method on the changes that the mixer itself makes."""
    model = Small()
    base = {key: value.double() for key, value in model.state_dict().items()}
    mixer = LoraMixer(model)
    plain = {
        "linear.lora_up.weight": torch.randn(8, 2, generator=torch.Generator().manual_seed(1)),
        "linear.lora_down.weight": torch.randn(2, 8, generator=torch.Generator().manual_seed(2)),
        "linear.diff_b": torch.ones(8),
        "norm.w_norm": torch.linspace(-1, 1, 8),
        "norm.b_norm": torch.ones(8),
    }
    gains, changes = {"plain": 0.7, "odd": 0.6}, {}
    for adapter, table in (("plain", plain), ("odd", odd_file(kind))):
        mixer.load_lora_weights(table, adapter, strict=True)
        mixer.set_adapters(adapter, gains[adapter])
        changes[adapter] = {
            key: (value.double() - base[key]) / gains[adapter] for key, value in model.state_dict().items()
        }
    method = whole(name)
    wanted = {}
    for place, key in (
        ("model.linear", "linear.weight"),
        ("model.norm", "norm.weight"),
        ("model.norm.bias", "norm.bias"),
        ("model.linear.bias", "linear.bias"),
    ):
        own = {n: table[key] for n, table in changes.items() if table[key].any()}
        weights = {n: gains[n] for n in own}
        if key != "linear.weight":
            wanted[key] = method.merge_vectors(own, weights, place)
        elif method.needs_rank:
            wanted[key] = method.merge_changes(own, weights, place)
        else:
            # a pair beside the change of a bias is a pair: rounding of a weight adds no directions to it
            pairs = {n: pair_of(value) for n, value in own.items()}
            pairs["plain"] = tuple(plain[f"linear.lora_{half}.weight"].double() for half in ("up", "down"))
            up, down = method.merge_pairs(pairs, weights, place)
            wanted[key] = up @ down
        assert wanted[key].any()

    layers = composed(mixer, gains, method, monkeypatch)

    up, down = layers["linear"].pair
    matrix = wanted["linear.weight"]
    assert (up.double() @ down.double() - matrix).norm() < 1e-4 * matrix.norm()
    assert torch.allclose(layers["norm"].vector.double(), wanted["norm.weight"], atol=1e-4)
    assert torch.allclose(layers["norm"].bias.double(), wanted["norm.bias"], atol=1e-4)
    assert torch.allclose(layers["linear"].bias.double(), wanted["linear.bias"], atol=1e-4)


def low_rank_files():
    """Changes of rank 1 or 2 that are no pairs where the layer is small, in fp32, with their values in fp64."""
    g = torch.Generator().manual_seed(11)
    loha = {f"linear.hada_{half}": torch.randn(8, 1, generator=g) for half in ("w1_a", "w2_a")}
    loha |= {f"linear.hada_{half}": torch.randn(1, 8, generator=g) for half in ("w1_b", "w2_b")}
    of_loha = (loha["linear.hada_w1_a"].double() @ loha["linear.hada_w1_b"].double()) * (
        loha["linear.hada_w2_a"].double() @ loha["linear.hada_w2_b"].double()
    )
    lokr = {"linear.lokr_w1": torch.randn(2, 2, generator=g)}
    lokr |= {
        "linear.lokr_w2_a": torch.randn(4, 1, generator=g),
        "linear.lokr_w2_b": torch.randn(1, 4, generator=g),
    }
    of_lokr = torch.kron(
        lokr["linear.lokr_w1"].double(), lokr["linear.lokr_w2_a"].double() @ lokr["linear.lokr_w2_b"].double()
    )
    return {"loha": (loha, of_loha), "lokr": (lokr, of_lokr)}


@pytest.mark.parametrize("kind", ["loha", "lokr"])
@pytest.mark.parametrize("method", ["orthogonal", "knots(density=0.4)"])
def test_rounding_of_a_change_without_a_pair_is_no_direction_of_its_own(method, kind, monkeypatch):
    file, change = low_rank_files()[kind]
    g = torch.Generator().manual_seed(12)
    up, down = torch.randn(8, 3, generator=g), torch.randn(3, 8, generator=g)
    mixer = LoraMixer(Small())
    mixer.load_lora_weights(file, "a_first", strict=True)
    mixer.load_lora_weights({"linear.lora_up.weight": up, "linear.lora_down.weight": down}, "b", strict=True)
    mixer.disable_lora()

    layer = composed(mixer, {"a_first": 0.8, "b": -0.6}, method, monkeypatch)["linear"]

    left, values, right = torch.linalg.svd(change)
    rank = int((values > 1e-9 * values[0]).sum())
    exact = (left[:, :rank] * values[:rank], right[:rank])
    pairs = {"a_first": exact, "b": (up.double(), down.double())}
    merged_up, merged_down = MergeMethod.of(method).merge_pairs(
        pairs, {"a_first": 0.8, "b": -0.6}, "model.linear"
    )
    wanted = merged_up @ merged_down
    assert rank <= 2
    assert (layer.up.double() @ layer.down.double() - wanted).norm() < 1e-5 * wanted.norm()


def composed(mixer, gains, method, monkeypatch):
    """The layers that a save hands to the writer of its format."""
    taken = []
    monkeypatch.setattr(export, "write_adapter", lambda path, layers, names, **how: taken.extend(layers))
    mixer.save_lora_weights("x", list(gains), weights=list(gains.values()), method=method, rank=16)
    return {layer.place.path: layer for layer in taken}


@pytest.mark.parametrize("name", ["knots", "orthogonal", "sum"])
def test_pair_methods_refuse_what_is_not_a_pair_where_no_rank_is_given(name, tmp_path):
    mixer = LoraMixer(Small())
    mixer.load_lora_weights(odd_file("oft"), "odd")

    with pytest.raises(SaveError, match=r"model\.linear \(oft\).*give a rank") as caught:
        mixer.save_lora_weights(tmp_path / "x", ["odd"], weights=0.5, method=name)

    (problem,) = caught.value.problems
    assert (problem.place, problem.reason, problem.detail) == ("model.linear", "rank", "oft")
    assert not (tmp_path / "x").exists()


def test_cuts_by_rank_by_kernel_by_energy_and_by_ratio(tmp_path):
    table = pair(1, rank=5) | pair(2, rank=5, front="transformer.top.conv", shape=(OUT, 3, 3, 3))
    save_file(table, tmp_path / "a.safetensors")

    def ranks(**cut):
        report = resize(tmp_path / "a.safetensors", tmp_path / "r.safetensors", **cut)
        return [report.ranks[f"transformer.{name}"] for name in ("blocks.0.to_q", "top.conv")]

    values = torch.linalg.svdvals(change(table, "transformer.top.conv"))
    assert ranks(rank=3) == [3, 3]
    assert ranks(rank=4, conv_rank=2) == [4, 2]
    assert ranks(energy=1.0, rank=2) == [2, 2]
    assert ranks(energy=1.0, conv_rank=1) == [5, 1]
    for ratio in (1.2, 2.0, 50.0):
        assert ranks(sv_ratio=ratio)[1] == max(int((values > values[0] / ratio).sum()), 1)
    with pytest.raises(SaveError, match=r"rank must be a whole number.*; energy must be above 0"):
        ranks(rank=0, energy=2.0)
    with pytest.raises(SaveError, match="conv_rank is for convolutions beside"):
        ranks(conv_rank=2)
    with pytest.raises(SaveError, match="give a rank"):
        ranks()


def test_files_of_one_unknown_base_are_summed_under_whatever_front_they_have(tmp_path):
    """A file with ``transformer.``, one with ``diffusion_model.``, a PEFT folder that names no component."""
    one, two, three = pair(1), pair(2), pair(3)
    save_file(one, tmp_path / "a.safetensors")
    save_file(
        {k.replace("transformer.", "diffusion_model."): v for k, v in two.items()}, tmp_path / "b.safetensors"
    )
    (tmp_path / "c").mkdir()
    save_file(
        {k.replace("transformer.", "base_model.model."): v for k, v in three.items()},
        tmp_path / "c" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}
    (tmp_path / "c" / "adapter_config.json").write_text(json.dumps(config))
    sources = [tmp_path / "a.safetensors", (tmp_path / "b.safetensors", 0.5), (tmp_path / "c", -2)]

    report = merge(sources, tmp_path / "m.safetensors")

    assert list(report.ranks) == ["transformer.blocks.0.to_q"]
    written = load_file(tmp_path / "m.safetensors")
    assert set(written) == set(one)
    expected = change(one) + 0.5 * change(two) - 2 * change(three)
    assert (change(written) - expected).norm() < 1e-5 * expected.norm()
    convert(tmp_path / "b.safetensors", tmp_path / "d.safetensors", format="diffusers")
    assert set(load_file(tmp_path / "d.safetensors")) == set(one)


def test_the_demos_styles_share_their_modules_whatever_they_are_written_as(tmp_path):
    demo = demo_adapters()

    report = merge({demo["ink"].path: 0.7, demo["neon"].path: {"unet": 0.3}}, tmp_path / "m.safetensors")

    assert len(report.ranks) == 124
    assert {name.partition(".")[0] for name in report.ranks} == {"unet", "text_encoder"}


def test_one_module_twice_in_a_file_is_refused(tmp_path):
    save_file(pair(1) | pair(2, front="blocks.0.to_q"), tmp_path / "a.safetensors")

    with pytest.raises(MatchError, match=r"one module: transformer\.blocks\.0\.to_q"):
        merge([tmp_path / "a.safetensors"], tmp_path / "m.safetensors")


@pytest.mark.parametrize("fault", ["another front", "half the change"])
def test_a_file_that_reads_back_as_something_else_is_not_kept(fault, tmp_path, two, monkeypatch):
    _, weights = two
    (tmp_path / "m.safetensors").write_bytes(b"old")
    if fault == "another front":
        monkeypatch.setattr(
            "lora_mixer.writing.names.Names.diffusers", lambda self, place: f"text_encoder.{place.path}"
        )
    else:
        real = read_back.read_source

        def halved(source):
            adapter = real(source)
            for layer in adapter.layers:
                object.__setattr__(layer.weights, "scale", layer.weights.scale / 2)
            return adapter

        monkeypatch.setattr(read_back, "read_source", halved)

    with pytest.raises(SaveError, match="reads back as something else"):
        merge(weights, tmp_path / "m.safetensors")

    assert (tmp_path / "m.safetensors").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


def test_changes_that_need_no_base_are_told_from_those_that_do(tmp_path):
    """LoHa is merged at a rank without any model; DoRA says what it lacks."""
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    g = torch.Generator().manual_seed(0)
    loha = {
        f"{name}.hada_w{n}_{half}": torch.randn(*shape, generator=g)
        for n in (1, 2)
        for half, shape in (("a", (1280, 40)), ("b", (40, 768)))
    }
    save_file(loha, tmp_path / "a.safetensors")

    report = merge([(tmp_path / "a.safetensors", 0.5)], tmp_path / "m.safetensors", rank=2)

    assert set(report.ranks.values()) == {2}
    assert 0 < report.worst_error < 1
    dora = {
        f"{name}.lora_up.weight": torch.randn(1280, 2, generator=g),
        f"{name}.lora_down.weight": torch.randn(2, 768, generator=g),
        f"{name}.dora_scale": torch.ones(1280, 1),
    }
    save_file(dora, tmp_path / "b.safetensors")
    with pytest.raises(SaveError, match="no base weights at hand") as caught:
        merge([(tmp_path / "b.safetensors", 0.5)], tmp_path / "n.safetensors", rank=2)
    assert [problem.reason for problem in caught.value.problems] == ["base"]


def test_a_trained_bias_whose_base_is_away_is_refused_by_name(tmp_path):
    table = {
        "base_model.model.blocks.0.to_q.lora_A.weight": torch.ones(1, IN),
        "base_model.model.blocks.0.to_q.lora_B.weight": torch.ones(OUT, 1),
        "base_model.model.blocks.0.to_q.base_layer.bias": torch.ones(OUT),
    }
    adapter = parts.read_source(parts.resolve_source(table), name="a")
    (layer,) = adapter.layers

    with pytest.raises(SaveError, match=r"trained bias that replaces the model's own.*model=") as caught:
        parts._refuse_unknown_bias(layer)

    assert caught.value.problems[0].reason == "base"


def test_what_makes_no_sense_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(MixError, match="one adapter or more"):
        merge([], tmp_path / "m.safetensors")
    with pytest.raises(MixError, match="block weights"):
        merge(["a.safetensors"], tmp_path / "m.safetensors", method="b-lora")
    with pytest.raises(SaveError, match="format must be one of"):
        convert("a.safetensors", tmp_path / "m.safetensors", format="odd")
    with pytest.raises(SaveError, match="give a rank"):
        extract("base", "tuned", tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", METHODS)
def test_a_merge_is_stored_in_fp32_where_no_type_is_asked_for(name, tmp_path, two):
    for kind in (torch.float16, torch.float64):
        for place, table in zip(two[1], two[0], strict=True):
            save_file({key: value.to(kind) for key, value in table.items()}, place)
        merge(two[1], tmp_path / "m.safetensors", method=name, rank=6)
        assert {tensor.dtype for tensor in load_file(tmp_path / "m.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("given", ["files", "folders", "state dicts", "bytes"])
@pytest.mark.parametrize("name", METHODS)
def test_sources_of_one_name_are_told_apart_whatever_their_order(name, given, tmp_path):
    """Draws go by names: two files of one name in two folders must not swap theirs with their places."""
    sources = []
    for number, folder in enumerate(("x", "y"), start=1):
        table = pair(number, rank=3)
        (tmp_path / folder / "style").mkdir(parents=True)
        path = tmp_path / folder / ("style/style.safetensors" if given == "folders" else "style.safetensors")
        save_file(table, path)
        sources.append(
            {"files": path, "folders": path.parent, "state dicts": table, "bytes": save(table)}[given]
        )
    weighted = list(zip(sources, (0.7, -0.4), strict=True))
    method = MergeMethod(name)
    if method.spec.ordered:
        return
    found = []
    for order in (weighted, weighted[::-1]):
        merge(order, tmp_path / "m.safetensors", method=method, energy=1.0)
        found.append(change(load_file(tmp_path / "m.safetensors")))
    assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_finite_is_refused_by_adapter_and_module(name, value, tmp_path, two):
    tables, weights = two
    tables[1]["transformer.top.only_b.lora_B.weight"][1, 0] = value
    save_file(tables[1], tmp_path / "b.safetensors")
    with pytest.raises(
        SaveError, match=r"b has NaN or Inf in 1 of 2 modules \(transformer.top.only_b\)"
    ) as caught:
        merge(weights, tmp_path / "m.safetensors", method=name, rank=4)
    assert [(x.place, x.reason) for x in caught.value.problems] == [
        ("transformer.top.only_b", SaveReason.VALUES)
    ]
    assert not (tmp_path / "m.safetensors").exists()
    merge(dict(zip(weights, (0.7, 0.0), strict=True)), tmp_path / "m.safetensors", method=name, rank=4)
    with pytest.raises(SaveError, match="NaN or Inf"):
        convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", format="diffusers")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp64_values_are_stored_as_the_nearest_half(dtype, tmp_path):
    """By way of fp32 a value beside the middle of two halves goes to the wrong one."""
    step = 2.0 ** (-10 if dtype is torch.float16 else -7)
    above = torch.full((OUT, 2), 1 + step / 2 + 2.0**-40, dtype=torch.float64)
    table = {key: above.clone() if "lora_B" in key else value.double() for key, value in pair(1).items()}
    save_file(table, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "h.safetensors", format="diffusers", dtype=dtype)
    halves = load_file(tmp_path / "h.safetensors")["transformer.blocks.0.to_q.lora_B.weight"]
    assert halves.dtype is dtype
    assert (halves == 1 + step).all()


class Parameters(nn.Module):
    """Parameters of every kind that is not the weight or the bias of a module with a weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.Module()
        self.norm.bias = nn.Parameter(torch.randn(4))
        self.table = nn.Parameter(torch.randn(6, 4))
        self.token = nn.Parameter(torch.randn(4))
        self.experts = nn.Parameter(torch.randn(2, 4, 3))
        self.temperature = nn.Parameter(torch.tensor(2.0))


SINGLE = (
    "attention.in_proj_weight",
    "attention.in_proj_bias",
    "norm.bias",
    "table",
    "token",
    "experts",
    "temperature",
)


def outline(name, module):
    tables = {key: partial(torch.clone, value) for key, value in module.state_dict().items()}
    return Skeleton(name, {"transformer": module}, lambda _: tables)


@pytest.mark.parametrize("name", SINGLE)
def test_what_two_models_differ_in_is_found_in_every_parameter(name):
    base, tuned = Parameters(), Parameters()
    with torch.no_grad():
        tuned.get_parameter(name).add_(0.5)
    expected = tuned.get_parameter(name) - base.get_parameter(name)

    (layer,) = changes(outline("base", base), outline("tuned", tuned), cut=RankCut(2)).layers

    assert (layer.place.component, layer.place.path) == ("transformer", name)
    assert torch.equal(layer.leaves[".diff"], expected)
    with pytest.raises(MatchError, match=rf"transformer\.{name} alone, and these are left out"):
        changes(outline("base", base), outline("tuned", tuned), cut=RankCut(2), pairs_only=True)


def test_what_has_no_weights_to_compare_is_not_called_the_same():
    empty = Skeleton("pickles", {"transformer": Parameters()}, lambda _: {})

    for pair_of_models in ((empty, outline("base", Parameters())), (empty, empty)):
        with pytest.raises(MatchError, match=r"pickles: has no weights of transformer in"):
            changes(*pair_of_models, cut=RankCut(2))


TABLES = ("scale_shift_table", "transformer_blocks.0.scale_shift_table")


@pytest.fixture(scope="module")
def pixarts(tmp_path_factory):
    """A small transformer with tables of shifts and its tuned self, as folders with a second expert; and the two modules."""
    folder = tmp_path_factory.mktemp("pixart")
    made = []
    for name in ("base", "tuned"):
        torch.manual_seed(0)
        model = PixArtTransformer2DModel(
            sample_size=4, num_layers=1, attention_head_dim=4, num_attention_heads=2, caption_channels=8, in_channels=4,
            cross_attention_dim=8, out_channels=8, norm_num_groups=1,
        )  # fmt: skip
        model.save_pretrained(folder / name / "transformer_2")
        if name == "tuned":
            with torch.no_grad():
                for path in (*TABLES, "transformer_blocks.0.attn1.to_q.weight"):
                    model.get_parameter(path).add_(torch.randn_like(model.get_parameter(path)))
        model.save_pretrained(folder / name / "transformer")
        index = {part: ["diffusers", "PixArtTransformer2DModel"] for part in ("transformer", "transformer_2")}
        (folder / name / "model_index.json").write_text(json.dumps(index))
        made.append(model)
    return folder, *made


def assert_is_change(file, base, tuned, weight):
    live = copy.deepcopy(base)
    assert LoraMixer(live).load_lora_weights(file, "x").complete
    for name, value in live.state_dict().items():
        wanted = base.state_dict()[name] + weight * (tuned.state_dict()[name] - base.state_dict()[name])
        assert torch.allclose(value, wanted, atol=1e-5), name


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_tables_of_shifts_are_extracted_merged_and_resized(form, pixarts, tmp_path):
    folder, base, tuned = pixarts
    x, y, z = (tmp_path / f"{name}.safetensors" for name in "xyz")

    extract(folder / "base", folder / "tuned", x, rank=8, format=form)
    assert_is_change(x, base, tuned, 1.0)
    for method in ("sum", MergeMethod.of("ties", density=1)):
        merge({x: 0.5}, y, format=form, model=folder / "base", rank=8, method=method)
        assert_is_change(y, base, tuned, 0.5)
    resize(x, z, rank=8, format=form, model=folder / "base")
    assert_is_change(z, base, tuned, 1.0)
    mixer = LoraMixer(copy.deepcopy(base))
    mixer.load_lora_weights(x, "x")
    mixer.set_mix({"x": -0.5})
    mixer.save_lora_weights(tmp_path / "live.safetensors", format=form)
    assert_is_change(tmp_path / "live.safetensors", base, tuned, -0.5)
    for other in ("diffusers", "peft"):
        with pytest.raises(SaveError, match="no place for 2 modules") as refused:
            convert(x, tmp_path / other, format=other, model=folder / "base")
        assert {problem.reason for problem in refused.value.problems} == {SaveReason.FORMAT}


def test_a_second_expert_is_compared_too(pixarts, tmp_path):
    folder, base, tuned = pixarts
    other = tmp_path / "second"
    shutil.copytree(folder / "base", other)
    shutil.rmtree(other / "transformer_2")
    model = copy.deepcopy(base)
    with torch.no_grad():
        model.transformer_blocks[0].attn1.to_q.weight.copy_(tuned.transformer_blocks[0].attn1.to_q.weight)
    model.save_pretrained(other / "transformer_2")

    extract(folder / "base", other, tmp_path / "x.safetensors", rank=8)

    front = "transformer_2.transformer_blocks.0.attn1.to_q"
    assert set(load_file(tmp_path / "x.safetensors")) == {f"{front}.lora_A.weight", f"{front}.lora_B.weight"}

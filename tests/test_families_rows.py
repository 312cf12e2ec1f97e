"""Rows of a change: for every algorithm, any split of a fused layer is what the textbook's whole change has there."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_mixer import LoraMixer, MatchError
from lora_mixer.algorithms import Dora, ModuleTensors
from lora_mixer.algorithms.base import Sliced
from lora_mixer.algorithms.rows import Placed
from lora_mixer.algorithms.table import builder
from tests.transformers_data import Parts as Components
from tests.transformers_data import distance, parts_of, reference, state

ROWS, COLUMNS, RANK = 24, 10, 3
SCALE = 2.0 / RANK


def made(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 3


def pair(seed, rows=ROWS, columns=COLUMNS):
    return made(seed, rows, RANK), made(seed + 1, RANK, columns)


def lora(base, gain):
    up, down = pair(1, *base.shape)
    tensors = {"up": up, "down": down}
    return builder("lora")(parts(tensors)), gain * SCALE * up @ down


def loha(base, gain):
    (a1, b1), (a2, b2) = pair(3, *base.shape), pair(5, *base.shape)
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    return builder("loha")(parts(tensors)), gain * SCALE * (a1 @ b1) * (a2 @ b2)


def lokr(base, gain):
    left, right = made(7, 4, 2), made(8, base.shape[0] // 4, base.shape[1] // 2)
    tensors = {"lokr_w1": left, "lokr_w2": right}
    return builder("lokr")(parts(tensors)), gain * torch.kron(left, right)


def lokr_of_products(base, gain):
    left, (up, down) = made(9, 6, 5), (made(10, base.shape[0] // 6, RANK), made(11, RANK, base.shape[1] // 5))
    tensors = {"lokr_w1": left, "lokr_w2_a": up, "lokr_w2_b": down}
    return builder("lokr")(parts(tensors)), gain * SCALE * torch.kron(left, up @ down)


def glora(base, gain):
    a1, a2, (b1, b2) = made(12, base.shape[1], RANK), made(13, RANK, base.shape[1]), pair(14, *base.shape)
    tensors = {"glora_a1": a1, "glora_a2": a2, "glora_b1": b1, "glora_b2": b2}
    return builder("glora")(parts(tensors)), gain * SCALE * (base @ a1 @ a2 + b1 @ b2)


def full(base, gain):
    change = made(16, *base.shape)
    return builder("full")(parts({"diff": change})), gain * change


def ia3(base, gain):
    vector = made(17, base.shape[0])
    tensors = {"ia3_weight": vector, "on_input": torch.tensor(False)}
    return builder("ia3")(parts(tensors)), gain * base * vector[:, None]


def dora(base, gain, *, by_output):
    inner, change = lora(base, 1.0)
    turned = base + change
    length = turned.norm(dim=1 if by_output else 0, keepdim=True)
    magnitude = made(18, *length.shape).abs() + 0.5
    whole = gain * (turned * magnitude / length - base)
    return Dora.wrap(inner, parts({"dora_scale": magnitude})), whole


def dora_by_output(base, gain):
    return dora(base, gain, by_output=True)


def dora_by_input(base, gain):
    return dora(base, gain, by_output=False)


def oft(base, gain):
    size = 4
    blocks = made(19, base.shape[0] // size, size, size)
    skew = blocks - blocks.transpose(1, 2)
    eye = torch.eye(size, dtype=torch.float64)
    rotation = (eye + skew) @ torch.linalg.inv(eye - skew)
    turn = torch.block_diag(*(gain * rotation + (1 - gain) * eye))
    return builder("oft")(parts({"oft_blocks": blocks})), turn.T @ base - base


def parts(tensors):
    return ModuleTensors(tensors, 2.0, None, rank_stabilised=False, label="a layer", module="a.layer")


KINDS = [lora, loha, lokr, lokr_of_products, glora, full, ia3, dora_by_output, dora_by_input, oft]


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.sets(st.integers(1, ROWS - 1), max_size=4), gain=st.sampled_from([1.0, 0.6, -0.3]))
def test_any_split_of_the_rows_is_that_part_of_the_whole_change(kind, cuts, gain):
    base = made(0, ROWS, COLUMNS)
    weights, whole = kind(base, gain)
    for start, stop in pairwise([0, *sorted(cuts), ROWS]):
        own = weights.rows(start, stop, ROWS)
        assert own.misfit((stop - start, COLUMNS)) is None
        if own.needs_whole((stop - start, COLUMNS)):
            assert kind in (dora_by_input, oft)
            assert isinstance(own, Sliced)
            change = own.delta_of(base, gain)
        else:
            change = own.delta(base[start:stop], gain)
        assert torch.allclose(change, whole[start:stop], rtol=1e-10, atol=1e-10)
        found = own.factors((stop - start, COLUMNS))
        if found is not None:
            product = gain * found.scale * found.up.double() @ found.down.double()
            assert torch.allclose(product, whole[start:stop], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_another_order_are_the_whole_change_in_that_order(kind):
    base = made(0, ROWS, COLUMNS)
    weights, whole = kind(base, 0.7)
    halves = ((ROWS // 2, ROWS), (0, ROWS // 2))
    own = weights.take(halves, ROWS)
    order = [*range(ROWS // 2, ROWS), *range(ROWS // 2)]
    change = own.delta_of(base, 0.7) if own.needs_whole(base.shape) else own.delta(base[order], 0.7)
    assert torch.allclose(change, whole[order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_a_part_of_a_live_one_changes_its_rows_only(kind):
    base = made(0, ROWS, COLUMNS)
    half = base[ROWS // 2 :]
    weights, whole = kind(half, 0.7)
    own = Placed(weights, ((ROWS // 2, ROWS),), ROWS, None)
    assert own.misfit((ROWS, COLUMNS)) is None
    change = own.delta(base, 0.7)
    assert torch.allclose(change[ROWS // 2 :], whole, rtol=1e-10, atol=1e-10)
    assert not change[: ROWS // 2].any()


# --- on the modules of a model, through the mixer -----------------------------------------------------------------

HIDDEN = 28
# file's layer: the live modules that share its rows, in order, each with the order of its halves
FUSED = {
    "double_blocks.1.img_attn.qkv": [f"transformer_blocks.1.attn.to_{x}" for x in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
    "single_blocks.0.linear1": [
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
    ],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}


def leaves(name, rows, seed):
    """Give an adapter's tensors on a fused layer of ``rows`` x 28, and its change at weight 1 from a base, in fp64."""
    if name == "lokr":  # blocks of 7 rows: boundaries of q, k, v lie on them; of 4: they do not
        left, right = made(seed, rows // 4, 4), made(seed + 1, 4, HIDDEN // 4)
        return {".lokr_w1": left, ".lokr_w2": right}, lambda _: torch.kron(left, right)
    if name == "loha":
        (a1, b1), (a2, b2) = pair(seed, rows, HIDDEN), pair(seed + 2, rows, HIDDEN)
        tensors = {".hada_w1_a": a1, ".hada_w1_b": b1, ".hada_w2_a": a2, ".hada_w2_b": b2}
        return tensors, lambda _: (a1 @ b1) * (a2 @ b2)
    if name == "oft":
        size = next(n for n in (98, 8, 6) if rows % n == 0)  # no divisor of 28: blocks lie across modules
        blocks = made(seed, rows // size, size, size)
        skew, eye = blocks - blocks.transpose(1, 2), torch.eye(size, dtype=torch.float64)
        turn = torch.block_diag(*((eye + skew) @ torch.linalg.inv(eye - skew)))
        return {".oft_blocks": blocks}, lambda base: turn.T @ base - base
    up, down = pair(seed, rows, HIDDEN)
    tensors = {".lora_up.weight": up, ".lora_down.weight": down}
    if name == "lora":
        return tensors, lambda _: up @ down
    axis = 1 if name == "dora_by_output" else 0
    magnitude = made(seed + 2, *((rows, 1) if axis else (1, HIDDEN))).abs() + 0.5

    def change(base):
        turned = base + up @ down
        return turned * magnitude / turned.norm(dim=axis, keepdim=True) - base

    return {**tensors, ".dora_scale": magnitude}, change


def file_base(before, layer):
    """Put the live weights together as the original code has them."""
    weights = [before["transformer", f"{path}.weight"].double() for path in FUSED[layer]]
    whole = torch.cat(weights)
    return torch.cat(whole.chunk(2)[::-1]) if layer.startswith("final") else whole


@pytest.mark.parametrize("layer", FUSED)
@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "dora_by_output", "dora_by_input", "oft"])
def test_every_algorithm_on_every_fused_layer_is_exact_from_clean_bases(shared_data, layer, name):
    model = reference(shared_data, "flux/aitoolkit")
    components = parts_of(shared_data, model)
    before = state(components)
    mixer = LoraMixer(components)
    base = file_base(before, layer)
    tensors, change = leaves(name, base.shape[0], 31)
    other, other_change = leaves("lora", base.shape[0], 77)
    for adapter, table in (("a", tensors), ("b", other)):
        mixer.load_lora_weights(
            {f"diffusion_model.{layer}{leaf}": t.float() for leaf, t in table.items()}, adapter
        )

    def check(expected):
        if layer.startswith("final"):
            expected = torch.cat(expected.chunk(2)[::-1])
        start = 0
        for path in FUSED[layer]:
            live = components.components["transformer"].get_submodule(path).weight
            wanted = expected[start : start + live.shape[0]]
            assert distance(live, wanted) < 1e-6
            start += live.shape[0]
        changed = {key for key, tensor in state(components).items() if not torch.equal(tensor, before[key])}
        assert changed == {("transformer", f"{path}.weight") for path in FUSED[layer]}

    # another adapter is in the weights already: the change is from the base all the same
    mixer.set_adapters("b", 2.0)
    mixer.set_adapters(["a", "b"], [1.0, -0.5])
    check(base + change(base) - 0.5 * other_change(base))
    mixer.set_adapters(["b", "a"], [0.25, 1.0])
    check(base + change(base) + 0.25 * other_change(base))
    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(components).items())


def test_weights_of_single_modules_of_a_fused_layer_differ(shared_data):
    """A change over all inputs is computed from the whole layer, and each module takes its rows at its own weight."""
    layer = "double_blocks.1.img_attn.qkv"
    components = parts_of(shared_data, reference(shared_data, "flux/aitoolkit"))
    before = state(components)
    mixer = LoraMixer(components)
    base = file_base(before, layer)
    tensors, change = leaves("dora_by_input", base.shape[0], 5)
    mixer.load_lora_weights({f"diffusion_model.{layer}{leaf}": t.float() for leaf, t in tensors.items()}, "a")

    mixer.set_mix({"a": {"weight": 1.0, "blocks": {"*.to_k": 0.5, "*.to_v": 0.0}}})

    wanted = base + change(base) * torch.tensor([1.0, 0.5, 0.0]).repeat_interleave(HIDDEN)[:, None]
    for number, path in enumerate(FUSED[layer]):
        live = components.components["transformer"].get_submodule(path).weight
        assert distance(live, wanted[number * HIDDEN : (number + 1) * HIDDEN]) < 1e-6


def test_a_fused_layer_of_another_size_is_refused_with_the_sum_that_the_model_has(shared_data):
    components = parts_of(shared_data, reference(shared_data, "flux/aitoolkit"))
    before = state(components)
    mixer = LoraMixer(components)
    tensors, _ = leaves("lora", 3 * HIDDEN + 2, 5)
    with pytest.raises(
        MatchError, match=r"made for a weight \(86, 28\), the module has \(84, 28\)"
    ) as caught:
        mixer.load_lora_weights(
            {f"diffusion_model.double_blocks.0.img_attn.qkv{leaf}": t for leaf, t in tensors.items()}, "a"
        )
    parts = ", ".join(f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv")
    assert f"the size is that of {parts} together" in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(components).items())


def test_a_report_says_how_many_layers_of_the_file_the_modules_are(shared_data):
    components = parts_of(shared_data, reference(shared_data, "flux/aitoolkit"))
    mixer = LoraMixer(components)
    tensors, _ = leaves("lora", 3 * HIDDEN, 5)
    fused = {f"diffusion_model.double_blocks.0.img_attn.qkv{leaf}": t for leaf, t in tensors.items()}
    alone, _ = leaves("lora", HIDDEN, 6)
    split = {f"transformer.transformer_blocks.0.attn.to_q{leaf}": t for leaf, t in alone.items()}

    report = mixer.load_lora_weights(fused, "fused")
    assert (report.matched, report.components[0].layers) == (3, 1)
    assert "3 of    3 modules (1 in the file)" in str(report)
    report = mixer.load_lora_weights(split, "split")
    assert (report.matched, report.components[0].layers) == (1, 1)
    assert "in the file" not in str(report)


def test_fused_and_split_keys_that_disagree_are_refused(shared_data):
    components = Components(parts_of(shared_data, reference(shared_data, "zimage/aitoolkit")).components)
    mixer = LoraMixer(components)
    width = 24
    table = {
        "diffusion_model.layers.0.attention.qkv.lora_up.weight": made(1, 3 * width, 2).float(),
        "diffusion_model.layers.0.attention.qkv.lora_down.weight": made(2, 2, width).float(),
        "diffusion_model.layers.0.attention.to_k.lora_up.weight": made(3, width, 2).float(),
        "diffusion_model.layers.0.attention.to_k.lora_down.weight": made(4, 2, width).float(),
    }
    with pytest.raises(
        MatchError, match=r"given twice under different spellings: transformer\.layers\.0\.attention\.to_k"
    ):
        mixer.load_lora_weights(table, "a")


@pytest.mark.parametrize("writer", ["DiffSynth", "others", "lightx2v"])
def test_rows_alternate_head_by_head_in_diffsynths_files_of_minimax_and_are_stacked_in_others(
    shared_data, writer
):
    """The two have equal shapes and names; only PEFT's adapter name in DiffSynth's keys tells them apart."""
    components = parts_of(shared_data, reference(shared_data, "minimax_h3/comfy_stacked"))
    before = state(components)
    up, down = made(1, 72, 2).float(), made(2, 2, 20).float()
    fronts = {"DiffSynth": "", "others": "diffusion_model.", "lightx2v": "dit."}
    name = f"{fronts[writer]}blocks.1.attn.qkv_proj"
    end = ".default.weight" if writer == "DiffSynth" else ".weight"
    mixer = LoraMixer(components)
    mixer.load_lora_weights({f"{name}.lora_A{end}": down, f"{name}.lora_B{end}": up}, "a")

    change = (up.double() @ down.double()).reshape(2, 3, 12, 20)  # heads, q k v, rows of a head
    if writer != "DiffSynth":
        change = (up.double() @ down.double()).reshape(3, 2, 12, 20).transpose(0, 1)
    for number, letter in enumerate("qkv"):
        path = f"transformer_blocks.1.attn.to_{letter}"
        live = components.components["transformer"].get_submodule(path).weight
        wanted = before["transformer", f"{path}.weight"].double() + change[:, number].reshape(24, 20)
        assert distance(live, wanted) < 1e-6


def test_a_family_is_told_by_the_live_class_where_files_of_several_have_one_set_of_names(shared_data):
    for model, file, name in (
        ("chroma/kohya", "chroma/kohya", "Chroma"),
        ("flux2/kohya", "flux2/aitoolkit_bfl", "Flux.2"),
        ("cosmos2/comfy", "cosmos2/comfy", "Cosmos"),
        ("flux/aitoolkit", "flux/fal_kontext", "Flux.1"),
    ):
        mixer = LoraMixer(parts_of(shared_data, reference(shared_data, model)))
        mixer.load_lora_weights(reference(shared_data, file).adapter, "a")
        assert mixer.adapters["a"].base == name

"""Parts that others replace after a load: adapters go to what stands there now, or an error says what was replaced."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline, UNet2DModel
from torch import nn

from lora_mixer import LoraMixer, PipelineStateError
from lora_mixer.guards import Guard
from tests.models import SD_WIDTH, tiny_sd, tiny_sdxl
from tests.small_pipe import SmallPipe, assert_same, mixed, pairs_for, small_pipe, values, written
from tests.weights import Snapshot, components, random_pairs

Loaded = tuple[SmallPipe, LoraMixer, dict[str, Any]]


@pytest.fixture
def loaded() -> Loaded:
    pipe = small_pipe()
    pairs = {"a": pairs_for(pipe, 1), "b": pairs_for(pipe, 2)}
    mixer = LoraMixer(pipe)
    for name, own in pairs.items():
        mixer.load_lora_weights(written(own), name)
    return pipe, mixer, pairs


def other_part(name: str, factor: float = 1.5) -> nn.Module:
    part = small_pipe().components[name]
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(factor)
    return part


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("engine", ["merged", "side"])
@pytest.mark.parametrize("disabled", [False, True])
def test_a_component_that_was_replaced_has_the_mix_and_the_old_one_its_base(
    loaded: Loaded, part: str, engine: Any, disabled: bool
) -> None:
    pipe, mixer, pairs = loaded
    mixer.set_mix({"a": 0.5, "b": -1.0}, engine=engine)
    if disabled:
        mixer.disable_lora()
    old, old_base = pipe.components[part], small_pipe().components[part].state_dict()
    pipe.components[part] = other_part(part)
    base = Snapshot.of(SmallPipe(**{**small_pipe().components, part: other_part(part)}))

    mixer.set_adapters(["a", "b"], [0.5, -1.0])

    base.assert_holds(pipe, mixed((pairs["a"], 0.5), (pairs["b"], -1.0)))
    assert_same(old.state_dict(), old_base)
    assert all(not module._forward_hooks for module in old.modules())
    mixer.unload_lora_weights()
    assert_same(values(pipe), base.state)


def test_any_call_binds_again_not_only_those_that_mix(loaded: Loaded) -> None:
    pipe, mixer, pairs = loaded
    mixer.set_adapters("a", 0.5)
    pipe.components["unet"] = other_part("unet")
    base = Snapshot.of(SmallPipe(**{**small_pipe().components, "unet": other_part("unet")}))

    mixer.delete_adapters("b")

    base.assert_holds(pipe, mixed((pairs["a"], 0.5)))


def test_layers_that_were_replaced_while_disabled_are_bound_again(loaded: Loaded) -> None:
    pipe, mixer, pairs = loaded
    mixer.disable_lora()
    unet = pipe.components["unet"]
    new = nn.Linear(unet.linear.in_features, unet.linear.out_features, bias=unet.linear.bias is not None)
    new.load_state_dict({key: 3 * value for key, value in unet.linear.state_dict().items()})
    unet.linear = new
    base = Snapshot.of(pipe)

    mixer.enable_lora()

    base.assert_holds(pipe, mixed((pairs["b"], 1.0)))
    mixer.disable_lora()
    assert_same(values(pipe), base.state)


def quantised(layer: nn.Linear) -> nn.Linear:
    """As a quantisation library does: another module, made of the weights that are there."""
    new = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    new.load_state_dict(layer.state_dict())
    new.weight = nn.Parameter((layer.weight.data * 16).to(torch.int8), requires_grad=False)
    return new


def test_layers_that_were_replaced_under_a_mix_are_an_error_with_two_ways_out(loaded: Loaded) -> None:
    pipe, mixer, pairs = loaded
    clean = Snapshot.of(small_pipe())
    mixer.set_adapters("a", 0.5)
    unet = pipe.components["unet"]
    old = unet.linear
    unet.linear = quantised(old)

    for call in (mixer.disable_lora, mixer.unload_lora_weights, lambda: mixer.set_adapters("b")):
        with pytest.raises(
            PipelineStateError, match=r"unet\.linear\).*replaced \(by Linear\).*restore_base.*rebase"
        ):
            call()
        assert mixer.get_active_adapters() == ["a"]

    mixer.restore_base()
    assert unet.linear is old
    assert_same(values(pipe), clean.state)
    mixer.set_adapters("a", 0.5)
    clean.assert_holds(pipe, mixed((pairs["a"], 0.5)))


def test_rebase_is_a_way_out_where_what_replaced_layers_emptied_them(loaded: Loaded) -> None:
    pipe, mixer, _ = loaded
    mixer.set_adapters("a", 0.5)
    unet = pipe.components["unet"]
    old, unet.linear = unet.linear, deepcopy(unet.linear)
    old.weight = old.bias = None  # as quanto does to save memory
    made = {f"unet.linear.{key}": value.clone() for key, value in unet.linear.state_dict().items()}
    held = {**values(small_pipe()), **made}  # what was made from the mix, and the kept base of all else

    mixer.rebase()

    assert_same(values(pipe), held)
    mixer.set_adapters("b", 2.0)
    assert not torch.equal(unet.linear.weight, held["unet.linear.weight"])
    mixer.disable_lora()
    assert_same(values(pipe), held)


def test_layers_made_from_a_mix_are_the_base_after_rebase(loaded: Loaded) -> None:
    pipe, mixer, _ = loaded
    mixer.set_adapters("a", 0.5)
    unet = pipe.components["unet"]
    new = deepcopy(unet.linear)
    unet.linear = new

    mixer.rebase()

    held = values(pipe)
    mixer.set_adapters("b", 2.0)
    assert not torch.equal(new.weight, held["unet.linear.weight"])
    mixer.disable_lora()
    assert_same(values(pipe), held)


def test_a_component_of_another_shape_is_refused_and_the_base_stays_in_reach(loaded: Loaded) -> None:
    pipe, mixer, _ = loaded
    old = pipe.components["unet"]
    other = small_pipe(seed=3).components["unet"]
    other.linear = nn.Linear(7, 5)
    pipe.components["unet"] = other

    with pytest.raises(
        PipelineStateError, match=r"parts of the pipeline were replaced.*unet\.linear: .*unload_lora_weights"
    ):
        mixer.set_adapters("a")

    mixer.disable_lora()
    assert_same(old.state_dict(), small_pipe().components["unet"].state_dict())
    mixer.unload_lora_weights()
    mixer.load_lora_weights(written(pairs_for(pipe, 5)), "c")


def test_a_component_that_is_set_aside_keeps_its_adapters(loaded: Loaded) -> None:
    pipe, mixer, pairs = loaded
    clean = Snapshot.of(small_pipe())
    text = pipe.components.pop("text_encoder")
    mixer.set_adapters("a", 0.5)
    pipe.components["text_encoder"] = text

    mixer.set_adapters("b", 0.25)

    clean.assert_holds(pipe, mixed((pairs["b"], 0.25)))
    mixer.disable_lora()
    assert_same(values(pipe), clean.state)


def test_a_copy_of_a_mixed_component_in_its_place_is_mixed_once(loaded: Loaded) -> None:
    pipe, mixer, pairs = loaded
    clean = Snapshot.of(small_pipe())
    mixer.set_adapters("a", 0.5)
    pipe.components["unet"] = deepcopy(pipe.components["unet"])

    mixer.set_adapters("b", 0.25)

    clean.assert_holds(pipe, mixed((pairs["b"], 0.25)))
    mixer.disable_lora()
    assert_same(values(pipe), clean.state)


def test_a_schedule_and_a_reserved_side_path_go_along() -> None:
    pipe, fresh = tiny_sd(), tiny_sd()
    pairs = pairs_for(pipe, 1, lambda part, _: part == "unet")
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs), "a")
    mixer.reserve(rank=8)
    mixer.set_mix({"a": {"weight": 1.0, "schedule": "0@1,1@0.5"}})
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, pipe.unet.config.cross_attention_dim)

    def run() -> torch.Tensor:
        pipe.scheduler.set_timesteps(4)
        with torch.no_grad():
            return torch.cat([pipe.unet(x, t, text).sample for t in pipe.scheduler.timesteps])

    before = run()
    pipe.unet = fresh.unet
    assert not torch.equal(run(), before)

    mixer.enable_lora()

    assert torch.equal(run(), before)
    mixer.unload_lora_weights()
    mixer.release()
    assert all(not module._forward_hooks for module in pipe.unet.modules())


def test_words_go_to_the_text_encoder_that_is_there_now(sd: Any) -> None:
    vectors = torch.randn(2, sd.text_encoder.config.hidden_size)
    mixer = LoraMixer(sd)
    mixer.load_textual_inversion({"ohwx": vectors})
    old = sd.text_encoder
    sd.text_encoder = deepcopy(old)
    try:
        mixer.load_textual_inversion({"other": vectors})
        embedding = sd.text_encoder.get_input_embeddings()
        ids = torch.tensor([sd.tokenizer.convert_tokens_to_ids(["ohwx", "ohwx_1"])])
        assert torch.equal(embedding(ids)[0], vectors)
        assert not old.get_input_embeddings()._forward_hooks
        mixer.unload_textual_inversion()
        assert not embedding._forward_hooks
    finally:
        mixer.unload_lora_weights()
        sd.text_encoder = old


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
@pytest.mark.parametrize("copied", [False, True])
def test_words_are_known_to_what_was_put_in_since_the_last_call_as_a_picture_begins(
    part: str, copied: bool
) -> None:
    def made() -> Any:
        pipe = tiny_sd()
        pipe.tokenizer = deepcopy(pipe.tokenizer)
        return pipe

    def read(pipe: Any) -> torch.Tensor:
        found: torch.Tensor = pipe.encode_prompt("an ohwx cat", "cpu", 1, False)[0]
        return found

    new = getattr(made(), part)
    if part == "text_encoder":
        with torch.no_grad():
            new.get_input_embeddings().weight.mul_(1.5)
    vectors = torch.randn(2, new.config.hidden_size if part == "text_encoder" else SD_WIDTH)
    pipe, wanted = made(), made()
    size = len(wanted.tokenizer)
    setattr(wanted, part, deepcopy(new))
    LoraMixer(wanted).load_textual_inversion({"ohwx": vectors})
    mixer = LoraMixer(pipe)
    mixer.load_textual_inversion({"ohwx": vectors})
    pipe = deepcopy(pipe) if copied else pipe
    setattr(pipe, part, new)

    assert torch.equal(read(pipe), read(wanted))
    mixer = LoraMixer.of(pipe)
    assert list(mixer.tokens) == ["ohwx"]
    mixer.unload_textual_inversion()
    assert len(pipe.tokenizer) == size


@pytest.mark.filterwarnings(
    "ignore::lora_mixer.mixer.UnusedWeightWarning"
)  # a schedule of a text encoder alone
@pytest.mark.parametrize("reached", ["unet", "text_encoder"])
@pytest.mark.parametrize("mix", [0.5, {"weight": 1.0, "schedule": "0@0,1@1"}])
def test_nothing_stays_on_a_part_that_was_replaced(reached: str, mix: Any) -> None:
    """Neither hooks nor refused words, also where adapters change other parts only."""
    pipe = tiny_sd()
    pairs = random_pairs(pipe, lambda name, _: name == reached, alphas=False)
    before = {name: (Snapshot.of(part), vars(part).keys()) for name, part in components(pipe).items()}
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs), "a")
    mixer.set_mix({"a": mix})
    old = components(pipe)
    pipe.unet, pipe.text_encoder = components(tiny_sd())["unet"], components(tiny_sd())["text_encoder"]
    mixer.set_mix({"a": mix})

    for name in ("unet", "text_encoder"):
        clean, attributes = before[name]
        assert vars(old[name]).keys() == attributes
        assert Snapshot.of(old[name]).hooks == clean.hooks
    with pytest.raises(PipelineStateError, match="disable_lora"):
        getattr(pipe, reached).disable_lora() if reached == "unet" else pipe.disable_lora()
    mixer.unload_lora_weights()
    for name in ("unet", "text_encoder"):
        assert vars(getattr(pipe, name)).keys() == before[name][1]
        assert Snapshot.of(getattr(pipe, name)).hooks == before[name][0].hooks


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


def test_a_parametrisation_that_comes_onto_a_mix_has_the_base_under_it_and_the_mix_beside() -> None:
    pipe = small_pipe()
    base, pairs = values(pipe), pairs_for(pipe, 1)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs), "a")
    layer = pipe.components["unet"].linear
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())

    mixer.set_adapters("a", 0.5)

    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    wanted = base["unet.linear.weight"].double() * 2 + mixed((pairs, 0.5))["unet", "linear"]
    result = x.double() @ wanted.T + base["unet.linear.bias"].double()
    assert torch.allclose(layer(x).double(), result, atol=1e-5)
    mixer.disable_lora()
    assert torch.equal(layer.parametrizations.weight.original, base["unet.linear.weight"])
    nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert_same(values(pipe), base)


@pytest.mark.parametrize("call", ["disable_lora", "set_adapters"])
def test_a_parametrisation_that_took_a_mixed_weight_apart_is_an_error_by_name(call: str) -> None:
    pipe = small_pipe()
    base = values(pipe)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1)), "a")
    layer = pipe.components["unet"].linear
    nn.utils.parametrizations.weight_norm(layer)

    with pytest.raises(PipelineStateError, match=r"unet\.linear\.weight.*computed from other parameters"):
        getattr(mixer, call)(*(["a", 0.5] if call == "set_adapters" else []))

    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    mixer.restore_base()
    assert_same(values(pipe), base)


def old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "apart",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.parametrizations.spectral_norm,
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", Doubled()),
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", amount=0.4),
        lambda layer: nn.utils.prune.ln_structured(layer, "weight", amount=1, n=2, dim=0),
        lambda layer: nn.utils.prune.identity(layer, "bias"),
        old_weight_norm,
    ],
    ids=["norm", "orthogonal", "spectral", "doubled", "pruned", "rows", "bias", "old norm"],
)
def test_the_base_comes_back_under_what_took_a_mixed_weight_apart(apart: Any) -> None:
    """It is as if the mix had never been there; what was pruned stays pruned."""
    pipe = small_pipe()
    base = values(pipe)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1)), "a")
    layer: Any = pipe.components["unet"].linear
    torch.manual_seed(0)
    apart(layer)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    kept = layer.weight_mask if hasattr(layer, "weight_mask") else torch.ones(5, 6)
    clean = small_pipe().components["unet"].linear
    torch.manual_seed(0)
    if "weight_mask" not in dict(layer.named_buffers()):
        apart(clean)
    wanted = nn.functional.linear(x, clean.weight * kept, clean.bias)

    mixer.restore_base()
    for call in (lambda: None, mixer.unload_lora_weights):
        call()
        if (
            apart is nn.utils.parametrizations.spectral_norm
        ):  # the vectors that it goes by are of what it found
            assert torch.equal(layer.parametrizations.weight.original, base["unet.linear.weight"])
        else:
            assert torch.allclose(layer(x), wanted, atol=1e-6)
    others = {key: value for key, value in values(pipe).items() if not key.startswith("unet.linear.")}
    assert_same(others, {key: value for key, value in base.items() if key in others})


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("feature", ["merged", "side", "schedule", "negative"])
def test_a_picture_is_made_with_the_mix_in_parts_that_were_replaced_before_it(
    make: Any, part: str, feature: str
) -> None:
    def mixed_pipe() -> tuple[Any, LoraMixer]:
        pipe = make()
        pipe.set_progress_bar_config(disable=True)
        mixer = LoraMixer(pipe)
        mixer.load_lora_weights(written(pairs_for(pipe, 4)), "a")
        mix = {"a": {"weight": 1, "schedule": "linear(0, 1)"}} if feature == "schedule" else {"a": 0.6}
        negative = {"a": -0.5} if feature == "negative" else None
        mixer.set_mix(mix, negative=negative, engine="side" if feature == "side" else "auto")
        return pipe, mixer

    def picture(pipe: Any) -> torch.Tensor:
        latents: torch.Tensor = pipe(
            "a cat", num_inference_steps=2, width=32, height=32, output_type="latent", generator=torch.Generator().manual_seed(1)
        ).images  # fmt: skip
        return latents

    pipe, mixer = mixed_pipe()
    old = getattr(pipe, part)
    setattr(pipe, part, getattr(make(), part))

    made = picture(pipe)

    assert torch.equal(made, picture(mixed_pipe()[0]))
    assert not torch.equal(made, picture(make()))
    assert_same(old.state_dict(), getattr(make(), part).state_dict())
    mixer.unload_lora_weights()
    assert_same(values(pipe), values(make()))
    assert not any(isinstance(value, Guard) for value in vars(pipe).values())


class Saving(SmallPipe):
    """A pipeline that says what it would write."""

    def save_pretrained(self) -> dict[str, torch.Tensor]:
        """Return all values."""
        return values(self)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("state", ["merged", "off", "side", "misfit"])
def test_a_pipeline_is_saved_with_the_mix_in_parts_that_were_replaced_before_it(
    part: str, state: str
) -> None:
    pipe, other = Saving(**components(small_pipe())), components(small_pipe(seed=3))
    pairs = pairs_for(pipe, 1)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs), "a")
    mixer.set_mix({"a": 0.5}, engine="side" if state == "side" else "auto")
    if state == "off":
        mixer.disable_lora()
    if state == "misfit":
        other[part] = nn.Sequential()
    pipe.components[part] = other[part]
    clean = Snapshot.of(Saving(**{**components(small_pipe()), part: components(small_pipe(seed=3))[part]}))

    if state in ("side", "misfit"):
        with pytest.raises(PipelineStateError, match=r"no parameter|not in the new ones"):
            pipe.save_pretrained()
    elif state == "off":
        assert_same(pipe.save_pretrained(), clean.state)
    else:
        assert_same(pipe.save_pretrained(), values(pipe))
        clean.assert_holds(pipe, mixed((pairs, 0.5)))
    mixer.disable_lora()
    if state != "misfit":
        assert_same(values(pipe), clean.state)


def _unconditional(unet: Any) -> Any:
    return DDPMPipeline(unet, DDIMScheduler())


def _unconditional_unet(seed: int) -> Any:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("what", ["unet", "a layer"])
@pytest.mark.parametrize("feature", ["merged", "side", "schedule", "disabled"])
def test_pipelines_that_check_no_inputs_and_read_no_prompts_have_the_mix_in_replaced_parts(
    feature: str, what: str
) -> None:
    def made(seed: int) -> tuple[Any, LoraMixer]:
        pipe = _unconditional(_unconditional_unet(seed))
        pipe.set_progress_bar_config(disable=True)
        mixer = LoraMixer(pipe)
        mixer.load_lora_weights(written(random_pairs(pipe, alphas=False)), "a", activate=False)
        if feature == "schedule":
            mixer.set_mix({"a": {"weight": 1, "schedule": "linear(0, 1)"}})
        elif feature != "disabled":
            mixer.set_mix({"a": 0.6}, engine="side" if feature == "side" else "auto")
        return pipe, mixer

    def picture(pipe: Any) -> Any:
        return torch.tensor(
            pipe(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(1)).images
        )

    pipe, mixer = made(0)
    other = _unconditional_unet(5)
    if what == "unet":
        pipe.unet, wanted = other, made(5)[0]
    else:
        pipe.unet.mid_block.resnets[0].conv1 = other.mid_block.resnets[0].conv1
        wanted, mixed_by_hand = made(0)
        mixed_by_hand.disable_lora()
        wanted.unet.mid_block.resnets[0].conv1.load_state_dict(other.mid_block.resnets[0].conv1.state_dict())
        if feature != "disabled":
            mixed_by_hand.enable_lora()
        if feature == "merged":
            with pytest.raises(PipelineStateError, match=r"restore_base\(\).*rebase\(\)"):
                picture(pipe)
            return

    assert torch.equal(picture(pipe), picture(wanted))
    mixer.unload_lora_weights()
    assert not any(isinstance(value, Guard) for value in vars(pipe).values())


def test_texts_that_were_read_before_a_replaced_encoder_could_be_seen_are_an_error() -> None:
    class Late(DiffusionPipeline):
        def __init__(self, text_encoder: Any, unet: Any) -> None:
            super().__init__()
            self.register_modules(text_encoder=text_encoder, unet=unet)

        def __call__(self, words: torch.Tensor) -> Any:
            text = self.text_encoder(words)[0]
            for t in self.progress_bar([9, 5]):
                found = self.unet(torch.ones(1, 4, 8, 8), t, text).sample
            return found

    sd = tiny_sd()
    pipe = Late(sd.text_encoder, sd.unet)
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 4)), "a")
    words = torch.arange(7)[None]
    wanted = pipe(words)
    pipe.text_encoder = tiny_sd().text_encoder

    with pytest.raises(
        PipelineStateError, match=r"text_encoder was replaced.*Late had read.*enable_lora\(\)"
    ):
        pipe(words)

    mixer.enable_lora()
    assert torch.equal(pipe(words), wanted)


def test_a_picture_of_layers_that_were_made_from_a_mix_is_an_error_with_two_ways_out() -> None:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 4)), "a")
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_q = deepcopy(attention.to_q)

    with pytest.raises(PipelineStateError, match=r"restore_base\(\).*rebase\(\)"):
        pipe("a cat", num_inference_steps=2, width=32, height=32, output_type="latent")

    mixer.restore_base()
    assert_same(values(pipe), values(tiny_sd()))


@pytest.mark.parametrize("engine", ["merged", "auto"])
def test_layers_that_were_emptied_by_what_replaced_them_are_no_dead_end(engine: Any) -> None:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 4)), "a")
    mixer.set_mix({"a": 0.5}, engine=engine)
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    old = attention.to_q
    attention.to_q = new = deepcopy(old)
    old.weight = None
    mixed_values = values(pipe)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    held = {**values(tiny_sd()), key: mixed_values[key]}

    with pytest.raises(PipelineStateError, match=r"1 modules \(to_q\) cannot be put back.*rebase\(\)"):
        mixer.restore_base()

    assert attention.to_q is new
    assert_same(values(pipe), mixed_values)
    mixer.rebase()
    assert_same(values(pipe), held)
    mixer.set_adapters("a", 0.7)
    mixer.disable_lora()
    assert_same(values(pipe), held)

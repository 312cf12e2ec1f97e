"""LoRA Composite and K-LoRA as methods of a mix, against loops written by hand."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import DDIMScheduler

from lora_mixer import LoraMixer, Mix, MixError
from lora_mixer.mixes import KLora
from lora_mixer.mixes.methods.k_lora import magnitude, typical
from tests.layers import layer, randn
from tests.models import tiny_sd
from tests.weights import Pair, Place, random_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STEPS = 3
GUIDANCE = 3.0
CLOSE = 1e-4
FAR = 1e-2
WANTED = ("attn1", "attn2", "conv1", "fc1")
ENGINES = ["side", "merged"]


class Bench:
    """A small pipeline with two adapters, a and b, and their pairs."""

    def __init__(self) -> None:
        self.pipe: Any = tiny_sd()
        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.clean = copy.deepcopy(self.pipe.unet)
        self.mixer = LoraMixer(self.pipe)
        self.pairs: dict[str, dict[Place, Pair]] = {}
        for seed, name in enumerate("ab"):
            pairs = random_pairs(self.pipe, lambda _, path: any(w in path for w in WANTED), seed=seed)
            # so that each of the two wins somewhere
            self.pairs[name] = {
                place: Pair(pair.up, pair.down * (0.5 + (number + seed) % 2), pair.alpha)
                for number, (place, pair) in enumerate(pairs.items())
            }
            self.mixer.load_lora_weights(kohya(self.pairs[name]), name)
        self.mixer.disable_lora()

    def latents(
        self, prompt: Any = "a castle", seeds: tuple[int, ...] = (0,), **options: Any
    ) -> torch.Tensor:
        """Run the pipeline."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": 16, "width": 16}
        return self.pipe(prompt, generator=generators, output_type="latent", **settings | options).images

    def by_hand(
        self, predict: Callable[[int, torch.Tensor, Any, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Denoise in a loop written out; ``predict`` gives the guided noise of a step."""
        with torch.no_grad():
            positive, negative = self.pipe.encode_prompt(
                "a castle", "cpu", 1, do_classifier_free_guidance=True
            )
            scheduler = self.pipe.scheduler
            scheduler.set_timesteps(STEPS)
            shape = (1, 4, 8, 8)
            z = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
            for step, time in enumerate(scheduler.timesteps):
                noise = predict(step, z, time, torch.cat([negative, positive]))
                z = scheduler.step(noise, time, z).prev_sample
        return z


def kohya(pairs: Mapping[Place, Pair]) -> dict[str, torch.Tensor]:
    table = {}
    for (component, path), pair in pairs.items():
        front = {"unet": "lora_unet", "text_encoder": "lora_te"}[component]
        name = f"{front}_{path.replace('.', '_')}"
        if component == "text_encoder" and not path.startswith("text_model"):
            name = f"{front}_text_model_{path.replace('.', '_')}"
        table[f"{name}.lora_down.weight"] = pair.down
        table[f"{name}.lora_up.weight"] = pair.up.reshape(*pair.up.shape, *[1] * (pair.down.ndim - 2))
        if pair.alpha is not None:
            table[f"{name}.alpha"] = torch.tensor(pair.alpha)
    return table


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def guided(noise: torch.Tensor) -> torch.Tensor:
    without, with_text = noise.chunk(2)
    return without + GUIDANCE * (with_text - without)


# --- composite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_composite_is_the_papers_mean_of_both_halves(bench: Bench, engine: str) -> None:
    """u = mean of e_i(z, no text), c = mean of e_i(z, text), e = u + g (c - u), one forward for each adapter."""
    weights = {"a": 0.8, "b": -0.6}

    def predict(_step: int, z: torch.Tensor, time: Any, text: torch.Tensor) -> torch.Tensor:
        without, with_text = [], []
        for name, weight in weights.items():
            bench.mixer.set_adapters(name, weight)
            halves = bench.pipe.unet(torch.cat([z, z]), time, encoder_hidden_states=text).sample.chunk(2)
            without.append(halves[0])
            with_text.append(halves[1])
        u, c = torch.stack(without).mean(0), torch.stack(with_text).mean(0)
        return u + GUIDANCE * (c - u)

    bench.mixer.set_adapters(["a", "b"], list(weights.values()))  # the text is read with the sum
    expected = bench.by_hand(predict)
    with bench.mixer.applied({"adapters": weights, "method": "composite"}, engine=engine):
        found = bench.latents()
    with bench.mixer.applied(weights):
        summed = bench.latents()

    assert (found - expected).abs().max() < CLOSE
    assert (found - summed).abs().max() > FAR


def test_composite_follows_schedules_and_costs_one_forward_for_each_adapter(bench: Bench) -> None:
    calls = []
    handle = bench.pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    mix = Mix.of(
        {"adapters": {"a": {"weight": 0.9, "schedule": "window(0.5, 1)"}, "b": 0.5}, "method": "composite"}
    )

    with bench.mixer.applied(mix, engine="merged"):
        merged = bench.latents()
    with bench.mixer.applied(mix):
        side = bench.latents()
    handle.remove()

    assert len(calls) == 2 * 2 * STEPS
    assert (side - merged).abs().max() < CLOSE


def test_images_of_a_batch_may_have_different_methods(bench: Bench) -> None:
    mixes = ["a:0.8, b:0.5 | composite", "b:0.7", "a:1, b:1 | k_lora"]

    with bench.mixer.applied([Mix.of(mix) for mix in mixes]):
        batch = bench.latents(["a castle", "a fish", "an owl"], (0, 1, 2))

    for place, (mix, prompt) in enumerate(zip(mixes, ["a castle", "a fish", "an owl"], strict=True)):
        with bench.mixer.applied(mix):
            alone = bench.latents(prompt, (place,))
        assert (batch[place] - alone[0]).abs().max() < CLOSE


def test_composite_of_one_adapter_is_that_adapter(bench: Bench) -> None:
    with bench.mixer.applied("a:0.8 | composite"):
        one = bench.latents()
    with bench.mixer.applied("a:0.8"):
        plain = bench.latents()

    assert (one - plain).abs().max() < CLOSE


# --- K-LoRA -----------------------------------------------------------------------------------------------------------


def choices(bench: Bench, method: KLora, step: int) -> dict[Place, str]:
    """Work the paper's formulas out in fp64: which of the two each layer of the UNet has."""
    content, style = bench.pairs["a"], bench.pairs["b"]
    places = [place for place in content if place[0] == "unet"]
    ratios = [float(content[p].delta().abs().sum() / style[p].delta().abs().sum()) for p in places]
    below = [ratio for ratio in ratios if ratio < 3 * sum(ratios) / len(ratios)]
    gamma = sum(below) / len(below)
    scale = method.alpha * step / STEPS + method.beta
    if method.modulo:
        scale = scale % method.alpha
    table = {}
    for place in places:
        k = content[place].rank * style[place].rank
        s_content, s_style = (
            x[place].delta().abs().flatten().sort(descending=True).values[:k].sum() for x in (content, style)
        )
        table[place] = "a" if (s_content / gamma) / (s_style * scale) > 1 else "b"
    return table


@pytest.mark.parametrize("method", [KLora(), KLora(modulo=True), KLora(alpha=0.4, beta=0.8)])
@pytest.mark.parametrize("engine", ENGINES)
def test_k_lora_is_the_papers_choice_in_each_layer_and_step(bench: Bench, engine: str, method: KLora) -> None:
    weights = {"a": 0.8, "b": 0.5}
    counts = []

    def predict(step: int, z: torch.Tensor, time: Any, text: torch.Tensor) -> torch.Tensor:
        unet = copy.deepcopy(bench.clean)
        table = choices(bench, method, step)
        counts.append(sum(name == "a" for name in table.values()) / len(table))
        for (_, path), name in table.items():
            weight = unet.get_submodule(path).weight
            change = weights[name] * bench.pairs[name]["unet", path].delta()
            weight.copy_((weight.double() + change.view(weight.shape)).float())
        return guided(unet(torch.cat([z, z]), time, encoder_hidden_states=text).sample)

    bench.mixer.set_adapters(["a", "b"], list(weights.values()))
    expected = bench.by_hand(predict)
    bench.mixer.disable_lora()
    with bench.mixer.applied({"adapters": weights, "method": method}, engine=engine):
        found = bench.latents()

    assert 0 < min(counts) < 1
    assert method.modulo or counts[0] > counts[-1], "later steps have more of the style"
    assert (found - expected).abs().max() < CLOSE


def test_the_roles_are_those_that_the_method_names(bench: Bench) -> None:
    with bench.mixer.applied('a:1, b:1 | k_lora(content="b", style="a")'):
        swapped = bench.latents()
    with bench.mixer.applied("b:1, a:1 | k_lora"):
        ordered = bench.latents()
    with bench.mixer.applied("a:1, b:1 | k_lora"):
        other = bench.latents()

    assert torch.equal(swapped, ordered)
    assert (other - ordered).abs().max() > FAR


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_the_largest_elements_are_summed_block_by_block(kernel: tuple[int, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr("lora_mixer.mixes.methods.k_lora._BLOCK", 60)
    weights = layer({"lora_down.weight": randn(3, 5, *kernel), "lora_up.weight": randn(7, 3), "alpha": 1.5})
    shape = (7, 5, *kernel)
    delta = weights.delta(torch.zeros(shape, dtype=torch.float64), 1.0).abs().flatten()

    for count in (1, 9, 10**6):
        top, whole = magnitude(weights, shape, torch.zeros(shape), count)
        assert top == pytest.approx(delta.sort(descending=True).values[:count].sum().item(), rel=1e-6)
        assert whole == pytest.approx(delta.sum().item(), rel=1e-6)


def test_the_scale_of_the_style_grows_over_the_run() -> None:
    assert [KLora().advantage(step, 30) for step in (0, 15)] == [0.5, 1.25]
    assert KLora(alpha=0, modulo=True, beta=0.5).advantage(3, 30) == 0.5


def test_the_variant_with_modulo_begins_with_the_style_and_ends_even() -> None:
    """The authors' beta there is 0.85 alpha: 1.275 at first, anew from 0 after a seventh of the run, 1.275 at its end."""
    method = KLora(modulo=True)
    scales = [method.advantage(step, 100) for step in range(100)]

    assert method.beta == pytest.approx(1.275)
    assert scales == pytest.approx([(1.5 * step / 100 + 1.275) % 1.5 for step in range(100)])
    assert scales[0] == pytest.approx(1.275)
    assert min(range(100), key=scales.__getitem__) == 15
    assert KLora(alpha=2, modulo=True).beta == pytest.approx(1.7)
    assert Mix.of("a:1, b:1 | k_lora(modulo=true)").method == method
    for text in ("k_lora(modulo=true)", "k_lora", "k_lora(modulo=true, beta=0.5)"):
        mix = Mix.of(f"a:1, b:1 | {text}")
        assert Mix.of(mix.to_text()) == mix == Mix.of(mix.to_dict())


@pytest.mark.parametrize("share", [0.0, 1e-9, 1e-4])
def test_one_dead_layer_of_the_style_decides_nothing_for_the_others(share: float) -> None:
    quotients = [0.8, 1.0, 1.3, 0.9, 1.1]
    dead = 1 / share if share else float("inf")

    assert typical([*quotients, dead]) == pytest.approx(sum(quotients) / 5)
    assert typical([dead, *quotients, 0.0]) == pytest.approx(sum(quotients) / 6)
    assert typical([float("inf")]) == 1.0
    assert typical([]) == 1.0


def test_a_dead_layer_leaves_the_choice_in_the_others_as_it_was(bench: Bench) -> None:
    places = [place for place in bench.pairs["b"] if place[0] == "unet"]
    dead = dict(bench.pairs["b"])
    dead[places[3]] = Pair(dead[places[3]].up * 0, dead[places[3]].down, dead[places[3]].alpha)
    bench.mixer.load_lora_weights(kohya(dead), "dead")
    bench.mixer.disable_lora()
    tables = {}
    for style in ("b", "dead"):
        with bench.mixer.applied(f"a:1, {style}:1 | k_lora", engine="merged"):
            unet = bench.pipe.unet
            tables[style] = {path: unet.get_submodule(path).weight.detach().clone() for _, path in places}
    bench.mixer.delete_adapters("dead")

    content = dict.fromkeys(tables, 0)
    for _, path in places:
        clean = bench.clean.get_submodule(path).weight
        whole = (clean.double() + bench.pairs["a"]["unet", path].delta().view(clean.shape)).float()
        for style, table in tables.items():
            content[style] += bool((table[path] - whole).abs().max() < 1e-5)
    assert 0 < content["b"] < len(places)
    assert abs(content["dead"] - content["b"]) <= 2  # the dead layer itself, and one at the edge


@pytest.mark.parametrize("broken", ["a", "b"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_layer_of_nan_decides_nothing_for_the_others_and_has_no_place(
    bench: Bench, broken: str, value: float
) -> None:
    places = [place for place in bench.pairs[broken] if place[0] == "unet"]
    spoilt = dict(bench.pairs[broken])
    pair = spoilt[places[2]]
    spoilt[places[2]] = Pair(torch.full_like(pair.up, value), pair.down, pair.alpha)
    bench.mixer.load_lora_weights(kohya(spoilt), "spoilt", allow_nonfinite=True)
    bench.mixer.disable_lora()
    unet, tables = bench.pipe.unet, {}
    for names in ({"a": "a", "b": "b"}, {"a": "a", "b": "b", broken: "spoilt"}):
        with bench.mixer.applied(f"{names['a']}:1, {names['b']}:1 | k_lora", engine="merged"):
            tables[names[broken]] = {p: unet.get_submodule(p).weight.detach().clone() for _, p in places}
    bench.mixer.delete_adapters("spoilt")

    assert all(table.isfinite().all() for table in tables["spoilt"].values())
    changed = [
        path for path, table in tables[broken].items() if not torch.equal(table, tables["spoilt"][path])
    ]
    assert (
        len([path for path in changed if path != places[2][1]]) <= 1
    )  # gamma is the mean of one quotient less


def test_an_adapter_without_ranks_is_refused_by_name(bench: Bench) -> None:
    weight = bench.pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    diff = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.diff": torch.ones_like(weight)
    }
    bench.mixer.load_lora_weights(diff, "full")
    bench.mixer.disable_lora()

    with pytest.raises(MixError, match=r"k_lora goes by ranks.*attn1.to_q \(full\)"):
        bench.mixer.set_mix("a:1, full:1 | k_lora")

    assert bench.mixer.mixes == ()
    bench.mixer.delete_adapters("full")

"""diffusers' calls run unchanged after ``LoraMixer(pipe, take_over=True)``: equal answers, equal pictures, the base afterwards."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import re
import warnings
from typing import TYPE_CHECKING, Any

import diffusers.loaders.lora_base
import diffusers.loaders.lora_pipeline
import diffusers.loaders.peft
import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mixer import AdapterNameError, LoraMixer, LoraMixerError, MixError, PipelineStateError
from lora_mixer.diffusers_arguments import refuse_arguments
from lora_mixer.diffusers_words import _OF_MODELS, _OF_PIPELINES, _hotswap, _set_lora_device
from lora_mixer.errors import ArgumentError
from tests.models import tiny_sd, tiny_sdxl
from tests.test_peers import kohya_file, peft_file, picture
from tests.weights import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Files = dict[str, Path]

CLOSE, FAR = 1e-4, 1e-2


def load(pipe: Any, file: Path, *args: Any, **more: Any) -> None:
    pipe.load_lora_weights(file.parent, *args, weight_name=file.name, **more)


def one_adapter(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"])
    yield pipe.get_active_adapters()
    yield picture(pipe)


def names_given_by_number(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"])
    load(pipe, files["peft"])
    yield pipe.get_list_adapters()
    yield pipe.get_active_adapters()
    yield picture(pipe)


def two_adapters_by_weight(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="pixel")
    load(pipe, files["peft"], adapter_name="toy")
    pipe.set_adapters(["pixel", "toy"], adapter_weights=[0.5, 1.0])
    yield picture(pipe)
    pipe.set_adapters("toy")
    yield picture(pipe)
    yield pipe.get_active_adapters()


def weights_by_component(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    load(pipe, files["peft"], adapter_name="b")
    pipe.set_adapters(["a", "b"], [{"unet": 0.3, "text_encoder": 0.9}, {"text_encoder": 0.2}])
    yield picture(pipe)


def weights_by_block(pipe: Any, files: Files) -> Any:
    """On attentions only: elsewhere a block's weight means more here than in diffusers (docs/mixes.md)."""
    load(pipe, files["attention"], adapter_name="a")
    pipe.set_adapters("a", {"unet": {"down": 0.1, "mid": 0.2, "up": 0.4}})
    yield picture(pipe)


def one_part_alone(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    load(pipe, files["peft"], adapter_name="b")
    pipe.unet.set_adapters(["a", "b"], weights=[0.4, 0.7])
    yield pipe.unet.active_adapters()
    yield picture(pipe)
    pipe.unet.set_adapter("a")
    yield picture(pipe)


def off_and_on(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    pipe.disable_lora()
    yield picture(pipe)
    pipe.enable_lora()
    yield picture(pipe)
    pipe.unet.disable_lora()
    yield picture(pipe)
    pipe.unet.enable_lora()
    yield picture(pipe)


def adapters_of_a_model_off(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    pipe.unet.disable_adapters()
    yield picture(pipe)
    pipe.unet.enable_adapters()
    yield picture(pipe)


def fused_for_good(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    pipe.fuse_lora(lora_scale=0.7)
    yield pipe.num_fused_loras
    yield picture(pipe)
    pipe.unload_lora_weights()
    yield picture(pipe)
    load(pipe, files["peft"], adapter_name="b")
    yield picture(pipe)


def fused_and_taken_back(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    load(pipe, files["peft"], adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.8])
    pipe.fuse_lora(components=["unet", "text_encoder"], adapter_names=["a", "b"])
    yield pipe.num_fused_loras
    yield picture(pipe)
    pipe.unfuse_lora(components=["unet", "text_encoder"])
    yield pipe.num_fused_loras
    yield picture(pipe)


def one_fused_of_two(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    load(pipe, files["peft"], adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.8])
    pipe.fuse_lora(adapter_names=["a"])
    pipe.unload_lora_weights()  # before that diffusers leaves "b" on in layers that "a" has not
    yield picture(pipe)


def fused_part_by_its_model(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    pipe.unet.fuse_lora(lora_scale=0.5)
    yield picture(pipe)
    pipe.unet.unfuse_lora()


def let_go(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    load(pipe, files["peft"], adapter_name="b")
    pipe.delete_adapters("b")
    yield pipe.get_list_adapters()
    pipe.set_adapters("a", 0.6)
    yield picture(pipe)
    pipe.unload_lora_weights()
    yield picture(pipe)
    yield pipe.get_list_adapters()


def swapped_in_place(pipe: Any, files: Files) -> Any:
    load(pipe, files["peft 1"], adapter_name="style")
    yield picture(pipe)
    load(pipe, files["peft 2"], adapter_name="style", hotswap=True)
    yield picture(pipe)
    yield pipe.get_active_adapters()


def moved_to_the_host(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    load(pipe, files["peft"], adapter_name="b")
    pipe.set_lora_device(["a", "b"], "cpu")
    pipe.set_adapters(["b", "a"], [0.5, 0.5])
    yield picture(pipe)


def a_model_loads_by_itself(pipe: Any, files: Files) -> Any:
    table = load_file(files["peft"])
    pipe.unet.load_lora_adapter(table, prefix="unet", adapter_name="u")
    yield pipe.unet.active_adapters()
    yield picture(pipe)
    pipe.unet.save_lora_adapter(files["folder"], adapter_name="u")
    pipe.unet.unload_lora()
    yield picture(pipe)
    pipe.unet.load_lora_adapter(
        files["folder"], prefix=None, adapter_name="again", weight_name="pytorch_lora_weights.safetensors"
    )
    yield picture(pipe)


def pictures_from_pictures(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    yield other(
        "a castle",
        image=torch.full((1, 3, 16, 16), 0.4),
        strength=0.9,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]


def scaled_in_the_call(pipe: Any, files: Files) -> Any:
    load(pipe, files["kohya"], adapter_name="a")
    for scale in (0.5, 0.0, 1.0):
        yield pipe(
            "a castle",
            num_inference_steps=2,
            guidance_scale=3.0,
            height=16,
            width=16,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            cross_attention_kwargs={"scale": scale},
        ).images[0]


SNIPPETS = [
    scaled_in_the_call,
    one_adapter, names_given_by_number, two_adapters_by_weight, weights_by_component, weights_by_block, one_part_alone, off_and_on,
    adapters_of_a_model_off, fused_for_good, fused_and_taken_back, one_fused_of_two, fused_part_by_its_model, let_go,
    swapped_in_place, moved_to_the_host, a_model_loads_by_itself, pictures_from_pictures,
]  # fmt: skip


OF_SDXL = [
    scaled_in_the_call,
    weights_by_component,
    weights_by_block,
    one_part_alone,
    fused_for_good,
    a_model_loads_by_itself,
]
"""What is tried with two text encoders, too."""


@pytest.fixture(scope="module")
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[], Any], Files]:
    make, folder = getattr(request, "param", tiny_sd), tmp_path_factory.mktemp("files")
    files = {
        "kohya": kohya_file(make(), folder / "kohya.safetensors"),
        "peft": peft_file(make, folder / "peft.safetensors"),
        "peft 1": folder / "one.safetensors",
        "attention": folder / "attention.safetensors",
        "peft 2": folder / "other.safetensors",
        "folder": folder / "saved",
    }
    with safe_open(files["peft"], "pt") as file:
        config = {
            k: v
            for k, v in json.loads(file.metadata()["lora_adapter_metadata"]).items()
            if k.startswith("unet.")
        }
        header = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
        own = [key for key in file.keys() if key.startswith("unet.")]  # noqa: SIM118 -- diffusers swaps no text encoders
        for name, scale in (("peft 1", 1.0), ("peft 2", 0.5)):
            save_file({key: scale * file.get_tensor(key) for key in own}, files[name], header)
        save_file({key: file.get_tensor(key) for key in own if "attn" in key}, files["attention"])
    return make, files


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "snippet"),
    [(tiny_sd, snippet) for snippet in SNIPPETS] + [(tiny_sdxl, snippet) for snippet in OF_SDXL],
    indirect=["kind"],
    ids=lambda value: value.__name__,
)
def test_a_snippet_of_diffusers_runs_unchanged(kind: Any, snippet: Any) -> None:
    make, files = kind
    theirs, ours = make(), make()
    base = picture(ours)
    LoraMixer(ours, take_over=True)

    wanted = list(snippet(theirs, files))
    got = list(snippet(ours, files))

    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        if isinstance(other, np.ndarray):
            assert np.abs(one - other).max() < CLOSE
        else:
            assert one == other
    pictures = [x for x in got if isinstance(x, np.ndarray) and x.shape == base.shape]
    assert any(np.abs(x - base).max() > FAR for x in pictures)


@pytest.fixture
def ours(kind: Any) -> tuple[Any, LoraMixer, Files]:
    pipe = kind[0]()
    picture(pipe)
    return pipe, LoraMixer(pipe, take_over=True), kind[1]


def test_all_is_as_before_when_all_is_let_go_and_handed_back(ours: Any) -> None:
    pipe, mixer, files = ours
    clean, words = Snapshot.of(pipe), {n: set(vars(x)) for n, x in (("pipe", pipe), ("unet", pipe.unet))}
    load(pipe, files["kohya"], adapter_name="a")
    pipe.fuse_lora(lora_scale=0.4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    clean.assert_untouched(pipe)
    mixer.hand_back()
    assert {n: set(vars(x)) for n, x in (("pipe", pipe), ("unet", pipe.unet))} == {
        n: {w for w in own if w not in _words()} for n, own in words.items()
    }
    assert pipe.load_lora_weights.__func__ is type(pipe).load_lora_weights


def _words() -> set[str]:
    from lora_mixer import diffusers_words

    return {*diffusers_words._OF_MODELS, *diffusers_words._OF_PIPELINES}


def test_handed_back_with_adapters_diffusers_words_are_refused_again(ours: Any) -> None:
    pipe, mixer, files = ours
    load(pipe, files["kohya"], adapter_name="a")
    mixer.hand_back()
    with pytest.raises(PipelineStateError, match="LoraMixer"):
        pipe.unload_lora_weights()
    mixer.unload_lora_weights()


def test_taken_back_means_the_weights_before_the_scale(ours: Any) -> None:
    """diffusers leaves the scale on the layers (0.42.1): here unfuse_lora undoes fuse_lora."""
    pipe, _, files = ours
    load(pipe, files["kohya"], adapter_name="a")
    before = picture(pipe)
    pipe.fuse_lora(lora_scale=0.3)
    assert np.abs(picture(pipe) - before).max() > FAR
    pipe.unfuse_lora()
    assert np.array_equal(picture(pipe), before)


@pytest.mark.parametrize("why", ["no base kept", "cast", "reserved", "reserved after"])
def test_what_was_fused_beside_the_weights_cannot_stay_in_them_and_is_not_lost(kind: Any, why: str) -> None:
    pipe = kind[0]()
    clean = picture(pipe)
    if why == "cast":
        pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        clean = picture(pipe)
    mixer = LoraMixer(pipe, take_over=True, keep_base="none" if why == "no base kept" else "device")
    load(pipe, kind[1]["kohya"], adapter_name="a")
    if why == "reserved":
        mixer.reserve(rank=8)
    pipe.fuse_lora(lora_scale=0.7)
    if why == "reserved after":
        mixer.reserve(rank=8)
    fused = picture(pipe)
    with pytest.raises(PipelineStateError, match=r"mix of a is in no parameter.*unfuse_lora\(\)"):
        pipe.unload_lora_weights()
    assert np.array_equal(picture(pipe), fused)
    assert (pipe.num_fused_loras, list(mixer.adapters)) == (1, ["a"])
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert np.array_equal(picture(pipe), clean)


@pytest.mark.parametrize(
    ("own", "count"),
    [
        (lambda mixer: mixer.unload_lora_weights(), 0),
        (lambda mixer: mixer.delete_adapters("a"), 0),  # another mix is in effect, as after set_adapters
        (lambda mixer: mixer.delete_adapters(["a", "b"]), 0),
        (lambda mixer: mixer.set_adapters("a", 0.2), 0),
        (lambda mixer: mixer.set_mix({}), 0),
        (lambda mixer: mixer.disable_lora(), 2),
        (lambda mixer: (mixer.disable_lora(), mixer.enable_lora()), 2),
        (lambda mixer: mixer.hand_back(), 0),
    ],
)
def test_what_is_fused_is_counted_as_it_is_whatever_the_mixers_own_words_did(own: Any, count: int) -> None:
    pipe = tiny_sd()
    pair = {"lora_A.weight": torch.ones(1, 12), "lora_B.weight": torch.ones(12, 1)}
    path = "text_encoder.encoder.layers.0.self_attn.q_proj" if hasattr(pipe.text_encoder, "encoder") else ""
    path = path or "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    mixer = LoraMixer(pipe, take_over=True)
    for name in "ab":
        pipe.load_lora_weights({f"{path}.{key}": value for key, value in pair.items()}, adapter_name=name)
    pipe.set_adapters(["a", "b"])
    pipe.fuse_lora()
    assert (pipe.num_fused_loras, pipe.fused_loras) == (2, {"a", "b"})

    own(mixer)

    assert (pipe.num_fused_loras, len(pipe.fused_loras)) == (count, count)
    assert copy.deepcopy(pipe).num_fused_loras == count


def test_the_mixers_own_words_and_diffusers_go_together(ours: Any) -> None:
    pipe, mixer, files = ours
    mixer.load_lora_weights(files["kohya"], "a")
    mixer.set_adapters("a", 0.5)
    half = picture(pipe)
    assert pipe.get_active_adapters() == ["a"]
    pipe.disable_lora()
    assert np.abs(picture(pipe) - half).max() > FAR
    pipe.enable_lora()
    assert np.array_equal(picture(pipe), half)
    mixer.disable_lora()
    pipe.enable_lora()
    assert np.array_equal(picture(pipe), half)


@pytest.mark.parametrize("word", ["fuse_lora", "disable_lora"])
def test_what_diffusers_words_cannot_say_is_refused_and_stays(ours: Any, word: str) -> None:
    pipe, mixer, files = ours
    load(pipe, files["kohya"], adapter_name="a")
    mixer.set_mix("a:1,schedule=linear(0, 1)")
    before = picture(pipe)
    with pytest.raises(MixError, match="schedule"):
        getattr(pipe, word)()
    assert np.array_equal(picture(pipe), before)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda p: p.set_adapters("b"), AdapterNameError, "'b'"),
        (lambda p: p.set_adapters(["a"], [0.5, 0.2]), MixError, "one weight for each"),
        (lambda p: p.set_adapters("a", {"vea": 0.5}), MixError, "vea"),
        (lambda p: p.delete_adapters("b"), AdapterNameError, "'b'"),
        (lambda p: p.fuse_lora(components=[]), MixError, "empty"),
        (lambda p: p.unet.set_adapters("a", float("nan")), MixError, "finite"),
        (lambda p: p.load_lora_weights("/nowhere/x.safetensors"), LoraMixerError, "nowhere"),
        (lambda p: p.unet.save_lora_adapter("/nowhere", "b"), AdapterNameError, "'b'"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(ours: Any, call: Any, error: Any, said: str) -> None:
    pipe, _, files = ours
    load(pipe, files["kohya"], adapter_name="a")
    before, active = picture(pipe), pipe.get_active_adapters()
    with pytest.raises(error, match=said):
        call(pipe)
    assert np.array_equal(picture(pipe), before)
    assert pipe.get_active_adapters() == active


def test_words_without_a_meaning_here_say_so_once(ours: Any) -> None:
    pipe, _, files = ours
    load(pipe, files["kohya"], adapter_name="a")
    with pytest.warns(UserWarning, match="follow the layers"):
        pipe.set_lora_device(["a"], "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.set_lora_device(["a"], "cpu")


def test_a_copied_pipeline_speaks_for_itself(ours: Any) -> None:
    pipe, _, files = ours
    load(pipe, files["kohya"], adapter_name="a")
    before = picture(pipe)
    other = copy.deepcopy(pipe)
    other.set_adapters("a", 0.2)
    assert np.abs(picture(other) - before).max() > FAR
    assert np.array_equal(picture(pipe), before)


def test_a_mixer_without_a_variable_stays(kind: Any) -> None:
    pipe = kind[0]()
    LoraMixer(pipe, take_over=True)
    gc.collect()
    load(pipe, kind[1]["kohya"], adapter_name="a")
    assert LoraMixer.of(pipe).get_active_adapters() == ["a"]


# --- every argument that the installed diffusers has -----------------------------------------------------------------------------


PIPELINES = (diffusers.loaders.lora_base, diffusers.loaders.lora_pipeline)


def arguments_of_diffusers(*words: str, modules: Any = (*PIPELINES, diffusers.loaders.peft)) -> set[str]:
    """Return the names that diffusers' methods take, in their signatures or out of ``kwargs``, in any of its loaders."""
    found: set[str] = set()
    for module in modules:
        for mixin in vars(module).values():
            for word in words if inspect.isclass(mixin) else ():
                method = inspect.unwrap(getattr(mixin, word, None) or id)
                method = getattr(method, "__func__", method)
                if inspect.isfunction(method):
                    source = inspect.getsource(method)
                    for pattern in (
                        r'\bkwargs\.(?:pop|get)\(\s*"(\w+)"',
                        r'"(\w+)" in kwargs',
                        r'\bkwargs\["(\w+)"\]',
                    ):
                        found |= set(re.findall(pattern, source))
                    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
                    found |= {
                        p.name for p in inspect.signature(method).parameters.values() if p.kind not in kinds
                    }
    return found - {"self", "cls", "state_dict"}


OWN = inspect.signature(LoraMixer.load_lora_weights).parameters
LOADS = ("load_lora_weights", "lora_state_dict", "load_lora_adapter", "load_lora_into_unet", "load_lora_into_text_encoder",
         "load_lora_into_transformer")  # fmt: skip
MODELS = {"unet", "transformer", "text_encoder"}


def test_every_argument_of_diffusers_loads_is_taken_or_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    base, mixer = model[0].weight.clone(), LoraMixer(model)
    file = {"0.lora_A.weight": torch.ones(1, 2), "0.lora_B.weight": torch.ones(2, 1)}
    names = arguments_of_diffusers(*LOADS) - MODELS
    assert {
        "prefix",
        "metadata",
        "return_lora_metadata",
        "hotswap",
        "token",
        "load_into_transformer_2",
    } <= names
    for name in names - set(OWN):
        with pytest.raises(ArgumentError, match=rf"load_lora_weights\(\) has no argument {name}: \w"):
            mixer.load_lora_weights(file, **{name: None})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'adaptername\. Did you mean "adapter_name"'):
        mixer.load_lora_weights(file, adaptername="a")  # type: ignore[call-arg]
    assert mixer.get_active_adapters() == []
    assert torch.equal(model[0].weight, base)
    for name in arguments_of_diffusers("save_lora_weights") - set(
        inspect.signature(LoraMixer.save_lora_weights).parameters
    ):
        with pytest.raises(ArgumentError, match=rf"save_lora_weights\(\) has no argument {name}: \w"):
            mixer.save_lora_weights("/nowhere/x.safetensors", **{name: None})  # type: ignore[arg-type]


def takes(method: Any, name: str) -> bool:
    """Whether a word of the mixer takes an argument, names what there is instead, or says once that it means nothing."""
    own = inspect.signature(method).parameters
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values())
    if name in own or not passes_on:
        return name in own
    if method in (_set_lora_device, _hotswap) or ("load" in method.__name__ and name in OWN):
        return True
    with pytest.raises(ArgumentError) as error:
        refuse_arguments("word", [name], ())
    return f"{name}: " in str(error.value)


@pytest.mark.parametrize("of", ["pipelines", "models"])
def test_every_argument_of_diffusers_words_is_taken_or_named(of: str) -> None:
    for word, said in (_OF_PIPELINES if of == "pipelines" else _OF_MODELS).items():
        method = getattr(said, "method", said)
        names = (
            arguments_of_diffusers(word, modules=PIPELINES)
            if of == "pipelines"
            else arguments_of_models(word)
        )
        missing = {name for name in names if not takes(method, name)}
        assert not missing, (word, missing)
    assert not takes(_OF_PIPELINES["load_lora_weights"], "brand_new")
    assert not takes(_OF_PIPELINES["fuse_lora"], "brand_new")


def arguments_of_models(word: str) -> set[str]:
    """The same of diffusers' models alone."""
    method = getattr(diffusers.loaders.peft.PeftAdapterMixin, word, None)
    if method is None:
        return set()
    found = {
        p.name
        for p in inspect.signature(method).parameters.values()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    found |= set(re.findall(r'\bkwargs\.(?:pop|get)\(\s*"(\w+)"', inspect.getsource(method)))
    return found - {"self"}


@pytest.mark.parametrize(
    "call",
    [
        lambda p, f: p.load_lora_weights(f, adapter_name="b", return_lora_metadata=True),
        lambda p, f: p.unet.load_lora_adapter(f, adapter_name="b", network_alphas={}),
        lambda p, f: p.fuse_lora(fuse_unet=True),
        lambda p, f: p.unfuse_lora(unfuse_text_encoder=False),
    ],
)
def test_arguments_without_a_meaning_are_refused_through_diffusers_words(ours: Any, call: Any) -> None:
    pipe, _, files = ours
    load(pipe, files["kohya"], adapter_name="a")
    before, active = picture(pipe), pipe.get_active_adapters()
    with pytest.raises(ArgumentError, match="has no argument"):
        call(pipe, files["kohya"])
    assert np.array_equal(picture(pipe), before)
    assert pipe.get_active_adapters() == active


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_copy_of_a_pipeline_that_was_taken_over_has_its_words_too(ours: Any, way: str, fused: bool) -> None:
    pipe, _, files = ours
    base = Snapshot.of(pipe)
    plain = picture(pipe)
    load(pipe, files["kohya"], adapter_name="a")
    load(pipe, files["peft"], adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, -0.3])
    if fused:
        pipe.fuse_lora()
    mixed = picture(pipe)

    copied = pickle.loads(pickle.dumps(pipe)) if way == "pickle" else copy.deepcopy(pipe)

    assert np.array_equal(picture(copied), mixed)
    if fused:
        copied.unfuse_lora()
    copied.unet.disable_lora()
    copied.text_encoder.disable_adapters()
    assert np.array_equal(picture(copied), plain)
    copied.unload_lora_weights()
    assert (np.array_equal(picture(copied), plain), np.array_equal(picture(pipe), mixed)) == (True, True)
    if fused:
        pipe.unfuse_lora()
    pipe.unload_lora_weights()
    base.assert_values(pipe)

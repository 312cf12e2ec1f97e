"""What a fresh adapter, or a trained one, cannot be: refused with the reason, and the model is as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch

from lora_mixer import (
    AdaLoraConfig,
    FullConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    LoraMixer,
    OFTConfig,
    TrainableTokensConfig,
    UnmatchedTargetsWarning,
)
from lora_mixer.algorithms.hra import HRA
from lora_mixer.engines.trainable import forms
from lora_mixer.errors import (
    AdapterConfigError,
    AdapterNameError,
    CorruptFileError,
    LoraMixerError,
    MatchError,
    PipelineStateError,
    SourceNotFoundError,
    UnsupportedAdapterError,
)
from tests.fresh_models import build, output

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BAD: dict[str, tuple[str, Any, str, str]] = {
    "no module by its name": ("llama", LoraConfig(target_modules=["to_q"]), "target_modules", "no module of LlamaForCausalLM matches 'to_q'"),
    "no module by a regular expression": ("llama", LoraConfig(target_modules=r".*\.to_q"), "target_modules", "its layers end with"),
    "no regular expression": ("llama", LoraConfig(target_modules="*q_proj("), "target_modules", "expected a regular expression"),
    "no layer of this number": ("llama", LoraConfig(target_modules=["q_proj"], layers_to_transform=[9]), "layers_to_transform", "theirs are 0, 1, 2"),
    "all are excluded": ("llama", LoraConfig(target_modules=["q_proj"], exclude_modules=["q_proj"]), "target_modules", "nothing is left"),
    "no usual targets": ("convolutions", LoraConfig(), "target_modules", "no usual targets are known for Convolutions"),
    "a module without a weight": ("llama", LoraConfig(target_modules=["self_attn"]), "target_modules", "LlamaAttention, which has no weight"),
    "a norm": ("llama", LoraConfig(target_modules=["input_layernorm"]), "target_modules", "has no pair"),
    "a rank of 0": ("llama", LoraConfig(r=0, target_modules=["q_proj"]), "r", "at least 1, got 0"),
    "a rank below 0": ("llama", LoHaConfig(r=-2, target_modules=["q_proj"]), "r", "at least 1"),
    "a rank that is not a number": ("llama", LoKrConfig(r="8", target_modules=["q_proj"]), "r", "'8'"),  # type: ignore[arg-type]
    "a rank beyond the layer": ("llama", LoraConfig(r=25, target_modules=["q_proj"]), "target_modules", "has at most 24"),
    "a rank beyond one layer": ("bert", LoraConfig(r=8, target_modules="all-linear"), "target_modules", "classifier rank 8 is beyond the layer, whose matrix 3 x 24"),
    "a rank by pattern beyond": ("llama", LoraConfig(target_modules=["k_proj"], rank_pattern={"1.self_attn.k_proj": 30}), "target_modules", "layers.1.self_attn.k_proj rank 30"),
    "a loha beyond": ("convolutions", LoHaConfig(r=7, target_modules=["point"]), "target_modules", "at most 6"),
    "an adalora beyond": ("llama", AdaLoraConfig(init_r=30, total_step=9, target_modules=["q_proj"]), "target_modules", "at most 24"),
    "a pattern's rank of 0": ("llama", LoraConfig(target_modules=["q_proj"], rank_pattern={"q_proj": 0}), "rank_pattern['q_proj']", "above 0"),
    "a rank by what is no expression": ("llama", LoraConfig(target_modules=["q_proj"], rank_pattern={"q_(proj": 2}), "rank_pattern['q_(proj']", "a regular expression"),
    "a rank by a number": ("llama", LoHaConfig(target_modules=["q_proj"], rank_pattern={7: 2}), "rank_pattern[7]", "a regular expression"),  # type: ignore[dict-item]
    "an alpha by pattern that is no number": ("llama", LoraConfig(target_modules=["q_proj"], alpha_pattern={"q_proj": float("nan")}), "alpha_pattern['q_proj']", "above 0"),
    "an alpha by pattern that is a text": ("llama", LoraConfig(target_modules=["q_proj"], alpha_pattern={"q_proj": "x"}), "alpha_pattern['q_proj']", "above 0"),  # type: ignore[dict-item]
    "dropout of everything": ("llama", LoraConfig(target_modules=["q_proj"], lora_dropout=1.0), "lora_dropout", "below 1"),
    "a start that changes the base": ("llama", LoraConfig(target_modules=["q_proj"], init_lora_weights="corda"), "init_lora_weights", "'corda'"),
    "a start by a number": ("llama", LoraConfig(target_modules=["q_proj"], init_lora_weights=1), "init_lora_weights", "got 1"),
    "a magnitude over a part of the base": ("llama", LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa", use_dora=True), "use_dora", "pissa"),
    "an odd orthogonal rank": ("llama", LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="orthogonal"), "target_modules", "an even one"),
    "pissa on a convolution": ("convolutions", LoraConfig(r=3, target_modules=["picture"], init_lora_weights="pissa"), "target_modules", "not a linear layer"),
    "pissa on a tied head": ("opt", LoraConfig(r=3, target_modules=["lm_head"], init_lora_weights="pissa"), "target_modules", "lm_head shares its weight with other modules"),
    "olora on a tied head": ("opt", LoraConfig(r=3, target_modules=["q_proj", "lm_head"], init_lora_weights="olora"), "target_modules", "lm_head shares its weight with other modules"),
    "eva without data": ("llama", LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="eva"), "init_lora_weights", "needs eva_data"),
    "a bias beside a magnitude": ("llama", LoraConfig(target_modules=["q_proj"], lora_bias=True, use_dora=True), "lora_bias", "choose one"),
    "biases of nobody": ("llama", LoraConfig(target_modules=["q_proj"], bias="some"), "bias", "'lora_only'"),
    "a head that is saved": ("llama", LoraConfig(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"]), "target_modules", "'lm_head' is trained and saved whole"),
    "a head that its task saves": ("bert", LoraConfig(target_modules=["classifier"], task_type="SEQ_CLS"), "target_modules", "cannot have an adapter as well"),
    "a saved module that is not there": ("llama", LoraConfig(target_modules=["q_proj"], modules_to_save=["score"]), "modules_to_save", "ends with 'score'"),
    "a token beyond the table": ("llama", LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 37]), "trainable_token_indices", "resize_token_embeddings first"),
    "a token beyond, alone": ("llama", TrainableTokensConfig(token_indices=[40]), "target_modules", "has 37 rows"),
    "a token twice": ("llama", TrainableTokensConfig(token_indices=[4, 4]), "token_indices", "twice"),
    "no tokens": ("llama", TrainableTokensConfig(), "token_indices", "got []"),
    "tokens of no table": ("llama", TrainableTokensConfig(token_indices=[4], target_modules=["q_proj"]), "target_modules", "not a lookup table"),
    "tokens without a known table": ("convolutions", TrainableTokensConfig(token_indices=[4]), "target_modules", "input embedding"),
    "no number of steps": ("llama", AdaLoraConfig(target_modules=["q_proj"]), "total_step", "got None"),
    "no steps between": ("llama", AdaLoraConfig(target_modules=["q_proj"], total_step=10, tinit=5, tfinal=5), "total_step", "leave none"),
    "more ranks in the end": ("llama", AdaLoraConfig(target_modules=["q_proj"], total_step=10, init_r=2, target_r=4), "target_r", "above init_r"),
    "feed-forward beside the targets": ("llama", IA3Config(target_modules=["k_proj"], feedforward_modules=["up_proj"]), "feedforward_modules", "'up_proj'"),
    "factors of a table": ("llama", IA3Config(target_modules=["embed_tokens"]), "target_modules", "IA3 is for"),
    "neither number nor size of blocks": ("llama", OFTConfig(r=0, oft_block_size=0, target_modules=["q_proj"]), "r", "set the other to 0"),
    "number and size of blocks": ("llama", OFTConfig(r=2, target_modules=["q_proj"]), "r", "oft_block_size = 32"),
    "saved modules in full differences": ("llama", FullConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save", "name the modules as targets"),
    "layers of a regular expression": ("llama", LoraConfig(target_modules=".*q_proj", layers_to_transform=[1]), "layers_to_transform", "regular expression"),
    "a list's name without layers": ("llama", LoraConfig(target_modules=["q_proj"], layers_pattern="layers"), "layers_pattern", "without layers_to_transform"),
    "a parameter that is not there": ("mixtral", LoraConfig(r=2, target_parameters=["experts.w1"]), "target_parameters", "no parameter of the model ends with 'experts.w1'"),
    "a layer's own weight as a parameter": ("mixtral", LoraConfig(r=2, target_parameters=["q_proj.weight"]), "target_parameters", "in target_modules"),
    "a rank beyond the experts": ("mixtral", LoraConfig(r=17, target_modules=[], target_parameters=["experts.down_proj"]), "target_parameters", "of shape (3, 16, 20) has no place for a pair of rank 17"),
    "a magnitude of experts": ("mixtral", LoraConfig(r=2, use_dora=True, target_parameters=["experts.down_proj"]), "use_dora", "no place on bare parameters"),
    "an unknown kind": ("llama", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "peft_type", "LORA, ADALORA"),
    "no kind": ("llama", {"r": 4, "target_modules": ["q_proj"]}, "peft_type", "is not given; fresh adapters are of LORA"),
    "a kind that there is not": ("llama", {"peft_type": "ZZ"}, "peft_type", "got 'ZZ'; fresh adapters are of LORA"),
    "an unknown field": ("llama", {"peft_type": "LORA", "rang": 4, "target_modules": ["q_proj"]}, "rang", "no such field"),
    "a field with a near name": ("llama", {"peft_type": "LORA", "lora_alfa": 4}, "lora_alfa", 'Did you mean "lora_alpha"'),
    "a field of another way forward": ("llama", peft.LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[1], task_type="CAUSAL_LM"), "alora_invocation_tokens", "no such field"),
    "a field of another kind": ("llama", {"peft_type": "LOHA", "lora_alpha": 4}, "lora_alpha", "LoHaConfig has no such field"),
    "a field of eva": ("llama", {"peft_type": "LORA", "eva_config": {"roh": 2}}, "eva_config.roh", 'Did you mean "rho"'),
    "no configuration": ("llama", 4, "", "expected a configuration"),
}  # fmt: skip


def snapshot(model: Any) -> tuple[dict[str, torch.Tensor], list[bool], list[str]]:
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [
            name
            for name, module in model.named_modules()
            if module._forward_hooks or "forward" in vars(module)
        ],
    )


def assert_untouched(model: Any, before: Any) -> None:
    now = snapshot(model)
    assert now[0].keys() == before[0].keys()
    assert all(torch.equal(value, now[0][key]) for key, value in before[0].items())
    assert now[1:] == before[1:]


@pytest.mark.parametrize("case", BAD)
def test_it_is_refused_with_the_field_and_the_reason(case: str) -> None:
    name, config, field, words = BAD[case]
    model = build(name)
    before = snapshot(model)
    mixer = LoraMixer(model)

    with pytest.raises(AdapterConfigError) as caught:
        mixer.add_adapter(config, "mine")

    assert any(problem.place == field and words in problem.text for problem in caught.value.problems)
    assert not mixer.adapters
    assert_untouched(model, before)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    model = build("llama")
    with pytest.raises(AdapterConfigError) as caught:
        LoraMixer(model).add_adapter(LoraConfig(r=0, lora_dropout=2.0, bias="x", target_modules=[]), "mine")
    assert [problem.place for problem in caught.value.problems] == ["r", "lora_dropout", "bias"]
    with pytest.raises(AdapterConfigError) as caught:
        LoraMixer(model).add_adapter(
            LoraConfig(target_modules=["up", "lm_head"], modules_to_save=["score", "lm_head"]), "mine"
        )
    assert {problem.place for problem in caught.value.problems} == {"target_modules", "modules_to_save"}


def test_names_in_use_unknown_components_and_blocks_are_refused_and_others_go_on() -> None:
    model = build("llama")
    mixer = LoraMixer(model)
    mixer.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "mine")
    out = output(model, "llama").detach()
    good = LoraConfig(r=2, target_modules=["q_proj"])

    with pytest.raises(AdapterNameError, match="in use"):
        mixer.add_adapter(good, "mine")
    with pytest.raises(AdapterNameError, match="printable"):
        mixer.add_adapter(good, " ")
    with pytest.raises(MatchError, match="no component 'unet'; this pipeline has model"):
        mixer.add_adapter(good, "other", component="unet")
    with pytest.raises(AdapterConfigError, match="'mid_block': no such part"):
        mixer.add_adapter(good, "other", blocks=["mid_block"])
    with pytest.raises(AdapterConfigError, match="has no meaning without"):
        mixer.add_adapter(good, "other", eva_data=[])
    with pytest.raises(AdapterConfigError, match="too few inputs"):
        mixer.add_adapter(
            LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="eva"), "other", eva_data=[]
        )

    assert mixer.get_active_adapters() == ["mine"]
    assert torch.equal(output(model, "llama"), out)


@pytest.mark.parametrize("kind", [LoraConfig, LoHaConfig])
def test_patterns_that_count_for_no_target_are_told(kind: Any) -> None:
    fields: dict[str, Any] = {"rank_pattern": {"q_proj": 2, "0.self_attn.q_proj": 4, "k_proj": 2}}
    with pytest.warns(UnmatchedTargetsWarning) as said:
        LoraMixer(build("llama")).add_adapter(kind(target_modules=["q_proj"], r=3, **fields), "a")
    told = str(said[0].message)
    assert "rank_pattern['k_proj'] counts for no target" in told
    assert "rank_pattern['0.self_attn.q_proj'] counts for no target" in told  # the first that matches counts
    assert "['q_proj']" not in told


def test_names_that_match_nothing_beside_others_are_warned_of() -> None:
    mixer = LoraMixer(build("llama"))
    with pytest.warns(UnmatchedTargetsWarning, match="no module ends with 'to_q'"):
        mixer.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "to_q"]), "mine")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LoHaConfig(r=2, rank_dropout=0.5, target_modules=["q_proj"]), "rank_dropout"),
        (LoKrConfig(r=2, module_dropout=0.5, target_modules=["q_proj"]), "module_dropout"),
        (OFTConfig(oft_block_size=4, module_dropout=0.5, target_modules=["q_proj"]), "module_dropout"),
    ],
)
def test_dropouts_that_are_not_trained_through_are_refused_by_name(config: Any, words: str) -> None:
    model = build("llama")
    before = snapshot(model)
    with pytest.raises(UnsupportedAdapterError, match=words):
        LoraMixer(model).add_adapter(config, "mine")
    assert_untouched(model, before)


def test_files_that_are_not_there_or_broken_are_refused(tmp_path: Path) -> None:
    mixer = LoraMixer(build("llama"))
    with pytest.raises(SourceNotFoundError, match=r"adapter_config\.json"):
        mixer.add_adapter(tmp_path, "mine")
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(CorruptFileError, match="JSON object"):
        mixer.add_adapter(tmp_path / "adapter_config.json", "mine")
    hard = {"peft_type": "LORA", "target_modules": "(a+)+(b+)+(c*)*x"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(hard))
    with pytest.raises(AdapterConfigError, match="bounded time"):
        mixer.add_adapter(tmp_path, "mine")


def written(
    folder: Path, name: str, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
) -> Path:
    """Write an adapter of a fresh kind whose tensors or fields are changed afterwards."""
    from safetensors.torch import load_file, save_file

    model = build(name)
    mixer = LoraMixer(model)
    fields: Any = (
        {"modules_to_save": ["classifier"]} if name == "bert" else {"trainable_token_indices": [3, 30]}
    )
    mixer.add_adapter(LoraConfig(r=2, init_lora_weights=False, **fields), "mine")
    mixer.save_lora_weights(folder, "mine", format="peft")
    tensors, config = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    change(tensors, config)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(
    "case",
    ["another width", "another number of labels", "tokens that the tokenizer lacks", "another vocabulary"],
)
def test_adapters_for_another_model_are_refused(case: str, tmp_path: Path, *, trainable: bool) -> None:
    def change(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        if case == "another width":
            key = next(key for key in tensors if "q_proj.lora_A" in key)
            tensors[key] = torch.ones(2, 32)
        elif case == "another number of labels":
            tensors["base_model.model.classifier.weight"] = torch.ones(5, 24)
            tensors["base_model.model.classifier.bias"] = torch.ones(5)
        elif case == "another vocabulary":
            tensors["base_model.model.model.embed_tokens.weight"] = torch.ones(64, 24)
        else:
            config["trainable_token_indices"] = [3, 37]

    name = "bert" if "labels" in case else "llama"
    folder = written(tmp_path, name, change)
    model = build(name)
    before = snapshot(model)
    words = {
        "another width": "made for a weight",
        "another number of labels": "5",
        "tokens that the tokenizer lacks": "add the new tokens to the tokenizer",
        "another vocabulary": "64",
    }[case]

    with pytest.raises(LoraMixerError, match=words):
        LoraMixer(model).load_lora_weights(folder, "mine", trainable=trainable, strict=True)

    assert_untouched(model, before)


def test_an_optimizer_step_on_a_model_with_a_mix_in_its_weights_is_refused() -> None:
    model = build("llama").train()
    mixer = LoraMixer(model)
    mixer.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "mine")
    tensors = {key: p.detach().clone() for key, p in mixer.named_trainable_parameters("mine")}
    mixer.delete_adapters("mine")
    before = snapshot(model)
    mixer.load_lora_weights(tensors, "merged")
    assert not torch.equal(
        model.model.layers[0].self_attn.q_proj.weight, before[0]["model.layers.0.self_attn.q_proj.weight"]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    output(model, "llama").sum().backward()

    with pytest.raises(PipelineStateError, match="disable_lora"):
        optimizer.step()

    mixer.unload_lora_weights()
    assert_untouched(model, before)


def test_a_run_that_would_train_nothing_is_told() -> None:
    mixer = LoraMixer(build("llama"))
    mixer.add_adapter(LoraConfig(r=2), "first")
    mixer.add_adapter(LoraConfig(r=2), "second")
    assert mixer.named_trainable_parameters("second")
    with pytest.warns(UserWarning, match=r"set_adapters\('first'\)"):
        mixer.named_trainable_parameters("first")
    mixer.add_adapter(LoraConfig(r=2), "third", activate=False)
    with pytest.warns(UserWarning, match="'third' is not in the mix"):
        mixer.named_trainable_parameters("third")


def test_a_kind_is_named_once() -> None:
    with pytest.raises(AdapterConfigError) as caught:
        LoraMixer(build("llama")).add_adapter({"peft_type": "ZZ"}, "mine")
    assert str(caught.value).count("peft_type") == 1


@pytest.mark.parametrize("size", [0, 2])
def test_a_model_whose_layers_have_no_names_says_so(size: int) -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(size)))
    with pytest.raises(AdapterConfigError, match="it has no layers with names of their own"):
        LoraMixer(layers).add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "mine")


@pytest.mark.parametrize("dropout", [0.5, 0.0])
def test_what_cannot_be_trained_beside_a_module_names_it(dropout: float, monkeypatch: Any) -> None:
    module = torch.nn.Conv1d(4, 4, 1, groups=2)
    layer = forms.Layer(module, (4, 2, 1), lambda: module.weight, component="unet", path="mid.conv")
    monkeypatch.setattr(forms, "unsupported", lambda weight: "packed")

    with pytest.raises(PipelineStateError) as caught:
        forms.form_of(layer, HRA(torch.ones(2, 2), False), "weight", dropout, transposed=False)

    assert (caught.value.component, caught.value.key) == ("unet", "mid.conv")
    assert caught.value.argument == ("lora_dropout" if dropout else None)

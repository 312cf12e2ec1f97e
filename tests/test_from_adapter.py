"""A base by its adapter's word: the right class, labels and arguments, from folders, the Hub's cache and other machines' paths."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import save_file

import lora_mixer
from lora_mixer import from_adapter
from lora_mixer.errors import MatchError, SourceNotFoundError, UnsupportedAdapterError
from tests.fresh_models import build, inputs
from tests.small_language_models import distance

if TYPE_CHECKING:
    from collections.abc import Callable

COMMIT = "c" * 40


def adapter_of_peft(folder: Path, model: Any, base: str | Path, **fields: Any) -> tuple[Path, torch.Tensor]:
    """Write an adapter as PEFT does, and return what the model gives with it."""
    name = "t5" if model.config.model_type == "t5" else "llama"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, r=3, **fields)).eval()
        theirs.peft_config["default"].base_model_name_or_path = str(base)
        theirs.save_pretrained(folder)
    with torch.no_grad():
        out = theirs(**inputs(name))
    return folder, out[0]


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    return folder


CLASSES: dict[str, tuple[str, Callable[[], Any] | None, dict[str, Any]]] = {
    "CAUSAL_LM": ("LlamaForCausalLM", None, {"target_modules": ["q_proj"]}),
    "SEQ_2_SEQ_LM": ("T5ForConditionalGeneration", lambda: build("t5"), {"target_modules": ["q"]}),
    "FEATURE_EXTRACTION": ("LlamaModel", lambda: build("llama").model, {"target_modules": ["q_proj"]}),
    "QUESTION_ANS": (
        "LlamaForQuestionAnswering",
        lambda: transformers.LlamaForQuestionAnswering(build("llama").config),
        {"target_modules": ["q_proj"]},
    ),
    "SEQ_CLS": (
        "LlamaForSequenceClassification",
        lambda: transformers.LlamaForSequenceClassification(_labelled(5)),
        {"target_modules": ["q_proj"]},
    ),
    "TOKEN_CLS": (
        "LlamaForTokenClassification",
        lambda: transformers.LlamaForTokenClassification(_labelled(4)),
        {"target_modules": ["q_proj"]},
    ),
}


def _labelled(count: int) -> Any:
    config = build("llama").config
    config.num_labels, config.pad_token_id = count, 0
    return config


@pytest.mark.parametrize("task", CLASSES)
def test_the_task_chooses_the_class_and_the_saved_head_the_labels(task: str, tmp_path: Path) -> None:
    name, make, fields = CLASSES[task]
    torch.manual_seed(3)
    model = build("llama") if make is None else make()
    if task == "SEQ_CLS":  # the base has a head of two labels, as a checkpoint without labels has
        base = saved(tmp_path / "base", build("llama"))
        torch.manual_seed(3)
        model = transformers.LlamaForSequenceClassification.from_pretrained(
            base, num_labels=5, pad_token_id=0
        )
    else:
        base = saved(tmp_path / "base", model)
    folder, wanted = adapter_of_peft(tmp_path / "adapter", model, base, task_type=task, **fields)

    mixer = from_adapter(folder, adapter_name="mine")

    assert type(mixer.pipe).__name__ == name
    assert not mixer.pipe.training
    assert mixer.get_active_adapters() == ["mine"]
    if task == "SEQ_CLS":
        assert mixer.pipe.config.num_labels == 5
        mixer.pipe.config.pad_token_id = 0
    with torch.no_grad():
        out = mixer.pipe(**inputs("t5" if "T5" in name else "llama"))
    assert distance(out[0], wanted) < 1e-5


def test_without_a_task_auto_mapping_or_the_base_itself_names_the_class(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", build("llama"))
    folder, wanted = adapter_of_peft(tmp_path / "adapter", build("llama"), base, target_modules=["q_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"
    for mapping in (config["auto_mapping"], None):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "auto_mapping": mapping}))
        mixer = from_adapter(folder)
        assert type(mixer.pipe).__name__ == "LlamaForCausalLM"
        with torch.no_grad():
            assert distance(mixer.pipe(**inputs("llama")).logits, wanted) < 1e-5
    odd = {"base_model_class": "Popen", "parent_library": "subprocess"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "auto_mapping": odd}))
    with pytest.raises(UnsupportedAdapterError, match="Popen"):
        from_adapter(folder)


def test_arguments_go_to_the_base_and_the_adapter_can_be_trained(tmp_path: Path, monkeypatch: Any) -> None:
    base = saved(tmp_path / "base", build("llama"))
    folder, _ = adapter_of_peft(tmp_path / "adapter", build("llama"), base, task_type="CAUSAL_LM")
    seen: list[dict[str, Any]] = []
    real = transformers.AutoModelForCausalLM.from_pretrained

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(dict(kwargs))
        kwargs.pop("quantization_config")
        return real(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spy)
    wish = object()

    mixer = from_adapter(
        folder,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        quantization_config=wish,
        base_revision="main",
        local_files_only=True,
        trainable=True,
    )

    assert seen == [
        {
            "dtype": torch.bfloat16,
            "device_map": {"": "cpu"},
            "quantization_config": wish,
            "revision": "main",
            "local_files_only": True,
        }
    ]
    assert mixer.pipe.dtype == torch.bfloat16
    assert mixer.named_trainable_parameters("default_0")


def test_a_saved_table_with_more_rows_makes_room_in_the_base(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", build("llama"))
    model = build("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(40)
    folder, wanted = adapter_of_peft(
        tmp_path / "adapter", model, base, task_type="CAUSAL_LM", modules_to_save=["embed_tokens", "lm_head"]
    )

    mixer = from_adapter(folder)

    assert mixer.pipe.get_input_embeddings().weight.shape[0] == 40
    with torch.no_grad():
        assert distance(mixer.pipe(**inputs("llama")).logits, wanted) < 1e-5


@pytest.mark.parametrize(
    "name", [r"C:\Users\kim\models\llama", "/home/kim/llama", "../llama", "~/nowhere/llama", "runs/7/llama"]
)
def test_a_path_of_another_machine_is_told_and_base_replaces_it(name: str, tmp_path: Path) -> None:
    folder, wanted = adapter_of_peft(tmp_path / "adapter", build("llama"), name, task_type="CAUSAL_LM")
    (folder / "README.md").write_text("---\nbase_model: some/llama\n---\n# an adapter\n")

    with pytest.raises(SourceNotFoundError) as caught:
        from_adapter(folder)

    text = str(caught.value)
    assert repr(name) in text
    assert "base_model_name_or_path of adapter_config.json" in text
    assert "a path of another machine" in text
    assert str(Path(name).expanduser().absolute()) in text
    assert "some/llama (base_model of its card (README.md))" in text
    assert "Pass base=" in text
    mixer = from_adapter(folder, base=saved(tmp_path / "base", build("llama")))
    with torch.no_grad():
        assert distance(mixer.pipe(**inputs("llama")).logits, wanted) < 1e-5


def test_a_base_that_no_one_has_an_empty_folder_and_an_adapter_that_names_none_are_told(
    tmp_path: Path,
) -> None:
    folder, _ = adapter_of_peft(tmp_path / "adapter", build("llama"), "some/llama", task_type="CAUSAL_LM")
    with pytest.raises(
        SourceNotFoundError, match=r"the repository some/llama in the cache only \(local_files_only\)"
    ):
        from_adapter(folder, local_files_only=True, cache_dir=str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFoundError, match=r"no model_index\.json or config\.json in it"):
        from_adapter(folder, base=tmp_path / "empty")
    save_file(
        {"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(4, 1)},
        tmp_path / "bare.safetensors",
    )
    with pytest.raises(SourceNotFoundError, match=r"bare\.safetensors: names no base"):
        from_adapter(tmp_path / "bare.safetensors")
    with pytest.raises(SourceNotFoundError):
        from_adapter(tmp_path / "nothing")


def test_an_adapter_that_does_not_fit_its_base_is_refused(tmp_path: Path) -> None:
    folder, _ = adapter_of_peft(tmp_path / "adapter", build("llama"), "x/y", task_type="CAUSAL_LM")
    with pytest.raises(MatchError):
        from_adapter(folder, base=saved(tmp_path / "other", build("gpt2")))


def in_cache(cache: Path, repository: str, folder: Path) -> None:
    """Put a folder into a Hub cache as the one revision of a repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT)


def test_both_come_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    in_cache(cache, "some/llama", saved(tmp_path / "base", build("llama")))
    folder, wanted = adapter_of_peft(
        tmp_path / "adapter", build("llama"), "some/llama", task_type="CAUSAL_LM"
    )
    in_cache(cache, "kim/adapter", folder)

    mixer = from_adapter("kim/adapter", cache_dir=str(cache), local_files_only=True)

    with torch.no_grad():
        assert distance(mixer.pipe(**inputs("llama")).logits, wanted) < 1e-5


def lora_of(unet: Any) -> dict[str, torch.Tensor]:
    name = next(name for name, _ in unet.named_modules() if name.endswith("attn1.to_q"))
    width = unet.get_submodule(name).weight.shape[1]
    out = unet.get_submodule(name).weight.shape[0]
    return {
        f"unet.{name}.lora_A.weight": torch.ones(2, width),
        f"unet.{name}.lora_B.weight": torch.ones(out, 2),
    }


def test_a_pipeline_by_the_card_by_the_header_and_by_base(tmp_path: Path) -> None:
    pipe = lora_mixer.load_demo()
    pipe.save_pretrained(tmp_path / "demo")
    cache = tmp_path / "cache"
    in_cache(cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path / "demo")
    tensors = lora_of(pipe.unet)
    (tmp_path / "card").mkdir()
    save_file(tensors, tmp_path / "card" / "pytorch_lora_weights.safetensors")
    (tmp_path / "card" / "README.md").write_text(f"---\nbase_model: {tmp_path / 'demo'}\ntags: [lora]\n---\n")
    save_file(tensors, tmp_path / "kohya.safetensors", metadata={"ss_base_model_version": "sd_v1"})
    save_file(
        tensors,
        tmp_path / "spec.safetensors",
        metadata={"modelspec.architecture": "stable-diffusion-v1/lora"},
    )
    save_file(tensors, tmp_path / "bare.safetensors")

    found = [
        from_adapter(tmp_path / "card"),
        from_adapter(tmp_path / "kohya.safetensors", cache_dir=str(cache), local_files_only=True),
        from_adapter(tmp_path / "spec.safetensors", cache_dir=str(cache), local_files_only=True),
        from_adapter(tmp_path / "bare.safetensors", base=tmp_path / "demo", safety_checker=None),
    ]

    mine = lora_mixer.LoraMixer(pipe)
    mine.load_lora_weights(tensors)
    for mixer in found:
        assert isinstance(mixer.pipe, StableDiffusionPipeline)
        for key, value in pipe.unet.state_dict().items():
            assert torch.equal(mixer.pipe.unet.state_dict()[key], value)
    mine.unload_lora_weights()


@pytest.mark.parametrize("arch", ["opt", "gpt2", "llama", "bert", "t5", "vit"])
def test_references_load_by_one_call(arch: str, shared_data: Path) -> None:
    root = shared_data / "transformers"
    for facts_file in sorted((root / "golden" / arch).glob("lora*.json"))[:3]:
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        if not facts["required"]:
            continue
        name, folder = next(iter(facts["adapters"].items()))
        mixer = from_adapter(root / folder, base=root / facts["model"], adapter_name=name)
        wanted = getattr(transformers, facts["class_name"])
        assert issubclass(type(mixer.pipe), transformers.PreTrainedModel)
        if json.loads((root / folder / "adapter_config.json").read_text())["task_type"]:
            assert type(mixer.pipe) is wanted, facts_file.name

"""
The fourteen things that two documents ask for, each beside real peft, transformers and diffusers.

They are the page of Transformers on loading adapters, and PEFT's tutorial on its integrations. ``docs/transformers.md`` has the
table, with a link from each row to its test here.
"""

from __future__ import annotations

import copy
import json
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lora_mixer
from lora_mixer import LoraMixer
from lora_mixer.errors import PipelineStateError
from lora_mixer.training import adapter_trainer
from tests.models import tiny_sd
from tests.small_language_models import distance

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.tensor([[3, 9, 17, 23, 5, 30], [7, 4, 33, 12, 21, 2]])
PAIRS = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
KINDS: dict[str, Any] = {
    "lora": PAIRS,
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"], task_type="CAUSAL_LM"
    ),
    "adalora": peft.AdaLoraConfig(
        init_r=6, target_r=3, total_step=10, target_modules=["q_proj", "fc1"], task_type="CAUSAL_LM"
    ),
}


def opt(width: int = 24) -> Any:
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=41,
        hidden_size=width,
        ffn_dim=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        word_embed_proj_dim=width,
        init_std=0.3,
    )
    return transformers.OPTForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses words of transformers that go
        yield


def adapter(path: Path, config: Any = PAIRS, *, seed: int = 1, base: Any = None, named: str = "") -> Path:
    """Write a PEFT folder with random tensors, as PEFT does."""
    model = peft.get_peft_model(opt() if base is None else base, copy.deepcopy(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.peft_config["default"].base_model_name_or_path = named or None
    model.save_pretrained(path)
    return path


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def state(model: Any) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def is_base(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(before) and all(torch.equal(now[key], before[key]) for key in before)


def pictures(path: Path, seed: int) -> Path:
    """Write an adapter for the tiny pipeline, in diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    table = {}
    for name, module in tiny_sd().unet.named_modules():
        if name.endswith(("to_q", "to_v", "ff.net.2")):
            table[f"unet.{name}.lora_A.weight"] = (
                torch.randn(3, module.in_features, generator=generator) * 0.3
            )
            table[f"unet.{name}.lora_B.weight"] = (
                torch.randn(module.out_features, 3, generator=generator) * 0.3
            )
    path.mkdir(exist_ok=True)
    save_file(table, path / "pytorch_lora_weights.safetensors")
    return path


def noise(pipe: Any) -> torch.Tensor:
    """Run the denoiser once, which is what adapters change."""
    generator = torch.Generator().manual_seed(4)
    width = pipe.unet.config.cross_attention_dim
    sample, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 7, width)))
    with torch.no_grad():
        found: torch.Tensor = pipe.unet(sample, 300, text).sample
    return found


def test_row_01_many_small_adapters_are_kept_beside_one_base(tmp_path: Path) -> None:
    model = opt()
    mixer, before = LoraMixer(model), state(model)
    folders = {f"a{n}": adapter(tmp_path / f"a{n}", seed=n) for n in range(12)}
    for name, folder in folders.items():
        mixer.load_lora_weights(folder, name, activate=False)

    base = sum(p.numel() * p.element_size() for p in model.parameters())
    sizes = mixer.memory().adapters
    for name, folder in folders.items():
        file = load_file(folder / "adapter_model.safetensors")
        assert sizes[name] == sum(tensor.numel() * tensor.element_size() for tensor in file.values())
        assert sizes[name] < base / 10
    assert is_base(model, before)
    theirs = peft.PeftModel.from_pretrained(opt(), folders["a0"], "a0")
    for name, folder in list(folders.items())[1:]:
        theirs.load_adapter(folder, name)
    for name in ("a3", "a11"):
        theirs.set_adapter(name)
        mixer.set_adapters(name)
        assert distance(logits(model), logits(theirs)) < 1e-5


def test_row_02_an_adapter_is_loaded_onto_a_pipeline_by_the_call_of_diffusers(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "toy", 1)
    ours, theirs = tiny_sd(), tiny_sd()
    base = noise(ours)

    LoraMixer(ours).load_lora_weights(
        folder, weight_name="pytorch_lora_weights.safetensors", adapter_name="toy"
    )
    theirs.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors", adapter_name="toy")

    assert distance(noise(ours), noise(theirs)) < 1e-5
    assert distance(noise(ours), base) > 1e-3


def test_row_03_a_second_adapter_becomes_the_active_one(tmp_path: Path) -> None:
    ours, theirs = tiny_sd(), tiny_sd()
    mixer = LoraMixer(ours)
    for seed, name in enumerate(("toy", "cereal")):
        folder = pictures(tmp_path / name, seed)
        mixer.load_lora_weights(folder, adapter_name=name)
        theirs.load_lora_weights(folder, adapter_name=name)
    found = []
    for name in ("cereal", "toy"):
        mixer.set_adapters(name)
        theirs.set_adapters(name)
        found.append(noise(ours))
        assert distance(found[-1], noise(theirs)) < 1e-5
    assert distance(*found) > 1e-3


def test_row_04_several_adapters_are_combined_by_weight(tmp_path: Path) -> None:
    ours, theirs = tiny_sd(), tiny_sd()
    mixer = LoraMixer(ours)
    for seed, name in enumerate(("toy", "cereal")):
        folder = pictures(tmp_path / name, seed)
        mixer.load_lora_weights(folder, adapter_name=name)
        theirs.load_lora_weights(folder, adapter_name=name)
    for weights in ([0.7, 0.4], [1.0, -0.3]):
        mixer.set_adapters(["toy", "cereal"], weights)
        theirs.set_adapters(["toy", "cereal"], adapter_weights=weights)
        assert distance(noise(ours), noise(theirs)) < 1e-5


def test_row_05_the_base_comes_back_bit_for_bit(tmp_path: Path) -> None:
    pipe = tiny_sd()
    before, objects, picture = state(pipe.unet), list(pipe.unet.parameters()), noise(pipe)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(pictures(tmp_path / "toy", 1), adapter_name="toy")
    assert not torch.equal(noise(pipe), picture)

    mixer.disable_lora()

    assert is_base(pipe.unet, before)
    assert torch.equal(noise(pipe), picture)
    assert all(one is two for one, two in zip(pipe.unet.parameters(), objects, strict=True))
    mixer.enable_lora()
    assert not torch.equal(noise(pipe), picture)
    mixer.unload_lora_weights()
    assert is_base(pipe.unet, before)


def test_row_06_a_language_model_takes_an_adapter_from_a_folder(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    ours, theirs = opt(), opt()

    LoraMixer(ours).load_lora_weights(folder)
    theirs.load_adapter(str(folder))

    assert distance(logits(ours), logits(theirs)) < 1e-5
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    assert torch.equal(ours.generate(IDS, **settings), theirs.generate(IDS, **settings))


def test_row_07_the_id_of_an_adapter_gives_base_and_adapter(tmp_path: Path) -> None:
    opt().save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "a", named=str(tmp_path / "base"))

    mixer = lora_mixer.from_adapter(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)

    assert type(mixer.pipe) is type(theirs)
    assert distance(logits(mixer.pipe), logits(theirs)) < 1e-5
    mixer.disable_lora()
    assert is_base(mixer.pipe, state(opt()))


@pytest.mark.parametrize("kind", KINDS)
def test_row_08_lora_ia3_and_adalora_are_read_applied_and_restored(kind: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / kind, KINDS[kind])
    model = opt()
    before, base = state(model), logits(model)
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folder)
    theirs = peft.PeftModel.from_pretrained(opt(), folder).eval()

    assert distance(logits(model), logits(theirs)) < 1e-5
    assert distance(logits(model), base) > 1e-3
    mixer.disable_lora()
    assert is_base(model, before)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("bits", [8, 4])
def test_row_09_adapters_run_beside_a_base_in_8_and_4_bits(bits: int, kind: str, tmp_path: Path) -> None:
    opt(64).save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / kind, KINDS[kind], base=opt(64))
    settings = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    ours, theirs = (
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=settings, device_map="cpu"
        ).eval()
        for _ in range(2)
    )
    base = logits(ours)  # which packs 4-bit weights anew, on a CPU
    before = {name: p.data for name, p in ours.named_parameters()}
    mixer = LoraMixer(ours)
    mixer.load_lora_weights(folder, "a")
    wrapped = peft.PeftModel.from_pretrained(theirs, folder).eval()

    # inputs of 8-bit layers are rounded, those behind others after a rounding of their own
    assert distance(logits(ours), logits(wrapped)) < (5e-2 if bits == 8 else 1e-4)
    assert distance(logits(ours), base) > 0.1
    mixer.unload_lora_weights()
    assert torch.equal(logits(ours), base)
    assert all(p.data.data_ptr() == before[name].data_ptr() for name, p in ours.named_parameters())


def test_row_10_fresh_adapters_are_added_and_their_types_may_differ() -> None:
    ours, theirs = opt(), opt()
    base = logits(ours)
    mixer = LoraMixer(ours)

    mixer.add_adapter(copy.deepcopy(PAIRS), adapter_name="adapter_1")
    theirs.add_adapter(copy.deepcopy(PAIRS), adapter_name="adapter_1")
    mixer.add_adapter(copy.deepcopy(KINDS["ia3"]), adapter_name="adapter_2", activate=False)

    own = dict(mixer.named_trainable_parameters("adapter_1"))
    wanted = {
        f"base_model.model.{name.replace('.adapter_1', '')}": p
        for name, p in theirs.named_parameters()
        if "lora_" in name
    }
    assert {key: tuple(p.shape) for key, p in own.items()} == {
        key: tuple(p.shape) for key, p in wanted.items()
    }
    assert torch.equal(logits(ours), base), "a fresh adapter changes nothing"
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key))))
            wanted[key].copy_(parameter)
    assert distance(logits(ours), logits(theirs.eval())) < 1e-5
    assert mixer.get_active_adapters() == ["adapter_1"]
    mixer.set_adapters(["adapter_1", "adapter_2"])
    assert len(mixer.named_trainable_parameters("adapter_2")) == 6


def test_row_11_outputs_follow_the_adapter_that_is_set(tmp_path: Path) -> None:
    ours, theirs = opt(), opt()
    mixer = LoraMixer(ours)
    for seed in (1, 2):
        folder = adapter(tmp_path / f"a{seed}", seed=seed)
        mixer.load_lora_weights(folder, f"adapter_{seed}")
        theirs.load_adapter(str(folder), adapter_name=f"adapter_{seed}")
    for name in ("adapter_1", "adapter_2", "adapter_1"):
        mixer.set_adapter(name)
        theirs.set_adapter(name)
        assert mixer.get_active_adapters() == theirs.active_adapters()
        assert distance(logits(ours), logits(theirs)) < 1e-5
    with pytest.raises(PipelineStateError, match=r"call the mixer's set_adapter"):
        ours.set_adapter("adapter_1")


def test_row_12_adapters_are_disabled_and_enabled(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", peft.LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["fc2"]))
    ours = opt()
    before, base = state(ours), logits(ours)
    mixer = LoraMixer(ours)
    mixer.load_lora_weights(folder, "a")
    wrapped = peft.PeftModel.from_pretrained(opt(), folder).eval()
    trained = logits(ours)
    assert distance(trained, logits(wrapped)) < 1e-5

    mixer.disable_adapters()

    assert torch.equal(logits(ours), base)
    assert is_base(ours, before)
    with (
        wrapped.disable_adapter()
    ):  # a context of PEFT's models; Transformers models have no disable_adapter()
        assert distance(logits(ours), logits(wrapped)) < 1e-6
    assert not hasattr(opt(), "disable_adapter")
    mixer.enable_adapters()
    assert torch.equal(logits(ours), trained)


def test_row_13_a_trainer_trains_a_fresh_adapter_which_loads_here_and_in_the_peers(tmp_path: Path) -> None:
    model = opt()
    before = state(model)
    mixer = LoraMixer(model)
    torch.manual_seed(5)
    mixer.add_adapter(copy.deepcopy(PAIRS), adapter_name="mine")
    rows = [{"input_ids": IDS[n % 2], "labels": IDS[n % 2]} for n in range(8)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=2e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    adapter_trainer(transformers.Trainer)(model=model, args=args, train_dataset=rows).train()
    model.eval()
    trained = logits(model)
    model.save_pretrained(tmp_path / "peft")
    mixer.unload_lora_weights()

    assert is_base(model, before)
    assert distance(trained, logits(model)) > 1e-3
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    theirs = opt()
    theirs.load_adapter(str(tmp_path / "peft"))
    assert distance(logits(theirs), trained) < 1e-5
    again = opt()
    LoraMixer(again).load_lora_weights(tmp_path / "peft")
    assert distance(logits(again), trained) < 1e-5


def test_row_13_a_plain_loop_trains_on_a_unet_and_kohyas_file_loads_in_diffusers(tmp_path: Path) -> None:
    pipe = tiny_sd()
    before, mixer = state(pipe.unet), LoraMixer(pipe)
    torch.manual_seed(5)
    mixer.add_adapter(
        peft.LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_v"]), "mine", component="unet"
    )
    optimizer = torch.optim.AdamW([p for _, p in mixer.named_trainable_parameters("mine")], lr=1e-2)
    generator = torch.Generator().manual_seed(6)
    for _ in range(3):
        sample, target = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
        text = torch.randn(2, 7, pipe.unet.config.cross_attention_dim, generator=generator)
        torch.nn.functional.mse_loss(pipe.unet(sample, 300, text).sample, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = noise(pipe)
    mixer.save_lora_weights(tmp_path / "kohya.safetensors", "mine", format="kohya")
    mixer.unload_lora_weights()

    assert is_base(pipe.unet, before)
    assert distance(trained, noise(pipe)) > 1e-3
    theirs, again = tiny_sd(), tiny_sd()
    theirs.load_lora_weights(tmp_path / "kohya.safetensors")
    LoraMixer(again).load_lora_weights(tmp_path / "kohya.safetensors")
    assert distance(noise(theirs), trained) < 1e-5
    assert distance(noise(again), trained) < 1e-5


def test_row_14_extra_layers_are_read_applied_trained_saved_and_restored(tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=3, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    folder = adapter(tmp_path / "a", config)
    model = opt()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    before, base = state(model), logits(model)
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folder, "a", trainable=True)
    theirs = peft.PeftModel.from_pretrained(opt(), folder, is_trainable=True).eval()
    assert distance(logits(model), logits(theirs)) < 1e-5

    for net, parameters in (
        (model, [p for _, p in mixer.named_trainable_parameters("a")]),
        (theirs, [p for p in theirs.parameters() if p.requires_grad]),
    ):
        optimizer = torch.optim.SGD(parameters, lr=0.5)
        net(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert distance(logits(model), logits(theirs)) < 1e-5

    mixer.save_lora_weights(tmp_path / "b", "a", format="peft")
    again = peft.PeftModel.from_pretrained(opt(), tmp_path / "b").eval()
    assert distance(logits(again), logits(model)) < 1e-5
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]
    mixer.unload_lora_weights()
    assert is_base(model, before)
    assert torch.equal(logits(model), base)
    assert model.lm_head.weight is model.get_input_embeddings().weight

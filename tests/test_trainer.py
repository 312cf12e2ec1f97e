"""Adapters under transformers' Trainer, accelerate's loop, DDP, compiled and checkpointed models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import peft
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mixer import AdaLoraConfig, LoraConfig, LoraMixer
from lora_mixer.errors import AdapterNameError, MatchError, PipelineStateError, SourceError
from lora_mixer.training import adapter_trainer
from tests.small_language_models import distance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Rows = list[dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    """Let no test have the precision of one before: accelerate keeps one state for a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def opt(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 41,
        "hidden_size": 24,
        "ffn_dim": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 24,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return transformers.OPTForCausalLM(transformers.OPTConfig(**{**settings, **changes}))


def folder_for(model: Any, path: Path, **settings: Any) -> Path:
    """Write a PEFT folder with random tensors."""
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "fc2"], **settings}
    with quiet():
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    with quiet():
        wrapped.save_pretrained(path)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Let PEFT use words of transformers that go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rows(count: int = 12, vocabulary: int = 41) -> Rows:
    ids = torch.randint(2, vocabulary, (count, 7), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(path: Path, **settings: Any) -> Any:
    defaults: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "optim": "adamw_torch",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
    }
    return transformers.TrainingArguments(output_dir=str(path), **{**defaults, **settings})


def trained(model: Any, folder: Path, **settings: Any) -> tuple[LoraMixer, dict[str, nn.Parameter]]:
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folder, "mine", trainable=True, **settings)
    return mixer, dict(mixer.named_trainable_parameters("mine"))


def values(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {key: parameter.detach().clone() for key, parameter in parameters.items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_reference_run_has_its_log_and_resumes_from_the_fourth_step_to_the_same_weights(
    shared_data: Path, tmp_path: Path
) -> None:
    root = shared_data / "transformers"
    folder = root / "training" / "opt_trainer"
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    data = load_file(folder / "data.safetensors")
    dataset = [{key: value[i] for key, value in data.items()} for i in range(len(data["input_ids"]))]
    args = transformers.TrainingArguments(output_dir=str(tmp_path), **facts["trainer"])
    wanted = load_file(folder / "weights.safetensors")
    kind = adapter_trainer(transformers.Trainer)

    for start in (None, "checkpoint-4"):
        model = transformers.OPTForCausalLM.from_pretrained(root / facts["model"])
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        mixer, parameters = trained(model, folder / facts["init"])
        trainer = kind(model=model, args=args, train_dataset=dataset)
        trainer.train(resume_from_checkpoint=None if start is None else str(tmp_path / start))
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(steps) == 8
        for found, logged in zip(steps, facts["log"], strict=True):
            assert found["step"] == logged["step"]
            assert found["learning_rate"] == logged["learning_rate"]
            assert found["loss"] == pytest.approx(logged["loss"], rel=1e-5)
            assert found["grad_norm"] == pytest.approx(logged["grad_norm"], rel=1e-5)
        for key, value in wanted.items():
            assert distance(parameters[key], value) < facts["tolerance"]["weights"], key
        assert same(dict(model.state_dict()), before)
        mixer.unload_lora_weights()
        assert same(dict(model.state_dict()), before)
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert names == set(facts["checkpoint_files"]) - {"generation_config.json"}
    after = json.loads((tmp_path / "checkpoint-8" / "adapter_config.json").read_text(encoding="utf-8"))
    assert after == {
        **json.loads((folder / "init" / "adapter_config.json").read_text(encoding="utf-8")),
        "inference_mode": True,
    }


def test_a_trainer_as_it_is_trains_and_saves_the_adapter_alone(tmp_path: Path) -> None:
    folder = folder_for(opt(), tmp_path / "a", task_type="CAUSAL_LM")
    model = opt()
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    _, parameters = trained(model, folder)
    start = values(parameters)
    trainer = transformers.Trainer(model=model, args=arguments(tmp_path / "out"), train_dataset=rows())

    trainer.train()
    trainer.save_model()

    assert not any(torch.equal(parameters[key], start[key]) for key in start)
    assert same(dict(model.state_dict()), base)
    assert all(p.grad is None for name, p in model.named_parameters() if not p.requires_grad)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "training_args.bin",
    }
    assert same(load_file(tmp_path / "out" / "adapter_model.safetensors"), values(parameters))
    with quiet():
        theirs = peft.PeftModel.from_pretrained(opt(), tmp_path / "out").eval()
    ids = torch.stack([row["input_ids"] for row in rows(3)])
    with torch.no_grad():
        assert distance(theirs(ids).logits, model.eval()(ids).logits) < 1e-5


def test_the_best_state_comes_back_at_the_end(tmp_path: Path) -> None:
    model = opt()
    mixer, parameters = trained(model, folder_for(opt(), tmp_path / "a"))
    kept = list(parameters.values())
    args = arguments(
        tmp_path / "out",
        save_strategy="steps",
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        learning_rate=20.0,
        load_best_model_at_end=True,
    )
    trainer = adapter_trainer(transformers.Trainer)(
        model=model, args=args, train_dataset=rows(), eval_dataset=rows(4)
    )
    trainer.train()

    best = load_file(Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors")
    last = load_file(tmp_path / "out" / "checkpoint-6" / "adapter_model.safetensors")
    assert not same(best, last), "a rate that makes things worse"
    assert same(values(parameters), best)
    assert all(
        one is two for (_, one), two in zip(mixer.named_trainable_parameters("mine"), kept, strict=True)
    )


def test_several_adapters_in_training_have_a_folder_each_and_resume(tmp_path: Path) -> None:
    model, dataset = opt(), rows()
    mixer = LoraMixer(model)
    folders = [folder_for(opt(), tmp_path / name, lora_alpha=alpha) for name, alpha in (("x", 6), ("y", 2))]
    for folder in folders:
        mixer.load_lora_weights(folder, folder.name, trainable=True)
    mixer.set_adapters(["x", "y"])
    kind = adapter_trainer(transformers.Trainer)
    kind(
        model=model,
        args=arguments(tmp_path / "out", save_strategy="steps", save_steps=3),
        train_dataset=dataset,
    ).train()
    wanted = {name: values(dict(mixer.named_trainable_parameters(name))) for name in mixer.trained_adapters}
    assert list(wanted) == ["x", "y"]

    again = opt()
    other = LoraMixer(again)
    for folder in folders:
        other.load_lora_weights(folder, folder.name, trainable=True)
    other.set_adapters(["x", "y"])
    kind(model=again, args=arguments(tmp_path / "out"), train_dataset=dataset).train(
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3")
    )

    for name, state in wanted.items():
        assert same(values(dict(other.named_trainable_parameters(name))), state)


def test_a_checkpoint_of_another_adapter_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = opt()
    mixer, parameters = trained(model, folder_for(opt(), tmp_path / "a"))
    start = values(parameters)
    folder_for(opt(), tmp_path / "wider", r=4)
    folder_for(opt(), tmp_path / "other", target_modules=["v_proj"])
    folder_for(opt(), tmp_path / "scaled", lora_alpha=12)
    for name, reason in (
        ("wider", r"of shape \(4, 24\)"),
        ("other", "missing"),
        ("scaled", "lora_alpha is 12"),
    ):
        with pytest.raises(MatchError, match=reason):
            mixer.load_lora_weights(tmp_path / name, "mine", hotswap=True, trainable=True)
    assert same(values(parameters), start)
    with pytest.raises(AdapterNameError, match="keeps its parameters"):
        mixer.load_lora_weights(tmp_path / "a", "mine", hotswap=True)
    (tmp_path / "empty").mkdir()
    trainer = adapter_trainer(transformers.Trainer)(
        model=model, args=arguments(tmp_path), train_dataset=rows()
    )
    with pytest.raises(SourceError, match=r"no checkpoint of mine"):
        trainer._load_from_checkpoint(str(tmp_path / "empty"))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_checkpointing_and_accumulation_change_no_weight(reentrant: bool | None, tmp_path: Path) -> None:
    folder, found = folder_for(opt(), tmp_path / "a"), []
    for checkpointed in (False, True):
        model = opt()
        _, parameters = trained(model, folder)
        settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_steps": 3}
        if checkpointed and reentrant is not None:
            settings |= {
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
            }
        transformers.Trainer(
            model=model, args=arguments(tmp_path / "out", **settings), train_dataset=rows()
        ).train()
        found.append(values(parameters))
    assert same(*found)


def test_training_in_bf16_keeps_parameters_in_fp32_and_changes_no_weight_of_the_base(tmp_path: Path) -> None:
    model = opt()
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    _, parameters = trained(model, folder_for(opt(), tmp_path / "a"))
    start = values(parameters)
    transformers.Trainer(
        model=model, args=arguments(tmp_path / "out", bf16=True), train_dataset=rows()
    ).train()
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert not any(torch.equal(parameters[key], start[key]) for key in start)
    assert same(dict(model.state_dict()), base)


def test_a_compiled_model_trains_to_the_same_weights(tmp_path: Path) -> None:
    folder, found = folder_for(opt(), tmp_path / "a"), []
    for compiled in (False, True):
        model = opt()
        _, parameters = trained(model, folder)
        call = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
        for row in rows(3):
            call(**{key: value[None] for key, value in row.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(values(parameters))
    assert all(distance(found[1][key], found[0][key]) < 1e-5 for key in found[0])


def test_the_loop_of_accelerate_trains_with_accumulation_and_clipping(tmp_path: Path) -> None:
    folder, found = folder_for(opt(), tmp_path / "a"), []
    batches = [{key: value[None] for key, value in row.items()} for row in rows(4)]
    for by_hand in (True, False):
        model = opt()
        _, parameters = trained(model, folder)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        if by_hand:
            for start in (0, 2):
                for batch in batches[start : start + 2]:
                    (model(**batch).loss / 2).backward()
                nn.utils.clip_grad_norm_(parameters.values(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        else:
            accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
            prepared, optimizer = accelerator.prepare(model, optimizer)
            for batch in batches:
                with accelerator.accumulate(prepared):
                    accelerator.backward(prepared(**batch).loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
                    optimizer.step()
                    optimizer.zero_grad()
        found.append(values(parameters))
    assert all(distance(found[1][key], found[0][key]) < 1e-6 for key in found[0])


def test_a_trainer_adds_the_loss_of_adalora_and_lets_ranks_go_as_a_loop_does(tmp_path: Path) -> None:
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=6, tinit=1, tfinal=1, deltaT=1, target_modules=["q_proj", "fc2"]
    )
    folder, found = tmp_path / "a", []
    with quiet():
        wrapped = peft.get_peft_model(opt(), config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        wrapped.save_pretrained(folder)
    batches: list[dict[str, torch.Tensor]] = []

    class Noted(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append({key: value.clone() for key, value in inputs.items()})
            return super().training_step(model, inputs, *args, **kwargs)

    for by_trainer in (True, False):
        model = opt()
        mixer, parameters = trained(model, folder)
        if by_trainer:
            args = arguments(
                tmp_path / "out",
                max_grad_norm=0.0,
                lr_scheduler_type="constant",
                save_strategy="steps",
                save_steps=6,
            )
            adapter_trainer(Noted)(model=model, args=args, train_dataset=rows()).train()
        else:
            model.train()
            optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.0)
            for step, batch in enumerate(batches):
                (model(**batch).loss + mixer.adapter_loss("mine")).backward()
                optimizer.step()
                mixer.after_step(step)
                optimizer.zero_grad()
        found.append(values(parameters))
        last = parameters
    assert len(batches) == 6
    assert all(distance(found[1][key], found[0][key]) < 1e-5 for key in found[0])
    gone = sum(int((value == 0).sum()) for key, value in found[0].items() if key.endswith("lora_E"))
    assert gone == 4 * 4 - 4 * 2
    # what was cut in the checkpoint comes back at its place
    mixer.load_lora_weights(tmp_path / "out" / "checkpoint-6", "mine", hotswap=True, trainable=True)
    for key, value in values(last).items():
        if key.endswith("lora_E"):
            assert torch.equal(value, found[0][key])


@pytest.mark.parametrize("names", [["x"], ["x", "y"]])
@pytest.mark.parametrize("at", [2, 4])
def test_an_adalora_resumes_to_the_ranks_and_weights_of_a_run_that_went_on(
    names: list[str], at: int, tmp_path: Path
) -> None:
    config = AdaLoraConfig(
        init_r=4, target_r=2, total_step=6, tinit=1, tfinal=1, deltaT=1, target_modules=["q_proj", "fc2"]
    )
    kind = adapter_trainer(transformers.Trainer)
    args = arguments(tmp_path / "out", save_strategy="steps", save_steps=2)

    def run(start: str | None) -> dict[str, dict[str, torch.Tensor]]:
        model = opt()
        mixer = LoraMixer(model)
        torch.manual_seed(3)
        for name in names:
            mixer.add_adapter(config, name)
        mixer.set_adapters(names)
        kind(model=model, args=args, train_dataset=rows()).train(resume_from_checkpoint=start)
        return {name: values(dict(mixer.named_trainable_parameters(name))) for name in names}

    wanted = run(None)
    found = run(str(tmp_path / "out" / f"checkpoint-{at}"))
    for name in names:
        assert same(found[name], wanted[name])
        gone = [int((value == 0).sum()) for key, value in found[name].items() if key.endswith("lora_E")]
        assert sum(gone) == 4 * 4 - 4 * 2


def test_a_training_state_of_another_adapter_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    mixer = LoraMixer(opt())
    settings: dict[str, Any] = {"target_r": 2, "total_step": 6}
    mixer.add_adapter(AdaLoraConfig(init_r=4, target_modules=["q_proj"], **settings), "x")
    state = mixer.training_state("x")
    start = values(dict(mixer.named_trainable_parameters("x")))
    mixer.add_adapter(
        AdaLoraConfig(init_r=3, target_modules=["q_proj"], **settings), "narrow", activate=False
    )
    mixer.add_adapter(AdaLoraConfig(init_r=4, target_modules=["fc1"], **settings), "other", activate=False)
    mixer.add_adapter(LoraConfig(target_modules=["q_proj"]), "plain", activate=False)
    for name in ("narrow", "other", "plain"):
        with pytest.raises(MatchError, match="training state"):
            mixer.load_training_state(name, state)
    with pytest.raises(MatchError, match="not known"):
        mixer.load_training_state("x", {**state, "more": torch.zeros(1)})
    with pytest.raises(MatchError, match="missing"):
        mixer.load_training_state("x", {})
    assert same(values(dict(mixer.named_trainable_parameters("x"))), start)
    assert mixer.training_state("plain") == {}
    mixer.load_training_state("plain", {})


def test_weight_decay_falls_on_the_parameters_that_it_falls_on_with_peft(tmp_path: Path) -> None:
    settings = {
        "target_modules": ["q_proj", "fc2", "embed_tokens"],
        "modules_to_save": ["final_layer_norm", "project_in"],
    }
    folder = folder_for(opt(word_embed_proj_dim=12), tmp_path / "a", **settings)
    with quiet():
        wrapped = peft.get_peft_model(opt(word_embed_proj_dim=12), peft.LoraConfig(r=3, **settings))
    model = opt(word_embed_proj_dim=12)
    _, parameters = trained(model, folder)
    kept: dict[str, list[int]] = {}
    for kind, net in (("here", model), ("there", wrapped)):
        trainer = transformers.Trainer(
            model=net, args=arguments(tmp_path / "out", weight_decay=0.1), train_dataset=rows()
        )
        groups = trainer.create_optimizer().param_groups
        kept[kind] = [sum(p.numel() for p in group["params"]) for group in groups]
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert kept["here"] == kept["there"]
    assert sum(kept["here"]) == sum(p.numel() for p in parameters.values())


def test_the_model_has_one_more_child_and_no_more_keys_until_the_adapter_goes(tmp_path: Path) -> None:
    model = opt()
    modules, keys = list(model.modules()), list(model.state_dict())
    objects = dict(model.named_parameters(remove_duplicate=False))
    folder = folder_for(opt(), tmp_path / "a")
    mixer, parameters = trained(model, folder)

    shown = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(map(id, shown.values())) == set(map(id, parameters.values()))
    assert all(name.startswith("lora_mixer.") for name in shown)
    assert list(model.state_dict()) == keys
    model.load_state_dict(dict(model.state_dict()), strict=True)
    mixer.load_lora_weights(folder, "second", activate=False)  # names are those of the model's own modules
    mixer.set_mix({"mine": 0.5, "second": 0.25})
    with pytest.raises(PipelineStateError, match="saved to a folder"):
        model.save_pretrained(tmp_path / "b", push_to_hub=True)
    mixer.unload_lora_weights()

    assert list(model.modules()) == modules
    assert not model._hf_peft_config_loaded
    now = dict(model.named_parameters(remove_duplicate=False))
    assert now.keys() == objects.keys()
    assert all(now[name] is objects[name] for name in now)
    assert all(p.requires_grad for p in model.parameters())


def test_parameters_follow_the_model_to_another_type(tmp_path: Path) -> None:
    """As they follow it to another device: what layers hold of them are views, which look at them anew."""
    folder = folder_for(opt(), tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    model = opt()
    _, parameters = trained(model, folder)
    ids = torch.stack([row["input_ids"] for row in rows(3)])
    with torch.no_grad():
        before = model(ids).logits
    objects = list(parameters.values())

    model.to(torch.float64)

    assert all(p.dtype == torch.float64 for p in parameters.values())
    assert [id(p) for p in model.parameters() if p.requires_grad] == [id(p) for p in objects]
    logits = model(ids).logits
    assert logits.dtype == torch.float64
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters.values())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
        assert distance(model(ids).logits, before) > 1e-2


def test_an_exception_inside_a_step_leaves_the_base_and_goes_away_without_trace(tmp_path: Path) -> None:
    model = opt()
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modules = list(model.modules())
    mixer, parameters = trained(model, folder_for(opt(), tmp_path / "a"))

    class Breaks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise RuntimeError("out of memory")

    model(**{key: value[None] for key, value in rows(1)[0].items()}).loss.backward()
    with pytest.raises(RuntimeError, match="out of memory"):
        Breaks(parameters.values(), lr=0.1).step()

    def fails(*_: Any) -> None:
        raise RuntimeError("in the forward")

    handle = model.model.decoder.layers[1].register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="in the forward"):
        model(torch.ones(1, 3, dtype=torch.long))
    handle.remove()
    assert same(dict(model.state_dict()), base)
    mixer.unload_lora_weights()
    assert same(dict(model.state_dict()), base)
    assert list(model.modules()) == modules
    assert all(not module._forward_hooks and "forward" not in vars(module) for module in model.modules())


_WORKER = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from safetensors.torch import save_file
from tests.test_trainer import opt, rows, trained
root, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)
model = opt()
_, parameters = trained(model, root / "a")
net = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
for row in rows(4)[rank::2]:
    net(**{key: value[None] for key, value in row.items()}).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
save_file({key: p.detach() for key, p in parameters.items()}, root / f"{rank}.safetensors")
dist.destroy_process_group()
"""


def _ranks(commands: Sequence[list[str]]) -> list[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    return said


def test_two_processes_train_what_one_trains_on_both_batches(tmp_path: Path) -> None:
    folder = folder_for(opt(), tmp_path / "a")
    _ranks([[sys.executable, "-c", _WORKER, str(tmp_path), str(rank)] for rank in (0, 1)])

    model = opt()
    _, parameters = trained(model, folder)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    data = rows(4)
    for start in (0, 2):
        for row in data[start : start + 2]:
            (model(**{key: value[None] for key, value in row.items()}).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert all(distance(found[key], p) < 1e-6 for key, p in parameters.items())


class Net(nn.Module):
    """A model that is none of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.last(torch.tanh(self.first(x)))
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


def test_a_model_of_no_library_trains_and_resumes_under_a_trainer(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    folder = tmp_path / "a"
    folder.mkdir()
    save_file(
        {
            "base_model.model.first.lora_A.weight": torch.randn(2, 5, generator=generator),
            "base_model.model.first.lora_B.weight": torch.randn(7, 2, generator=generator),
        },
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    dataset = [
        {"x": torch.randn(5, generator=generator), "labels": torch.randn(3, generator=generator)}
        for _ in range(8)
    ]
    kind = adapter_trainer(transformers.Trainer)
    found = []
    for start in (None, str(tmp_path / "out" / "checkpoint-3")):
        net = Net()
        _, parameters = trained(net, folder)
        args = arguments(tmp_path / "out", save_strategy="steps", save_steps=3)
        kind(model=net, args=args, train_dataset=dataset).train(resume_from_checkpoint=start)
        found.append(values(parameters))
    assert same(*found)
    assert not (tmp_path / "out" / "checkpoint-3" / "model.safetensors").exists()

"""
Traps of adapters on language models and of training, each with the tests that fall into it where it is not minded.

Numbers are those of the project's list of facts about training; docs/training.md has the table. T33 to T35 are of data sets of
pictures, which this package does not read; of T31 and T32 it has what they lead to.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_mixer import LoraConfig, LoraMixer
from lora_mixer.errors import LoraMixerError, SaveError
from lora_mixer.problem import SaveReason
from tests.fresh_models import build, inputs, output, stirred
from tests.small_language_models import distance

TRAPS = {
    "T1": ("AdaLoRA's divisor is the initial rank", "test_adalora_scales_singular_values_by_alpha_over_the_rank_that_training_began_with", "test_a_run_that_goes_on_from_cut_ranks_keeps_the_divisor_and_the_masks"),
    "T2": ("a mask may keep nothing", "test_adalora_may_keep_no_singular_value_at_all"),
    "T3": ("ties are told by identity", "test_the_named_module_changes_and_its_twins_stay", "test_each_twin_has_its_own_mix_and_rows_of_tokens_reach_all_of_them"),
    "T4": ("PiSSA, OLoRA, KaSA are no plain pairs; fields that are set and not known", "test_pairs_that_started_from_a_part_of_the_base_train_beside_the_whole_base", "test_what_a_configuration_asks_for_and_is_not_known_is_refused_by_name"),
    "T5": ("keys beside known ones that no rule reads", "test_keys_that_no_rule_reads_beside_a_configuration_are_refused_by_name", "test_a_part_of_kasa_is_refused_by_name"),
    "T6": ("keys of saved modules look like the model's own", "test_modules_to_save_and_biases_of_peft_folders_are_values", "test_row_14_extra_layers_are_read_applied_trained_saved_and_restored"),
    "T7": ("trained tokens are rows, not differences", "test_trained_tokens_replace_their_rows"),
    "T8": ("lora_alpha and alpha, r and init_r", "test_every_kind_reads_what_it_writes_and_what_peft_writes", "test_it_is_refused_with_the_field_and_the_reason"),
    "T9": ("layers_to_transform beside a regular expression", "test_it_is_refused_with_the_field_and_the_reason"),
    "T10": ("DoRA's length is a constant, in any order of adapters, with dropped inputs", "test_the_backward_of_every_linear_kind_is_that_of_its_formula", "test_outputs_are_those_of_both_in_the_weights", "test_inputs_that_a_dora_drops_are_dropped_of_both_products"),
    "T11": ("weight 0 of a DoRA is the base", "test_weight_0_of_a_dora_in_training_is_the_base"),
    "T12": ("B of bare parameters is rank-major", "test_gradients_and_weights_are_those_of_peft", "test_outputs_tokens_and_base_are_those_of_peft"),
    "T13": ("target_parameters has no order", "test_outputs_tokens_and_base_are_those_of_peft"),
    "T14": ("Conv1D's weight is (in, out)", "test_modules_shapes_starts_and_gradients_are_those_of_peft", "test_rows_of_other_architectures"),
    "T15": ("scaled lookups", "test_a_pair_on_a_scaled_lookup_is_scaled_in_training_too"),
    "T16": ("layers whose forward is never called", "test_all_linear_layers_leave_out_what_is_not_called_and_say_so", "test_a_layer_whose_forward_is_never_called_is_not_trained_without_a_word"),
    "T17": ("a module that is called twice has one adapter", "test_layers_that_are_called_several_times_have_one_adapter_and_the_sum_of_its_gradients"),
    "T18": ("nothing is kept across an optimizer's step", "test_steps_reach_the_next_call_and_nothing_of_the_model", "test_a_fused_step_is_seen_by_the_next_call"),
    "T19": ("fused optimizers raise no version counter", "test_an_optimizer_step_on_weights_with_a_mix_is_refused", "test_a_fused_step_is_seen_by_the_next_call"),
    "T20": ("sums in place break autograd and checkpointing", "test_checkpointing_gives_every_kind_the_same_gradients"),
    "T21": ("a step on merged weights trains the base", "test_an_optimizer_step_on_a_model_with_a_mix_in_its_weights_is_refused"),
    "T22": ("a base that asks for gradients", "test_steps_reach_the_next_call_and_nothing_of_the_model"),
    "T23": ("dropouts of the base are the user's", "test_training_leaves_the_mode_of_the_model_to_the_user"),
    "T24": ("weight decay by name", "test_weight_decay_falls_on_the_parameters_that_it_falls_on_with_peft"),
    "T25": ("rates go with alpha", "test_rates_by_pattern_and_for_the_second_half"),
    "T26": ("starts are alike by distribution, not by seed", "test_modules_shapes_starts_and_gradients_are_those_of_peft"),
    "T27": ("the number of labels is that of the saved head", "test_the_task_chooses_the_class_and_the_saved_head_the_labels"),
    "T28": ("bases by paths of other machines", "test_a_path_of_another_machine_is_told_and_base_replaces_it"),
    "T29": ("a vocabulary that was resized", "test_a_saved_table_with_more_rows_makes_room_in_the_base", "test_adapters_for_another_model_are_refused"),
    "T30": ("padding on the left", "test_outputs_tokens_and_base_are_those_of_peft", "test_rows_of_a_language_model_generate_with_their_own_adapters_of_any_kind"),
    "T31": ("a loss over an SNR of 0 is no number", "test_what_has_come_to_no_number_is_not_written_over_what_was_saved"),
    "T32": ("parts in fp16 give no numbers", "test_what_has_come_to_no_number_is_not_written_over_what_was_saved", "test_every_kind_trains_a_half_precision_base_under_autocast_in_fp32"),
    "T36": ("what belongs to a checkpoint", "test_the_reference_run_has_its_log_and_resumes_from_the_fourth_step_to_the_same_weights", "test_an_adalora_resumes_to_the_ranks_and_weights_of_a_run_that_went_on"),
}  # fmt: skip
PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"


def test_each_trap_names_tests_that_are_there_and_the_page_has_the_table() -> None:
    known = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert [*TRAPS] == [f"T{n}" for n in (*range(1, 33), 36)]
    assert not [where for _, *places in TRAPS.values() for where in places if where not in known]
    rows = re.findall(r"^\| (T\d+) \| (.*) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    shown = [
        (key, what, ", ".join(f"`{place}`" for place in places)) for key, (what, *places) in TRAPS.items()
    ]
    assert rows == shown


def theirs(model: Any, config: Any, values: dict[str, torch.Tensor]) -> Any:
    """Let PEFT put values on a model, to be trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config).eval()
        peft.set_peft_model_state_dict(wrapped, values)
    return wrapped


def check_beside_peft(name: str, config: Any) -> None:
    """Train on a model with PEFT's adapter and with one of the same values here: outputs and gradients are equal."""
    model = build(name)
    mixer = LoraMixer(model)
    mixer.add_adapter(config, "a")
    parameters = stirred(mixer)
    other = theirs(build(name), config, {key: p.detach() for key, p in parameters.items()})
    outs = [output(net, name) for net in (model, other)]
    assert distance(*outs) < 1e-5
    for out in outs:
        out.square().sum().backward()
    wanted = {key.replace(".default", ""): p.grad for key, p in other.named_parameters() if p.requires_grad}
    assert parameters.keys() == wanted.keys()
    for key, p in parameters.items():
        assert distance(p.grad, wanted[key]) < 2e-5, key


def test_inputs_that_a_dora_drops_are_dropped_of_both_products() -> None:
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], use_dora=True, lora_dropout=0.4)
    model = build("llama")
    mixer = LoraMixer(model)
    mixer.add_adapter(config, "a")
    parameters = stirred(mixer)
    other = theirs(build("llama"), config, {key: p.detach() for key, p in parameters.items()})
    found = []
    for net in (model, other):
        net.train()
        torch.manual_seed(4)
        out = output(net, "llama")
        out.square().sum().backward()
        found.append(out.detach())
    assert distance(found[0], found[1]) < 1e-5
    wanted = {
        key.replace(".default", ""): p.grad for key, p in other.named_parameters() if p.grad is not None
    }
    for key, p in parameters.items():
        assert distance(p.grad, wanted[key if key in wanted else f"{key}.weight"]) < 2e-5, key
    model.eval()
    assert distance(output(model, "llama"), found[0]) > 1e-3


def test_weight_0_of_a_dora_in_training_is_the_base() -> None:
    model = build("llama")
    base = output(model, "llama")
    mixer = LoraMixer(model)
    mixer.add_adapter(LoraConfig(r=3, target_modules=["q_proj"], use_dora=True), "a")
    stirred(mixer)
    mixer.set_mix({"a": 0.0})
    assert torch.equal(output(model, "llama"), base)


def test_a_pair_on_a_scaled_lookup_is_scaled_in_training_too() -> None:
    check_beside_peft("gemma", peft.LoraConfig(r=3, target_modules=["embed_tokens", "v_proj"]))


@pytest.mark.parametrize("trainable", [False, True])
def test_a_layer_whose_forward_is_never_called_is_not_trained_without_a_word(
    trainable: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0))
    tensors = {
        "0.self_attn.out_proj.lora_A.weight": torch.randn(2, 8),
        "0.self_attn.out_proj.lora_B.weight": torch.randn(8, 2),
    }
    mixer, x = LoraMixer(model), torch.randn(1, 3, 8)
    save_file(tensors, tmp_path / "a.safetensors")
    base = model(x)
    if trainable:
        with pytest.raises(LoraMixerError, match="never called"):
            mixer.load_lora_weights(tmp_path / "a.safetensors", "a", trainable=True)
        assert all(p.requires_grad for p in model.parameters())
        assert torch.equal(model(x), base)
    else:
        mixer.load_lora_weights(tmp_path / "a.safetensors", "a")
        assert distance(model(x), base) > 1e-3


def test_layers_that_are_called_several_times_have_one_adapter_and_the_sum_of_its_gradients() -> None:
    check_beside_peft("albert", peft.LoraConfig(r=3, target_modules=["query", "ffn"]))


@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens"], ["norm"]])
def test_a_fused_step_is_seen_by_the_next_call(targets: list[str]) -> None:
    from lora_mixer import FullConfig

    model = build("llama")
    mixer = LoraMixer(model)
    kind: Any = FullConfig if targets == ["norm"] else LoraConfig
    mixer.add_adapter(kind(target_modules=targets), "a")
    parameters = stirred(mixer)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1, fused=True)
    before = output(model, "llama")
    before.square().sum().backward()
    optimizer.step()
    after = output(model, "llama")
    assert distance(after, before) > 1e-3
    again = LoraMixer(twin := build("llama"))
    again.add_adapter(kind(target_modules=targets), "a")
    with torch.no_grad():
        for key, p in again.named_trainable_parameters("a"):
            p.copy_(parameters[key])
    assert torch.equal(output(twin, "llama"), after)


@pytest.mark.parametrize("training", [False, True])
def test_training_leaves_the_mode_of_the_model_to_the_user(training: bool) -> None:
    model = build("bert").train(training)
    mixer = LoraMixer(model)
    mixer.add_adapter(LoraConfig(r=2, target_modules=["query"]), "a")
    assert all(module.training is training for module in model.modules())
    model(**inputs("bert")).logits.sum().backward()
    mixer.delete_adapters("a")
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_has_come_to_no_number_is_not_written_over_what_was_saved(value: float, tmp_path: Path) -> None:
    mixer = LoraMixer(build("llama"))
    mixer.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]), "a")
    parameters = stirred(mixer)
    mixer.save_lora_weights(tmp_path, "a", format="peft")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    snr = torch.tensor([4.0, 0.0])  # of a schedule whose last step is noise alone
    weight = 5 / snr if value == float("inf") else snr.clamp(max=5) / snr
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    (output(mixer.pipe, "llama")[:2].square().mean((1, 2)) * weight).mean().backward()
    optimizer.step()

    with pytest.raises(SaveError, match=r"NaN or Inf in .* the training diverged") as caught:
        mixer.save_lora_weights(tmp_path, "a", format="peft")

    assert {problem.place for problem in caught.value.problems} <= {*parameters}
    assert {problem.reason for problem in caught.value.problems} == {SaveReason.VALUES}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

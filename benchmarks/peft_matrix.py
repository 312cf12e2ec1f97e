"""
Architectures of transformers by methods of PEFT, as a table in Markdown: ``python -m benchmarks.peft_matrix > docs/peft-matrix.md``.

Each cell makes a tiny random model, lets PEFT write an adapter of random tensors for it, and compares the outputs of that folder in PEFT and
here, then looks whether the base is back bit for bit. A cell is ``equal`` (1e-5), ``refused`` with an error of this package whose
reason stands below, or **different**; ``-`` is where PEFT itself cannot make or load the adapter.

Options: ``--only WORD`` for architectures with that word in their names.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers

from lora_mixer import LoraMixer, LoraMixerError

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE = 1e-5
_TEXT = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GATED = {**_TEXT, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}


@dataclass(frozen=True)
class Architecture:
    """
    A tiny model.

    Attributes:
        kind: Its class in transformers.
        settings: Of its configuration.
        pair: Two linear layers that most methods are put on: one whose output goes on in attention, one of the feed-forward.
        embedding: The lookup, or nothing.
        head: What ``modules_to_save`` saves.
        norm: A norm.
        convolution: A convolution, or nothing.
        experts: Bare parameters of experts, or none.
    """

    kind: str
    settings: dict[str, Any]
    pair: tuple[str, str]
    head: str
    norm: str
    embedding: str = ""
    convolution: str = ""
    experts: tuple[str, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    "OPT": Architecture(
        "OPTForCausalLM",
        {**_TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        ("q_proj", "fc2"), "lm_head", "final_layer_norm", "embed_tokens",
    ),
    "GPT-2": Architecture(
        "GPT2LMHeadModel", {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ("c_attn", "mlp.c_proj"), "lm_head", "ln_f", "wte",
    ),
    "Llama": Architecture("LlamaForCausalLM", _GATED, ("q_proj", "down_proj"), "lm_head", "post_attention_layernorm", "embed_tokens"),
    "Mistral": Architecture("MistralForCausalLM", _GATED, ("v_proj", "up_proj"), "lm_head", "input_layernorm", "embed_tokens"),
    "Qwen2": Architecture(
        "Qwen2ForCausalLM", {**_GATED, "tie_word_embeddings": True}, ("k_proj", "gate_proj"), "lm_head", "input_layernorm", "embed_tokens",
    ),
    "Qwen3": Architecture("Qwen3ForCausalLM", {**_GATED, "head_dim": 8}, ("q_proj", "down_proj"), "lm_head", "q_norm", "embed_tokens"),
    "Gemma": Architecture("GemmaForCausalLM", {**_GATED, "head_dim": 8}, ("q_proj", "down_proj"), "lm_head", "input_layernorm", "embed_tokens"),
    "Phi-3": Architecture(
        "Phi3ForCausalLM", {**_GATED, "pad_token_id": 0}, ("qkv_proj", "down_proj"), "lm_head", "input_layernorm", "embed_tokens",
    ),
    "GPT-NeoX": Architecture(
        "GPTNeoXForCausalLM", {**_TEXT, "intermediate_size": 48, "max_position_embeddings": 64},
        ("query_key_value", "dense_4h_to_h"), "embed_out", "input_layernorm", "embed_in",
    ),
    "BLOOM": Architecture(
        "BloomForCausalLM", {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        ("query_key_value", "dense_4h_to_h"), "lm_head", "input_layernorm", "word_embeddings",
    ),
    "BERT": Architecture(
        "BertForSequenceClassification", {**_TEXT, "intermediate_size": 48, "num_labels": 3},
        ("query", "intermediate.dense"), "classifier", "attention.output.LayerNorm", "word_embeddings",
    ),
    "RoBERTa": Architecture(
        "RobertaForTokenClassification", {**_TEXT, "intermediate_size": 48, "num_labels": 3, "pad_token_id": 1},
        ("value", "output.dense"), "classifier", "attention.output.LayerNorm", "word_embeddings",
    ),
    "DistilBERT": Architecture(
        "DistilBertForQuestionAnswering", {"vocab_size": 61, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
        ("q_lin", "lin2"), "qa_outputs", "sa_layer_norm", "word_embeddings",
    ),
    "T5": Architecture(
        "T5ForConditionalGeneration",
        {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        ("q", "wo"), "lm_head", "final_layer_norm", "shared",
    ),
    "BART": Architecture(
        "BartForConditionalGeneration",
        {"vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64},
        ("q_proj", "fc2"), "lm_head", "self_attn_layer_norm", "shared",
    ),
    "ViT": Architecture(
        "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16, "patch_size": 8,
         "num_labels": 3},
        ("q_proj", "fc1"), "classifier", "layernorm_before", "", "projection",
    ),
    "Mixtral": Architecture(
        "MixtralForCausalLM", {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}, ("q_proj", "o_proj"), "lm_head",
        "input_layernorm", "embed_tokens", "", ("experts.gate_up_proj", "experts.down_proj"),
    ),
    "Qwen2-MoE": Architecture(
        "Qwen2MoeForCausalLM",
        {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
        ("q_proj", "o_proj"), "lm_head", "input_layernorm", "embed_tokens", "", ("experts.gate_up_proj", "experts.down_proj"),
    ),
}  # fmt: skip
"""One model of each family of layers: fused, grouped and scaled projections, Conv1D, tied and untied heads, towers, experts."""


def _lora(**settings: Any) -> Callable[[Architecture], Any]:
    return lambda a: peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": list(a.pair), **settings})


def _of(name: str, **settings: Any) -> Callable[[Architecture], Any]:
    return lambda a: getattr(peft, name)(**{"target_modules": list(a.pair), **settings})


METHODS: dict[str, Callable[[Architecture], Any]] = {
    "LoRA": _lora(),
    "rsLoRA": _lora(use_rslora=True),
    "patterns": lambda a: _lora(rank_pattern={a.pair[0]: 2}, alpha_pattern={a.pair[1]: 9})(a),
    "bias on B": _lora(lora_bias=True),
    "all-linear": _lora(target_modules="all-linear"),
    "layer 1": _lora(layers_to_transform=[1]),
    "DoRA": _lora(use_dora=True),
    "PiSSA": _lora(init_lora_weights="pissa"),
    "OLoRA": _lora(init_lora_weights="olora"),
    "lookup": lambda a: _lora(target_modules=[a.embedding])(a) if a.embedding else None,
    "convolution": lambda a: _lora(target_modules=[a.convolution])(a) if a.convolution else None,
    "experts": lambda a: (
        _lora(target_modules=[], target_parameters=list(a.experts))(a) if a.experts else None
    ),
    "saved head": lambda a: _lora(modules_to_save=[a.head])(a),
    "LoRA on head": lambda a: _lora(target_modules=[a.head])(a),
    "tokens": lambda a: (
        _lora(trainable_token_indices={a.embedding: [3, 9]})(a)
        if a.embedding and a.kind[:3] != "ViT"
        else None
    ),
    "biases": _lora(bias="all"),
    "norms": lambda a: peft.LNTuningConfig(target_modules=[a.norm]),
    "IA3": lambda a: peft.IA3Config(target_modules=list(a.pair), feedforward_modules=[a.pair[1]]),
    "AdaLoRA": _of("AdaLoraConfig", init_r=4, target_r=2, total_step=10),
    "LoHa": _of("LoHaConfig", r=4, alpha=6),
    "LoKr": _of("LoKrConfig", r=4, alpha=6),
    "OFT": _of("OFTConfig", r=0, oft_block_size=4),
    "BOFT": _of("BOFTConfig", boft_block_size=4),
    "HRA": _of("HRAConfig", r=4),
    "VeRA": lambda a: peft.VeraConfig(r=4, target_modules=[a.pair[0]]),
    "MiSS": _of("MissConfig", r=4),
    "KaSA": lambda a: _lora(kasa_config=peft.KasaConfig())(a) if hasattr(peft, "KasaConfig") else None,
    "VB-LoRA": _of("VBLoRAConfig", num_vectors=8, vector_length=4),
    "FourierFT": _of("FourierFTConfig", n_frequency=8),
}


def model_of(architecture: Architecture) -> Any:
    """Make the model, the same weights each time."""
    kind = getattr(transformers, architecture.kind)
    torch.manual_seed(0)
    model = kind(kind.config_class(**architecture.settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def outputs(architecture: Architecture, model: Any) -> torch.Tensor:
    """Run it."""
    generator = torch.Generator().manual_seed(2)
    if architecture.kind.startswith("ViT"):
        given = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    else:
        given = {"input_ids": torch.randint(2, 61, (2, 7), generator=generator)}
        given |= (
            {"decoder_input_ids": given["input_ids"][:, :3]} if "Conditional" in architecture.kind else {}
        )
    with torch.no_grad():
        out = model(**given)
    found: torch.Tensor = out.start_logits if hasattr(out, "start_logits") else out.logits
    return found


def written(architecture: Architecture, config: Any, folder: str) -> torch.Tensor:
    """Let PEFT write an adapter of random tensors, and return its outputs when PEFT loads it again."""
    wrapped = peft.get_peft_model(model_of(architecture), copy.deepcopy(config))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "ranknum" not in name and parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(folder)
    return outputs(architecture, peft.PeftModel.from_pretrained(model_of(architecture), folder).eval())


def cell(architecture: Architecture, method: Callable[[Architecture], Any]) -> tuple[str, str]:
    """Return what a cell says, and the reason of a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = method(architecture)
            if config is None:
                return "", ""
            wanted = written(architecture, config, folder)
        except Exception as error:  # noqa: BLE001 -- whatever PEFT has to say
            return "-", f"PEFT: {type(error).__name__}"
        model = model_of(architecture)
        before, base = {k: t.clone() for k, t in model.state_dict().items()}, outputs(architecture, model)
        objects = list(model.parameters())
        mixer = LoraMixer(model)
        try:
            mixer.load_lora_weights(folder)
            far = float((outputs(architecture, model) - wanted).norm() / wanted.norm())
            said, why = ("equal", "") if far < CLOSE else ("**different**", f"{far:.2g}")
        except LoraMixerError as error:
            said, why = "refused", str(error).split("adapter_model.safetensors: ")[-1].splitlines()[0][:160]
        mixer.unload_lora_weights()
        same = all(torch.equal(model.state_dict()[key], before[key]) for key in before)
        same = same and all(one is two for one, two in zip(objects, model.parameters(), strict=True))
        if not same or not torch.equal(outputs(architecture, model), base):
            said = "**not restored**"
        return said, why


def table(only: str = "", methods: tuple[str, ...] = ()) -> tuple[list[list[str]], dict[str, str]]:
    """Return rows of cells, and the reasons by method and what was said."""
    names = [name for name in METHODS if not methods or name in methods]
    rows, reasons = [], dict[str, str]()
    for name, architecture in ARCHITECTURES.items():
        if only.lower() not in name.lower():
            continue
        row = [name]
        for method in names:
            said, why = cell(architecture, METHODS[method])
            row.append(said)
            if why:
                reasons.setdefault(f"{method}, {said}", f"{name}: {why}")
            print(f"{name} {method}: {said} {why}", file=sys.stderr)
        rows.append(row)
    return rows, reasons


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows, reasons = table(parser.parse_args().only)
    cells = [said for row in rows for said in row[1:] if said and said != "-"]
    counts = {word: sum(said == word for said in cells) for word in dict.fromkeys(cells)}
    print("# Architectures and methods\n")
    print(
        f"`python -m benchmarks.peft_matrix > docs/peft-matrix.md`, with peft {peft.__version__}, transformers {transformers.__version__} and torch "
        f"{torch.__version__}: PEFT writes an adapter of random tensors for a tiny random model, and its outputs in PEFT and here are compared "
        f"(1e-5); then the base has to be back bit for bit. {len(cells)} cells: "
        f"{', '.join(f'{count} {word}' for word, count in counts.items())}. `-` is what PEFT itself cannot make or load, an empty cell what the model "
        "has no layer for.\n"
    )
    print("| method | " + " | ".join(row[0] for row in rows) + " |")
    print("| --- |" + " --- |" * len(rows))
    for number, method in enumerate(METHODS, start=1):
        print(f"| {method} | " + " | ".join(row[number] for row in rows) + " |")
    print("\n## Why\n")
    for what, why in sorted(reasons.items()):
        print(f"- {what}: {why}")


if __name__ == "__main__":
    main()

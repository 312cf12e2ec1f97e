"""Tiny random models of several architectures, with inputs, for the tests of fresh adapters."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers
from torch import nn

from lora_mixer import (
    AdaLoraConfig,
    FullConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    LoraMixer,
    OFTConfig,
)


class Convolutions(nn.Module):
    """Convolutions of one, two and three axes, linear layers and a lookup table."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(13, 12)
        self.line = nn.Conv1d(12, 8, 3, padding=1)
        self.picture = nn.Conv2d(8, 10, (3, 2), stride=2, padding=1, bias=False)
        self.point = nn.Conv2d(10, 6, 1)
        self.film = nn.Conv3d(6, 5, (1, 2, 2), padding=1)
        self.norm = nn.GroupNorm(1, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        lines = self.line(self.words(input_ids).transpose(1, 2))  # (n, 8, places)
        pictures = self.point(torch.tanh(self.picture(lines[..., None].expand(-1, -1, -1, 6))))
        films = self.norm(self.film(pictures[:, :, None]))
        out: torch.Tensor = self.head(films.flatten(2).mean(dim=2))
        return out


_LLAMA = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "opt": ("OPTForCausalLM", "OPTConfig", {
        "hidden_size": 20, "ffn_dim": 28, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "word_embed_proj_dim": 20, "dropout": 0.0,
    }),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {
        "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "bos_token_id": 0, "eos_token_id": 1,
    }),
    "bert": ("BertForSequenceClassification", "BertConfig", {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }),
    "t5": ("T5ForConditionalGeneration", "T5Config", {
        "d_model": 20, "d_kv": 10, "d_ff": 28, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
        "decoder_start_token_id": 0, "pad_token_id": 0,
    }),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {
        **_LLAMA, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_local_experts": 3, "num_experts_per_tok": 2,
    }),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 12, "pad_token_id": 0,
    }),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {  # its layers share their weights
        "embedding_size": 12, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }),
}  # fmt: skip
EVERY_KIND: dict[str, Any] = {
    "lora": LoraConfig(r=3, target_modules=["q_proj", "up_proj"]),
    "rslora": LoraConfig(r=3, target_modules=["v_proj"], use_rslora=True),
    "dora": LoraConfig(r=3, target_modules=["q_proj", "v_proj"], use_dora=True),
    "pissa": LoraConfig(r=3, target_modules=["o_proj"], init_lora_weights="pissa"),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["k_proj", "up_proj"]),
    "ia3": IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"]),
    "lokr": LoKrConfig(r=2, target_modules=["gate_proj"]),
    "oft": OFTConfig(oft_block_size=4, target_modules=["down_proj"]),
    "full": FullConfig(target_modules=["norm", "1.mlp.up_proj"]),
}
"""A configuration of every kind of fresh adapter that needs no tokens, for ``build("llama")``."""


def build(name: str) -> Any:
    """Build a model; every call gives the same weights."""
    torch.manual_seed(11)
    if name == "convolutions":
        return Convolutions().eval()
    model, config, fields = _MODELS[name]
    return getattr(transformers, model)(getattr(transformers, config)(vocab_size=37, **fields)).eval()


def stirred(mixer: LoraMixer, name: str = "a", seed: int = 2, size: float = 0.1) -> dict[str, nn.Parameter]:
    """Give an adapter in training an effect, and return its parameters."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not every one is in the mix
        found = dict(mixer.named_trainable_parameters(name))
        for parameter in found.values():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * size)
    return found


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Return the arguments of a model's forward."""
    drawn = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 13, (3, 7), generator=drawn)
    if name == "convolutions":
        return {"input_ids": ids}
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "t5":
        given["decoder_input_ids"] = torch.randint(2, 37, (3, 5), generator=drawn)
    return given


def output(model: Any, name: str) -> torch.Tensor:
    """Run a model."""
    out = model(**inputs(name))
    found: torch.Tensor = out if isinstance(out, torch.Tensor) else out.logits
    return found

"""Tiny random models of several architectures, with inputs, for the tests of fresh adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable


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


_COMMON: dict[str, Any] = {"vocab_size": 37}
_LLAMA = {
    **_COMMON,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA))


def _opt() -> Any:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            **_COMMON,
            hidden_size=20,
            ffn_dim=28,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=20,
            dropout=0.0,
        )
    )


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **_COMMON,
            n_embd=24,
            n_layer=2,
            n_head=2,
            n_positions=32,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def _bert() -> Any:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **_COMMON,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _t5() -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **_COMMON,
            d_model=20,
            d_kv=10,
            d_ff=28,
            num_layers=2,
            num_decoder_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    )


def _mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **{**_LLAMA, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2},
            num_local_experts=3,
            num_experts_per_tok=2,
        )
    )


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "opt": _opt,
    "gpt2": _gpt2,
    "bert": _bert,
    "t5": _t5,
    "mixtral": _mixtral,
    "convolutions": Convolutions,
}


def build(name: str) -> Any:
    """Build a model; every call gives the same weights."""
    torch.manual_seed(11)
    return MODELS[name]().eval()


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

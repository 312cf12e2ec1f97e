"""Which modules an adapter is usually on, by the model's type and the kind: what PEFT takes where nothing is said."""

from __future__ import annotations

from typing import Any

_QV = ("q_proj", "v_proj")
_QUERY_VALUE = ("query", "value")
_FUSED = ("query_key_value",)
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

_LORA: dict[str, tuple[str, ...] | str] = {
    **dict.fromkeys(
        ("bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral", "stablelm"), _QV
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _QV),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm"), _QUERY_VALUE),
    **dict.fromkeys(("bloom", "gpt_neox", "chatglm", "RefinedWebModel", "RefinedWeb", "falcon"), _FUSED),
    **dict.fromkeys(("t5", "mt5"), ("q", "v")),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    "blip-2": ("q", "v", "q_proj", "v_proj"),
    "btlm": ("c_proj", "c_attn"),
    "codegen": ("qkv_proj",),
    "deberta": ("in_proj",),
    "deberta-v2": ("query_proj", "value_proj"),
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "mpt": ("Wqkv",),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "rwkv": ("key", "value", "receptance", "output"),
    "rwkv7": ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"),
}
_ADALORA: dict[str, tuple[str, ...] | str] = {
    **{
        name: _LORA[name]
        for name in (
            *(
                "gpt2",
                "bloom",
                "gptj",
                "gpt_neox",
                "gpt_neo",
                "llama",
                "llama4",
                "bert",
                "gpt_bigcode",
                "deberta",
                "gemma",
            ),
            *("gemma2", "gemma3_text", "gemma4", "qwen2", "qwen3", "nemotron_h"),
        )
    },
    **dict.fromkeys(("bart", "opt"), _ATTENTION),
    "t5": ("q", "k", "v", "o", "wi", "wo"),
    "mt5": ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
    "roberta": ("query", "key", "value", "dense"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "dense"),
}
_FUSED_MLP = (("query_key_value", "dense_4h_to_h"), ("dense_4h_to_h",))
_ENCODER = (("key", "value", "output.dense"), ("output.dense",))
_GATED = ((*_QV, "down_proj"), ("down_proj",))
_IA3: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(("gpt_neox", "RefinedWebModel", "RefinedWeb", "falcon"), _FUSED_MLP),
    **dict.fromkeys(("roberta", "bert"), _ENCODER),
    **dict.fromkeys(("llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _GATED),
    **dict.fromkeys(("llama", "mistral"), (("k_proj", "v_proj", "down_proj"), ("down_proj",))),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), (("c_attn", "mlp.c_proj"), ("mlp.c_proj",))),
    "t5": (("k", "v", "wo"), ("wo",)),
    "mt5": (("k", "v", "wi_1"), ()),
    "bloom": (("query_key_value", "mlp.dense_4h_to_h"), ("mlp.dense_4h_to_h",)),
    "opt": (("q_proj", "k_proj", "fc2"), ("fc2",)),
    "gptj": ((*_QV, "fc_out"), ("fc_out",)),
    "gpt_neo": ((*_QV, "c_proj"), ("c_proj",)),
    "bart": ((*_QV, "fc2"), ("fc2",)),
    "phi": ((*_QV, "fc2"), ("fc2",)),
    "mixtral": (("k_proj", "v_proj", "w2"), ("w2",)),
    "deberta-v2": (("key_proj", "value_proj", "output.dense"), ("output.dense",)),
    "deberta": (("in_proj", "output.dense"), ("output.dense",)),
}


def of_pairs(model_type: str | None) -> dict[str, Any]:
    """
    Return the usual fields of a configuration for a model's type, for most kinds; none where none are known.

    Args:
        model_type: ``config.model_type`` of the model.

    Example:
        >>> of_pairs("opt"), of_pairs("my_own")
        ({'target_modules': ['q_proj', 'v_proj']}, {})
    """
    return _targets(_LORA.get(model_type or ""))


def of_adalora(model_type: str | None) -> dict[str, Any]:
    """Return AdaLoRA's."""
    return _targets(_ADALORA.get(model_type or ""))


def of_ia3(model_type: str | None) -> dict[str, Any]:
    """Return IA3's: the inputs of some are scaled."""
    targets, feedforward = _IA3.get(model_type or "", (None, ()))
    return _targets(targets) and {**_targets(targets), "feedforward_modules": list(feedforward)}


def none_usual(model_type: str | None) -> dict[str, Any]:  # noqa: ARG001 -- whatever the model
    """Return nothing: of kinds whose targets have to be named, or mean something when they are not."""
    return {}


def _targets(names: tuple[str, ...] | str | None) -> dict[str, Any]:
    return {} if names is None else {"target_modules": names if isinstance(names, str) else list(names)}

"""Which modules an adapter is usually on, by the model's type and the kind: what PEFT takes where nothing is said."""

from __future__ import annotations

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


def usual_targets(kind: str, model_type: str | None) -> tuple[str, ...] | str | None:
    """
    Return the suffixes, or the regular expression, of the usual targets; None where none are known.

    Args:
        kind: PEFT's name of the kind.
        model_type: ``config.model_type`` of the model.

    Example:
        >>> usual_targets("LORA", "opt"), usual_targets("IA3", "opt"), usual_targets("LORA", "my_own")
        (('q_proj', 'v_proj'), ('q_proj', 'k_proj', 'fc2'), None)
    """
    if kind == "IA3":
        row = _IA3.get(model_type or "")
        return None if row is None else row[0]
    return (_ADALORA if kind == "ADALORA" else _LORA).get(model_type or "")


def usual_feedforward(model_type: str | None) -> tuple[str, ...]:
    """Return the suffixes of the usual targets of IA3 whose inputs are scaled."""
    return _IA3.get(model_type or "", ((), ()))[1]

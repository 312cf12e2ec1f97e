"""
Every algorithm as files hold it: how its keys end, what PEFT calls it, and what builds it.

A new algorithm is a file beside this one and a row here. Headers are read by these rows too, so nothing here
imports torch; builders are named, not imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.algorithms.base import LayerWeights, ModuleTensors


@dataclass(frozen=True)
class AlgorithmKind:
    """
    One algorithm.

    Attributes:
        name: Its name.
        builder: What makes its layers of :class:`~lora_mixer.algorithms.base.ModuleTensors`, as ``file:Class.method`` of
            ``lora_mixer.algorithms``; empty where it is not a layer by itself.
        leaves: How its keys end (a regular expression; ``<name>`` stands for the adapter's name, which PEFT leaves in) and which
            role that is; what a group ``part`` matches is put behind the role. Of all rows the first match counts.
        refused: Why it cannot be applied, where that is so.
        peft_types: What ``peft_type`` of a configuration calls it.
        peft_fields: Fields of configurations that its builder reads, or that the tensors' shapes tell.
        whole_numbers: Roles that hold whole numbers.
        is_turned: Whether a DoRA magnitude may be laid over its change.
        pair: Whether a pair in the same module is a part of it: ``takes`` it, or ``sees`` it and leaves it beside.
        shared: Roles whose tensors serve all modules of a component.
        prefixes: How the names of what it trains in a module begin: no module of a model is called so, so that an ending behind
            such a name that no row has is of a method that is not known.
    """

    name: str
    builder: str = ""
    leaves: tuple[tuple[str, str], ...] = ()
    refused: str = ""
    peft_types: tuple[str, ...] = ()
    peft_fields: tuple[str, ...] = ()
    whole_numbers: tuple[str, ...] = ()
    is_turned: bool = False
    pair: Literal["", "takes", "sees"] = ""
    shared: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


_ROWS = (
    AlgorithmKind(
        "lora",
        "pairs:pair_from_parts",
        leaves=(
            (r"[._]lora_down\.weight", "down"),
            (r"[._]lora_up\.weight", "up"),
            (r"\.lora_mid\.weight", "mid"),
            (r"\.lora_up\.bias", "up_bias"),
            (r"\.lora_A(?:_\d+)?<name>\.weight", "down"),
            (r"\.lora_B(?:_\d+)?<name>\.weight", "up"),
            (r"\.lora_B<name>\.bias", "up_bias"),
            (r"\.lora_embedding_A<name>", "embedding_down"),
            (r"\.lora_embedding_B<name>", "embedding_up"),
            (r"\.lora(?:_linear_layer)?\.down\.weight", "down"),
            (r"\.lora(?:_linear_layer)?\.up\.weight", "up"),
            (r"_lora\.down\.weight", "down"),
            (r"_lora\.up\.weight", "up"),
            (r"_lora(?P<stream>\d)\.down\.weight", "down"),  # xlabs: 1 the picture's stream, 2 the text's
            (r"_lora(?P<stream>\d)\.up\.weight", "up"),
            (r"\.lora_A(?!\.alpha$)<name>", "down"),
            (r"\.lora_B(?!\.alpha$)<name>", "up"),
        ),
        peft_types=("LORA",),
        is_turned=True,
        prefixes=("lora_",),
    ),
    AlgorithmKind(
        "set",
        "values:Values.from_parts",
        leaves=(
            (r"\.base_layer\.bias", "set_bias"),
            (r"\.base_layer\.weight", "set_weight"),
            (r"\.modules_to_save<name>\.weight", "set_weight"),
            (r"\.modules_to_save<name>\.bias", "set_bias"),
            (r"\.set_weight", "set_weight"),
            (r"\.ln_tuning_layers<name>\.weight", "set_weight"),
            (r"\.ln_tuning_layers<name>\.bias", "set_bias"),
        ),
        peft_types=("LN_TUNING",),
        prefixes=("ln_tuning_",),
    ),
    AlgorithmKind(
        "tokens",
        "values:Tokens.from_parts",
        leaves=((r"(?:\.token_adapter)?\.trainable_tokens_delta<name>", "tokens"),),
        peft_types=("TRAINABLE_TOKENS",),
        peft_fields=("trainable_token_indices", "token_indices"),
        prefixes=("trainable_tokens_",),
    ),
    AlgorithmKind(
        "",
        leaves=(
            (r"[._]lora[._](?:A|B|down|up)<name>(?:\.weight)?\.alpha", "alpha"),
            (r"\.alpha", "alpha"),
            (r"\.scale", "scale"),
            (r"\.scalar", "scalar"),
            (r"\.reshape_weight", "reshape_weight"),
        ),
        whole_numbers=("reshape_weight",),
        prefixes=("adapter_",),
    ),
    AlgorithmKind(
        "dora",
        leaves=(
            (r"\.dora_scale", "dora_scale"),
            (r"\.(?:magnitude|lora_magnitude_vector(?:\.[^.]+)??(?:\.weight)?)", "magnitude"),
        ),
    ),
    AlgorithmKind(
        "loha",
        "loha:LoHa.from_parts",
        leaves=((r"\.hada_(?P<part>w[12]_[ab]|t[12])<name>", "hada"),),
        peft_types=("LOHA",),
        is_turned=True,
        prefixes=("hada_",),
    ),
    AlgorithmKind(
        "lokr",
        "lokr:LoKr.from_parts",
        leaves=((r"\.lokr_(?P<part>w[12](?:_[ab])?|t[12])<name>", "lokr"),),
        peft_types=("LOKR",),
        peft_fields=("decompose_both", "decompose_factor", "use_effective_conv2d"),
        is_turned=True,
        prefixes=("lokr_",),
    ),
    AlgorithmKind(
        "glora",
        "glora:GLoRA.from_parts",
        leaves=((r"\.(?P<part>[ab][12]|bm)\.weight", "glora"),),
        is_turned=True,
    ),
    AlgorithmKind(
        "full",
        "full:Full.from_parts",
        leaves=(
            (r"\.diff_(?P<modulation>m)", "diff"),  # of the parameter ``modulation`` of what stands before it
            (r"\.diff(?P<part>_b)?", "diff"),
            (r"\.beft_bias<name>", "diff_b"),
        ),
        peft_types=("BEFT",),
        prefixes=("beft_",),
    ),
    AlgorithmKind(
        "norm",
        "full:Norm.from_parts",
        leaves=((r"\.(?P<part>[wb])_norm", "norm"),),
    ),
    AlgorithmKind(
        "ia3",
        "ia3:IA3.from_parts",
        leaves=(
            (r"\.on_input", "on_input"),
            (r"\.ia3_l<name>", "ia3_l"),
        ),
        peft_types=("IA3",),
        peft_fields=("feedforward_modules", "init_ia3_weights"),
        whole_numbers=("on_input",),
        prefixes=("ia3_",),
    ),
    AlgorithmKind(
        "oft",
        "boft:diagonal_or_butterfly",
        leaves=(
            (r"\.oft_blocks\.(?P<part>\d{1,2})", "oft_blocks"),  # Kohya: one for each part of a fused layer
            (r"\.oft_(?P<part>blocks|diag)", "oft"),
            (r"\.rescale", "rescale"),
        ),
        prefixes=("oft_",),
    ),
    AlgorithmKind(
        "oft_peft",
        "oft_peft:PeftOFT.from_parts",
        leaves=((r"\.oft_(?P<part>R|embedding_R)<name>(?:\.weight)?", "oft"),),
        peft_types=("OFT",),
        peft_fields=(
            "oft_block_size",
            "coft",
            "eps",
            "block_share",
            "use_cayley_neumann",
            "num_cayley_neumann_terms",
        ),
    ),
    AlgorithmKind(
        "oft_old",
        refused="OFT of PEFT before 0.16 (oft_r), which rotates differently from release to release",
        leaves=((r"\.oft_r<name>", "oft_r"),),
    ),
    AlgorithmKind(
        "tlora",
        refused="T-LoRA, whose change is the difference from an initialisation that the file does not hold",
        leaves=((r"\.(?P<part>q_layer\.weight|p_layer\.weight|lambda_layer)", "tlora"),),
    ),
    AlgorithmKind(
        "boft_peft",
        "boft:PeftBOFT.from_parts",
        leaves=((r"\.boft_(?P<part>R|s)<name>", "boft"),),
        peft_types=("BOFT",),
        peft_fields=("boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout"),
        prefixes=("boft_",),
    ),
    AlgorithmKind(
        "kasa",
        "started:Started.with_diagonal",
        leaves=((r"\.lora_diag<name>", "diag"),),
        peft_fields=("kasa_config",),
        pair="takes",
        prefixes=("kasa_",),
    ),
    AlgorithmKind(
        "fourierft",
        "fourierft:FourierFT.from_parts",
        leaves=((r"\.fourierft_spectrum<name>", "fourierft"),),
        peft_types=("FOURIERFT",),
        peft_fields=("n_frequency", "n_frequency_pattern", "scaling", "random_loc_seed"),
        prefixes=("fourierft_",),
    ),
    AlgorithmKind(
        "adalora",
        "adalora:AdaLora.from_parts",
        leaves=(
            (r"\.lora_E<name>", "lora_E"),
            (r"\.ranknum<name>", "ranknum"),
        ),
        peft_types=("ADALORA",),
        peft_fields=(
            "init_r",
            "target_r",
            "tinit",
            "tfinal",
            "deltaT",
            "beta1",
            "beta2",
            "orth_reg_weight",
            "total_step",
        ),
        whole_numbers=("ranknum",),
        is_turned=True,
        pair="takes",
    ),
    AlgorithmKind(
        "vera",
        "vera:Vera.from_parts",
        leaves=(
            (r"\.vera_lambda_(?P<part>[bd])<name>", "vera_lambda"),
            (r"(?:^|\.)vera_(?P<part>[AB])<name>", "vera"),
        ),
        peft_types=("VERA",),
        peft_fields=("d_initial", "projection_prng_key", "save_projection", "vera_dropout"),
        is_turned=True,
        shared=("vera_A", "vera_B"),
        prefixes=("vera_",),
    ),
    AlgorithmKind(
        "hra",
        "hra:HRA.from_parts",
        leaves=((r"\.hra_(?P<part>u)<name>", "hra"),),
        peft_types=("HRA",),
        peft_fields=("apply_GS",),
        prefixes=("hra_",),
    ),
    AlgorithmKind(
        "hira",
        "hira:HiRA.from_parts",
        leaves=((r"\.hira_(?P<part>(?:embedding_)?[AB])<name>", "hira"),),
        peft_types=("HIRA",),
        peft_fields=("hira_dropout",),
        prefixes=("hira_",),
    ),
    AlgorithmKind(
        "c3a",
        "c3a:C3A.from_parts",
        leaves=((r"\.c3a_(?P<part>kernel)<name>", "c3a"),),
        peft_types=("C3A",),
        peft_fields=("block_size", "block_size_pattern"),
        prefixes=("c3a_",),
    ),
    AlgorithmKind(
        "gralora",
        "gralora:GraLoRA.from_parts",
        leaves=(
            (r"\.gralora_(?P<part>[AB])<name>", "gralora"),
            (r"\.gralora_(?P<part>[AB]_general)<name>\.weight", "gralora"),
        ),
        peft_types=("GRALORA",),
        peft_fields=("hybrid_r", "gralora_k", "gralora_alpha", "gralora_dropout"),
        prefixes=("gralora_",),
    ),
    AlgorithmKind(
        "delora",
        "delora:DeLoRA.from_parts",
        leaves=((r"\.delora_(?P<part>A|B|lambda|w_norm)<name>", "delora"),),
        peft_types=("DELORA",),
        peft_fields=("delora_lambda", "lambda_pattern"),
        prefixes=("delora_",),
    ),
    AlgorithmKind(
        "miss",
        "miss:MiSS.from_parts",
        leaves=((r"\.(?:miss|bone)_(?P<part>block)<name>", "miss"),),
        peft_types=("MISS", "BONE"),
        peft_fields=("mini_r", "bone_init", "init_bone_weights", "miss_dropout"),
        prefixes=("miss_", "bone_"),
    ),
    AlgorithmKind(
        "shira",
        "combined:Sparse.of_shira",
        leaves=((r"\.shira_(?P<part>weight|indices)<name>", "shira"),),
        peft_types=("SHIRA",),
        peft_fields=("mask_type", "random_seed"),
        whole_numbers=("shira_indices",),
        prefixes=("shira_",),
    ),
    AlgorithmKind(
        "sparse",
        "combined:Sparse.from_parts",
        leaves=((r"\.bias_(?P<part>indices|values|size)", "bias"),),
        whole_numbers=("bias_indices", "bias_size"),
        is_turned=True,
        pair="sees",
    ),
)

ALGORITHMS: dict[str, AlgorithmKind] = {kind.name: kind for kind in _ROWS}
"""Every algorithm by its name; what any of them may have has the name ``""``."""


def builder(name: str) -> Callable[[ModuleTensors], LayerWeights]:
    """
    Return what makes an algorithm's layers.

    Example:
        >>> builder("hra").__self__.__name__
        'HRA'
    """
    build: Callable[[ModuleTensors], LayerWeights] = _imported(ALGORITHMS[name].builder)
    return build


def shared_roles() -> frozenset[str]:
    """Return the roles whose tensors serve all modules of a component."""
    return _roles(tuple(ALGORITHMS), "shared")


def whole_numbers() -> frozenset[str]:
    """Return the roles that hold whole numbers."""
    return _roles(tuple(ALGORITHMS), "whole_numbers")


def prefixes() -> tuple[str, ...]:
    """Return how names begin that only adapters have in a module."""
    return tuple(name for kind in ALGORITHMS.values() for name in kind.prefixes)


def peft_types() -> frozenset[str]:
    """Return what ``peft_type`` may be."""
    return frozenset(name for kind in ALGORITHMS.values() for name in kind.peft_types)


def peft_fields() -> frozenset[str]:
    """Return the fields of configurations that single algorithms know."""
    return frozenset(name for kind in ALGORITHMS.values() for name in kind.peft_fields)


@cache
def _roles(names: tuple[str, ...], which: str) -> frozenset[str]:
    """Return the roles of kinds that are in a field of theirs; files ask for each of thousands of keys."""
    return frozenset(role for name in names for role in getattr(ALGORITHMS[name], which))


@cache
def _imported(place: str) -> Any:
    file, _, path = place.partition(":")
    value: Any = import_module(file if "." in file else f"lora_mixer.algorithms.{file}")
    for attribute in path.split("."):
        value = getattr(value, attribute)
    return value

"""
Merging methods: pure functions on weight changes that make one new adapter out of several.

One small file each, with the formula, the paper and its row of :data:`METHODS`. ``combination_type="linear"`` of PEFT's
``add_weighted_adapter`` is not among them, since it is not a weighted sum of weight changes: see
:mod:`lora_mixer.merging.weighted_sum`.
"""

from __future__ import annotations

from lora_mixer.merging.breadcrumbs import breadcrumbs
from lora_mixer.merging.dare import dare
from lora_mixer.merging.della import della
from lora_mixer.merging.knots import knots
from lora_mixer.merging.low_rank import LowRankForm, pair_of, truncate, truncate_pair
from lora_mixer.merging.magnitude import magnitude_prune
from lora_mixer.merging.method import MethodSpec, Setting
from lora_mixer.merging.methods import METHODS, MergeMethod
from lora_mixer.merging.orthogonal import orthogonal_sum
from lora_mixer.merging.ties import ties
from lora_mixer.merging.weighted_sum import concatenate, weighted_sum

__all__ = [
    "METHODS",
    "LowRankForm",
    "MergeMethod",
    "MethodSpec",
    "Setting",
    "breadcrumbs",
    "concatenate",
    "dare",
    "della",
    "knots",
    "magnitude_prune",
    "orthogonal_sum",
    "pair_of",
    "ties",
    "truncate",
    "truncate_pair",
    "weighted_sum",
]

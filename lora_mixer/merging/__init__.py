"""
Merging methods: pure functions on weight changes that make one new adapter out of several.

One small file each, with the formula and the paper. ``combination_type="linear"`` of PEFT's ``add_weighted_adapter`` is
none of them, since it is no weighted sum of weight changes: see :mod:`lora_mixer.merging.weighted_sum`.
"""

from __future__ import annotations

from lora_mixer.merging.blocks import b_lora_gains
from lora_mixer.merging.breadcrumbs import breadcrumbs
from lora_mixer.merging.dare import dare
from lora_mixer.merging.della import della
from lora_mixer.merging.knots import knots
from lora_mixer.merging.low_rank import LowRankForm, truncate, truncate_pair
from lora_mixer.merging.magnitude import magnitude_prune
from lora_mixer.merging.method import DENSE, LOW_RANK, MergeMethod
from lora_mixer.merging.orthogonal import orthogonal_sum
from lora_mixer.merging.ties import ties
from lora_mixer.merging.weighted_sum import concatenate, weighted_sum

__all__ = [
    "DENSE",
    "LOW_RANK",
    "LowRankForm",
    "MergeMethod",
    "b_lora_gains",
    "breadcrumbs",
    "concatenate",
    "dare",
    "della",
    "knots",
    "magnitude_prune",
    "orthogonal_sum",
    "ties",
    "truncate",
    "truncate_pair",
    "weighted_sum",
]

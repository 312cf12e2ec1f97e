"""A base family, as a contributor would write it: one row with its table; it imports nothing that is made of the rows."""

from __future__ import annotations

from lora_mixer.families.family import Family

LOOM = Family(
    "Loom",
    classes=("Loom",),
    layouts={
        "original": """
looms.N.attn.qkv -> blocks.N.attn.to_q .to_k .to_v
looms.N.out -> blocks.N.proj
""",
    },
    marks=r"(?:^|_)looms_0_attn_qkv$",
    headers=("loom",),
    said=("loom",),
    kohya=("loom", "False", "loom/lora"),
    kohya_flat="original",
)

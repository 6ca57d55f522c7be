"""What lpc knows of model types: attention layouts, experts, one entry a family."""

from passes.families.attention import AttentionBlock, AttentionLayout, Packing, unit_kind
from passes.families.experts import PER_TOKEN, ExpertsBlock, expert_groups, experts_per_token
from passes.families.family import Family, HeadDim, Proof, Served
from passes.families.registry import (
    FAMILIES,
    attention_blocks,
    check_dense,
    family_named,
    family_of,
    fixed_blocks,
    register_attention,
    remember,
    tried,
)

__all__ = [
    "FAMILIES",
    "PER_TOKEN",
    "AttentionBlock",
    "AttentionLayout",
    "ExpertsBlock",
    "Family",
    "HeadDim",
    "Packing",
    "Proof",
    "Served",
    "attention_blocks",
    "check_dense",
    "expert_groups",
    "experts_per_token",
    "family_named",
    "family_of",
    "fixed_blocks",
    "register_attention",
    "remember",
    "tried",
    "unit_kind",
]

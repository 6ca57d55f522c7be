"""What lpc knows of model types: attention layouts, experts, one entry a family."""

from passes.families.attention import AttentionBlock, AttentionLayout, Packing, unit_kind
from passes.families.experts import ExpertsBlock
from passes.families.family import Family, HeadDim, Served
from passes.families.registry import FAMILIES, attention_blocks, family_of, register_attention

__all__ = [
    "FAMILIES",
    "AttentionBlock",
    "AttentionLayout",
    "ExpertsBlock",
    "Family",
    "HeadDim",
    "Packing",
    "Served",
    "attention_blocks",
    "family_of",
    "register_attention",
    "unit_kind",
]

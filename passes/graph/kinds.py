"""What the units of a dimension are, and what a parameter does for them."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What the units of a dimension are."""

    KV_GROUPS = "kv_groups"
    """A KV head with all the query heads that read it; a plain head where every query head has its own."""
    QUERY_HEADS = "query_heads"
    """The query heads that read one KV head, which itself stays."""
    MLP_CHANNELS = "mlp_channels"
    EXPERT_CHANNELS = "expert_channels"
    """The channels inside one expert."""
    EXPERTS = "experts"
    HIDDEN = "hidden"
    """The channels of the residual stream, which all layers share."""
    LAYERS = "layers"
    """Whole decoder layers; one that goes is the identity on the residual stream."""
    ATTENTION_BLOCKS = "attention_blocks"
    """The attention of each layer, with the norms that serve it alone; one that goes adds nothing."""
    MLP_BLOCKS = "mlp_blocks"
    """The MLP (or the mixture of experts) of each layer, likewise."""

    @property
    def is_depth(self) -> bool:
        """Whether units are whole layers or blocks, which own their parameters whole and have no slices."""
        return self in (Kind.LAYERS, Kind.ATTENTION_BLOCKS, Kind.MLP_BLOCKS)

    @property
    def is_fine(self) -> bool:
        """Whether units are single channels, thousands a layer, whose counts are rounded to a multiple."""
        return self in (Kind.MLP_CHANNELS, Kind.EXPERT_CHANNELS, Kind.HIDDEN)

    @property
    def is_heads(self) -> bool:
        """Whether units are attention heads, or groups of them."""
        return self in (Kind.KV_GROUPS, Kind.QUERY_HEADS)


class Role(StrEnum):
    """What a parameter does for the units that it holds a slice of."""

    PRODUCE = "produce"
    """A weight whose outputs are the units'."""
    CONSUME = "consume"
    """A weight whose inputs are the units'."""
    OWN = "own"
    """A stack of weights, [unit, out, in], each of which belongs to one unit as a whole."""
    FOLLOW = "follow"
    """A bias, a norm, a bias table: cut with the units, scored by nothing."""
    ROUTE = "route"
    """The rows of a router that choose the units: cut with them, scored by nothing."""
    NORM = "norm"
    """The weight of an RMS norm over all units together, with what keeps it exact (``passes.shrink.rescale``)."""

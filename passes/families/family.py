"""A family: everything that lpc knows of one model type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from passes.families.attention import AttentionLayout
from passes.graph import ends_in

NO_PLACE = "the stock class derives the size of a head from hidden size / heads, so it cannot hold fewer heads"


class HeadDim(StrEnum):
    """What a runtime takes for the size of a head."""

    READ = "read"
    """The configuration's ``head_dim``."""
    DERIVED = "derived"
    """Hidden size / heads, whatever the configuration says."""
    UNKNOWN = "unknown"
    """Its source was not read."""


@dataclass(frozen=True)
class Served:
    """How a runtime that is not ours serves the causal language models of a type.

    ``head_dim``: what it takes for the size of a head. ``own``: whether by an implementation of its own, not through
    transformers.
    """

    head_dim: HeadDim = HeadDim.UNKNOWN
    own: bool = True


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How a family that nobody described was found to be right: on a small random model of its class.

    ``worst``: the largest relative difference of the checks, which is rounding. ``checks``: their names.
    """

    worst: float
    checks: tuple[str, ...]

    def __str__(self) -> str:
        return f"discovered, proven on a twin ({', '.join(self.checks)}): worst {self.worst:.0e}"


@dataclass(frozen=True)
class Family:
    """One supported ``model_type``.

    ``attentions``: the kinds of attention blocks it has. ``fixed``: blocks that stay as they are, by the ends of their
    paths, with the reason; ``stays`` names kinds of units that do, likewise; ``outputs`` says how many values the
    blocks of a class return in a tuple. ``proof``: None for one that was described, not discovered. ``heads``,
    ``kv_heads``, ``head_dim`` and ``channels`` are the configuration's entries that a stock class builds its sizes
    from, None where it has none: then a compact model of other sizes needs a modelling file (``passes.shrink``).
    ``{stack}`` in a name is encoder or decoder. ``experts`` and ``expert_channels`` likewise. ``epsilon`` is the entry
    that RMS norms build theirs from. ``refused`` maps configuration entries to values that are not supported.
    ``meaningful`` are entries of this type that change what the same parameters compute, beside those of all types
    (``passes.graph.MEANINGFUL``): a plan is bound to them.

    On the way out: ``onnx_builder``: ``exporters.onnx.decoder`` writes its graph from the weights. ``window``: the
    entry with the sliding window of all layers, where the attention modules do not say it. ``endless``: its positions
    go on beyond the context, though no entry says so. ``genai``: its name in GenAI's ``model_type.h``, None for GenAI's
    generic ``decoder``. ``llama_cpp`` and ``vllm``: how they serve it, None where they do not have it
    (``exporters.runtimes`` names the sources).
    """

    attentions: tuple[AttentionLayout, ...] = (AttentionLayout(),)
    heads: str | None = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    channels: str | None = "intermediate_size"
    channels_width: str = "mlp_channels"
    experts: str | None = None
    expert_channels: str | None = None
    epsilon: str = "rms_norm_eps"
    refused: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    meaningful: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    stays: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    outputs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    proof: Proof | None = None
    onnx_builder: bool = False
    window: str | None = None
    endless: bool = False
    genai: str | None = None
    llama_cpp: Served | None = None
    vllm: Served | None = None

    def is_fixed(self, path: str) -> bool:
        """Whether a module path names a block that stays as it is."""
        return any(ends_in(path, name) for name in self.fixed)

    @property
    def why_fixed_heads(self) -> str | None:
        """Why no stock class of the family holds another number of heads, or None."""
        return NO_PLACE if self.head_dim is None else None

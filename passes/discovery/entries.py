"""The configuration's entries that say sizes, found by their values in a small model whose sizes are all different."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from passes.discovery.small import CHANNELS, EXPERT_ENTRIES, HEAD_ENTRIES, KV_ENTRIES
from passes.families import AttentionBlock, Family
from passes.models import twin_of

HEAD_DIM_ENTRIES = ("head_dim", "d_kv", "kv_channels", "attention_head_dim", "attention_head_size", "dim_head")
EPSILONS = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layernorm_epsilon", "norm_epsilon")
BOOKKEEPING = ("dropout", "initializer", "use_cache", "token_id", "_name", "tie_", "router_aux", "output_", "pdrop")
"""Parts of names of entries that change nothing in what the same parameters compute in evaluation mode."""

STACKED = {"encoder_": "{stack}_", "decoder_": "{stack}_"}


def with_entries(
    family: Family,
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    blocks: Sequence[AttentionBlock],
    *,
    stacks: bool,
) -> Family:
    """The family with the entries for heads and their size, and what else binds a plan; none where none says it."""
    heads = {block.heads for block in blocks}
    groups = {block.groups for block in blocks}
    family = replace(
        family,
        heads=_stacked(_entry(config, HEAD_ENTRIES, heads), stacks=stacks),
        kv_heads=_stacked(_entry(config, KV_ENTRIES, groups), stacks=stacks),
        head_dim=_head_dim(kind, config, blocks),
        channels=None,
        epsilon=next((name for name in EPSILONS if hasattr(config, name)), family.epsilon),
        meaningful=meaningful(config),
    )
    return replace(family, channels_width="{stack}.mlp_channels") if stacks else family


def _entry(config: PreTrainedConfig, names: Sequence[str], sizes: set[int]) -> str | None:
    if len(sizes) != 1:
        return None
    size = next(iter(sizes))
    return next((name for name in names if _own(config, name) == size), None)


def _own(config: PreTrainedConfig, name: str) -> Any:
    """The value of an entry that the configuration stores, also under another name; None if it has none."""
    return config.to_dict().get(config.attribute_map.get(name, name))


def _stacked(name: str | None, *, stacks: bool) -> str | None:
    for prefix, stack in STACKED.items():
        if stacks and name is not None and name.startswith(prefix):
            return name.replace(prefix, stack, 1)
    return name


def _head_dim(kind: type[PreTrainedModel], config: PreTrainedConfig, blocks: Sequence[AttentionBlock]) -> str | None:
    """The entry by which the class lets the size of a head be other than hidden size / heads: it is tried."""
    if not blocks:
        return None
    size = blocks[0].head_dim
    for name in HEAD_DIM_ENTRIES:
        if _own(config, name) not in (None, size):
            continue
        values = {**config.to_dict(), config.attribute_map.get(name, name): 2 * size}
        try:
            twin = twin_of(kind, type(config).from_dict(values))
            other = blocks[0].layout.read(twin, blocks[0].path)
        except Exception:  # noqa: BLE001 whatever a class raises for a size that it cannot have
            continue
        if (other.head_dim, other.heads) == (2 * size, blocks[0].heads):
            return name
    return None


def channel_entries(config: PreTrainedConfig, size: int, *, stacks: bool) -> list[str]:
    """The entries that may say how many channels an MLP of this size has, the likeliest first."""
    values = config.to_dict()
    found = [name for name, value in values.items() if value == size and not isinstance(value, bool)]
    found += [name for name, value in values.items() if value is None and CHANNELS.search(name)]
    own = {stored: name for name, stored in config.attribute_map.items()}
    found = [name for name in found if name not in own or CHANNELS.search(name)]
    found.sort(key=lambda name: CHANNELS.search(name) is None)
    return list(dict.fromkeys(str(_stacked(name, stacks=stacks)) for name in found))


def expert_entries(config: PreTrainedConfig, experts: int, channels: int) -> tuple[str | None, str | None]:
    """The entries that say how many experts a mixture has, and how many channels each."""
    inside = channel_entries(config, channels, stacks=False)
    return _entry(config, EXPERT_ENTRIES, {experts}), next(iter(inside), None)


def meaningful(config: PreTrainedConfig) -> tuple[str, ...]:
    """The entries of a configuration's own class that change what the same parameters compute."""
    from transformers import PreTrainedConfig as Base

    common = {*Base().to_dict(), "model_type", "vocab_size"}
    own = copy.deepcopy(config).to_dict().keys() - common
    return tuple(sorted(name for name in own if not any(part in name for part in BOOKKEEPING)))

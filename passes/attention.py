"""What tracing cannot see: the inside of an attention block, described a layout; and the families that use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from passes.errors import UnsupportedModelError
from passes.graph import Dimension, Kind, Slice


@dataclass(frozen=True)
class SeparateLayout:
    """Attention with one linear layer each for queries, keys, values and output.

    ``head_norms`` are norms over a single head's ``head_dim`` values: every head shares them, so removing heads
    leaves them whole.
    """

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    head_norms: tuple[str, ...] = ()

    def dimension(self, block: nn.Module, path: str, layer: int, config: Any, head_dim: int) -> Dimension:
        """The KV groups of one attention block: a KV head with all the query heads that read it.

        Raises UnsupportedModelError when a parameter of the block is not described or has another size.
        """
        groups, heads = config.num_key_value_heads, config.num_attention_heads
        widths = {self.query: heads * head_dim, self.key: groups * head_dim, self.value: groups * head_dim}
        slices = []
        for name, width in widths.items():
            self._check_width(block, path, name, 0, width)
            slices.append(Slice(f"{path}.{name}.weight", 0, width // groups))
            if getattr(block.get_submodule(name), "bias", None) is not None:
                slices.append(Slice(f"{path}.{name}.bias", 0, width // groups))
        self._check_width(block, path, self.output, 1, widths[self.query])
        slices.append(Slice(f"{path}.{self.output}.weight", 1, widths[self.query] // groups))
        self._check_described(block, path, head_dim)
        return Dimension(f"layers.{layer}.{Kind.KV_GROUPS}", Kind.KV_GROUPS, layer, groups, tuple(slices))

    def _check_width(self, block: nn.Module, path: str, name: str, axis: int, width: int) -> None:
        linear = getattr(block, name, None)
        if not isinstance(linear, nn.Linear):
            raise UnsupportedModelError(f"{path}.{name} is not a linear layer but {type(linear).__name__}")
        if linear.weight.shape[axis] != width:
            raise UnsupportedModelError(
                f"{path}.{name} has {linear.weight.shape[axis]} {('rows', 'columns')[axis]}, expected {width}"
            )

    def _check_described(self, block: nn.Module, path: str, head_dim: int) -> None:
        described = {self.query, self.key, self.value, self.output}
        for name, parameter in block.named_parameters():
            module = name.split(".")[0]
            is_head_norm = module in self.head_norms and tuple(parameter.shape) == (head_dim,)
            if module not in described and not is_head_norm:
                raise UnsupportedModelError(
                    f"{path}.{name} with shape {tuple(parameter.shape)} is not part of the known attention layout; "
                    "removing heads around it cannot be proven sound"
                )


@dataclass(frozen=True)
class Family:
    """One supported ``model_type``: where its attention blocks are, and how they are laid out inside."""

    layout: SeparateLayout = SeparateLayout()
    attention: str = "self_attn"


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(SeparateLayout(head_norms=("q_norm", "k_norm"))),
}


def family_of(config: Any) -> Family:
    """The family of a model's configuration. Raises UnsupportedModelError, with the reason, when there is none."""
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported: its attention layout is not described. "
            f"Supported: {', '.join(sorted(FAMILIES))}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError("the model is quantised; lpc prunes dense weights: load it without quantisation")
    if config.to_dict().get("per_layer_config"):
        raise UnsupportedModelError(
            "the model's layers already differ in width (per_layer_config); this is not supported yet"
        )
    return FAMILIES[model_type]

"""The LoRA adapter: options, the wrapped projections, and reading and writing it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from passes.errors import MissingFileError, OptionError, UnsupportedModelError
from passes.graph import PruningGraph
from passes.importance import Projection
from passes.models import base_model


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The adapter that lpc attaches: rank, alpha (s = alpha / rank) and dropout, on all prunable projections."""

    rank: int = 32
    alpha: float = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise OptionError(f"the LoRA rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise OptionError(f"the LoRA alpha must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"the LoRA dropout must be at least 0 and below 1, got {self.dropout}")

    def config(self, graph: PruningGraph) -> LoraConfig:
        """peft's configuration with every projection of the graph's dimensions as a target."""
        modules = {part.module for dimension in graph.dimensions for part in dimension.weights}
        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=sorted({module.rpartition(".")[2] for module in modules}),
        )


def active_adapter(model: PeftModel) -> str:
    """The name of the one active adapter. Raises UnsupportedModelError unless it is plain LoRA."""
    names = list(model.active_adapters)
    if len(names) != 1:
        raise UnsupportedModelError(f"the model has {len(names)} active adapters; activate exactly one: {names}")
    config: Any = model.peft_config[names[0]]
    if not isinstance(config, LoraConfig):
        raise UnsupportedModelError(
            f"the adapter is {type(config).__name__}; lpc reads importance from LoRA adapters only"
        )
    extras = {
        "use_dora": False,
        "bias": "none",
        "modules_to_save": None,
        "target_parameters": None,
        "layer_replication": None,
        "lora_bias": False,
        "trainable_token_indices": None,
    }
    for name, plain in extras.items():
        if (getattr(config, name, plain) or plain) != plain:
            raise UnsupportedModelError(
                f"the adapter sets {name}={getattr(config, name)!r}; lpc supports plain LoRA, with {name}={plain!r}"
            )
    return str(names[0])


def check_adapter(model: PeftModel) -> None:
    """Raises UnsupportedModelError unless one plain LoRA adapter is on: not merged, not disabled, on no tied weight."""
    adapter, base = active_adapter(model), base_model(model)
    for name, layer in base.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if layer.merged or layer.disable_adapters:
            state, remedy = ("merged", "unmerge_adapter()") if layer.merged else ("disabled", "enable_adapter_layers()")
            raise UnsupportedModelError(f"the adapter on {name} is {state}: call {remedy} first, lpc trains it further")
        variant = getattr(layer, "lora_variant", {}).get(adapter)
        if variant is not None:
            raise UnsupportedModelError(
                f"the adapter on {name} is a LoRA variant ({type(variant).__name__}); lpc supports plain LoRA"
            )
        if base.config.tie_word_embeddings and layer in (base.get_input_embeddings(), base.get_output_embeddings()):
            raise UnsupportedModelError(
                f"the adapter covers {name}, whose weight is tied to another, so it cannot be merged: "
                "take it out of target_modules"
            )


def lora_layers(model: PeftModel) -> dict[str, LoraLinear]:
    """The LoRA-wrapped linear layers by the name they have in the transformers model."""
    return {name: module for name, module in base_model(model).named_modules() if isinstance(module, LoraLinear)}


def projections(model: PeftModel, graph: PruningGraph) -> Iterator[tuple[str, Projection]]:
    """The graph's projections that wear LoRA, with the gradients of the last backward pass."""
    adapter = active_adapter(model)
    wanted = {part.module for dimension in graph.dimensions for part in dimension.weights}
    for name, layer in lora_layers(model).items():
        if name in wanted:
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            if a.grad is None or b.grad is None:
                raise RuntimeError(f"{name} has no gradient on its adapter: scores are read after the backward pass")
            yield name, Projection(layer.get_base_layer().weight, a, b, a.grad, b.grad, layer.scaling[adapter])


@dataclass(frozen=True)
class Adapter:
    """A trained adapter taken off its model: peft's configuration and tensors, in peft's own key format."""

    config: LoraConfig
    state: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, model: PeftModel) -> Adapter:
        """A copy of the model's active adapter."""
        name = active_adapter(model)
        state = get_peft_model_state_dict(model, adapter_name=name)
        return cls(copy.deepcopy(model.peft_config[name]), {key: value.cpu().clone() for key, value in state.items()})

    def save(self, folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; ``PeftModel.from_pretrained`` loads them."""
        self.config.save_pretrained(str(folder))
        save_file(
            {name: value.contiguous() for name, value in self.state.items()}, folder / "adapter_model.safetensors"
        )


def check_adapter_folder(folder: str | Path) -> Path:
    """The folder as a path. Raises MissingFileError unless it holds a safetensors adapter in peft's format."""
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise MissingFileError(f"there is no {name} in {folder}: name a folder that peft's save_pretrained wrote")
    return folder

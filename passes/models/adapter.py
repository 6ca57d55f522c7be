"""The LoRA adapter: options, the wrapped weights, and reading and writing it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeGuard

import torch
from peft import LoraConfig, PeftModel, PeftType, TaskType, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.errors import MissingFileError, OptionError, UnsupportedModelError
from passes.graph import Kind, PruningGraph
from passes.models.base import base_model, module_at, plain_name
from passes.models.tasks import Task, task_of
from passes.models.weights import Projection, packer_of
from passes.options import LoraOptions

CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
"""The files of a folder in peft's format."""

ADAPTER, GRADIENT = "adapter", "gradient"
"""How a dimension is scored: by the gradients of its adapter, or, where it wears none, by its weights' own."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files of an adapter in peft's format."""

_TASK_TYPES = {Task.CAUSAL_LM: TaskType.CAUSAL_LM, Task.SEQ2SEQ_LM: TaskType.SEQ_2_SEQ_LM}
"""peft's other task types would train the head as well."""


def lora_config(options: LoraOptions, graph: PruningGraph, model: PreTrainedModel) -> LoraConfig:
    """peft's configuration that wraps every weight of the graph's dimensions, each by its full name.

    Raises OptionError if there is to be dropout on weights that peft wraps as parameters, and UnsupportedModelError
    if the weights are stored in both orientations, which one peft configuration cannot say.
    """
    modules, parameters, transposed = _targets(graph, model)
    if options.dropout and parameters:
        raise OptionError(
            f"the LoRA dropout is {options.dropout}, but {parameters[0]} is wrapped as a parameter, where peft has no "
            "dropout: set it to 0"
        )
    return LoraConfig(
        # peft's wrappers for generation ask the model for what only a GenerationMixin has
        task_type=_TASK_TYPES.get(task_of(model)) if model.can_generate() else None,
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=modules,
        target_parameters=parameters or None,
        fan_in_fan_out=transposed,
    )


def _targets(graph: PruningGraph, model: PreTrainedModel) -> tuple[list[str], list[str], bool]:
    """The modules and the parameters that peft is to wrap, by full name, and whether the modules are Conv1D."""
    stacked = any(len(graph.shapes[part.parameter]) == 3 for d in graph.dimensions for part in d.weights)
    modules: dict[str, nn.Module] = {}
    parameters: set[str] = set()
    for dimension in graph.dimensions:
        if dimension.kind is Kind.HIDDEN:
            continue  # its linear layers are other dimensions' too; embeddings and heads, often tied, wear no adapter
        # Beside stacked experts, peft takes gate_proj, up_proj and down_proj of a dense MLP for experts of an older
        # format (peft/utils/transformers_weight_conversion.py), unless they are named as parameters.
        ambiguous = stacked and dimension.kind is Kind.MLP_CHANNELS
        for part in dimension.weights:
            module = module_at(model, part.module)
            if isinstance(module, nn.Linear | Conv1D) and not ambiguous:
                modules[part.module] = module
            elif len(graph.shapes[part.parameter]) in (2, 3):
                parameters.add(part.parameter)
    transposed = {isinstance(module, Conv1D) for module in modules.values()}
    if len(transposed) == 2 or (transposed == {True} and parameters):
        raise UnsupportedModelError(
            "the model has both Conv1D layers and other weights to prune; one LoRA configuration of peft cannot wrap "
            "both: attach an adapter of your own, and what it does not cover is scored by its own gradient"
        )
    return sorted(modules), sorted(parameters), transposed == {True}


def active_adapter(model: PeftModel) -> str:
    """The name of the one active adapter. Raises UnsupportedModelError unless it is plain LoRA."""
    names = list(model.active_adapters)
    if len(names) != 1:
        raise UnsupportedModelError(f"the model has {len(names)} active adapters; activate exactly one: {names}")
    why = beyond_lora(model)
    if why is not None:
        raise UnsupportedModelError(f"{why}; lpc supports plain LoRA, so call merge_and_unload() first")
    return str(names[0])


PLAIN: Mapping[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "lora_bias": False,
    "trainable_token_indices": None,
}
"""The entries of peft's configuration that make an adapter more than A and B, and their values where it is not."""

CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin an adapter that take from the weights under it what they give to it, so that it fits no other ones."""


def beyond_lora(model: PeftModel) -> str | None:
    """What the active adapters are beside one plain LoRA, as the start of a sentence; None if they are one."""
    names = list(model.active_adapters)
    if len(names) > 1:
        return f"the model has {len(names)} active adapters ({', '.join(names)})"
    config: Any = model.peft_config[names[0]] if names else None
    if config is not None and config.peft_type != PeftType.LORA:  # AdaLoraConfig is a LoraConfig too
        return f"the adapter is of the kind {type(config).__name__}"
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and init.lower().startswith(CHANGE_BASE):
        return f"the adapter sets init_lora_weights={init!r}, which changes the base model"
    for name, value in PLAIN.items():
        if (getattr(config, name, value) or value) != value:
            return f"the adapter sets {name}={getattr(config, name)!r}"
    return None


def check_adapter(model: PeftModel) -> None:
    """Raises UnsupportedModelError unless one plain LoRA adapter is on: not merged, not disabled, on no tied weight."""
    adapter, base = active_adapter(model), base_model(model)
    for wrapped_name, layer in base.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        name = plain_name(wrapped_name)
        if layer.merged or layer.disable_adapters:
            state, remedy = ("merged", "unmerge_adapter()") if layer.merged else ("disabled", "enable_adapter_layers()")
            raise UnsupportedModelError(f"the adapter on {name} is {state}: call {remedy} first, lpc trains it further")
        if isinstance(layer, LoraLayer) and adapter in layer.scaling:
            _check_scaling(name, layer, adapter)
        variant = getattr(layer, "lora_variant", {}).get(adapter)
        if variant is not None:
            raise UnsupportedModelError(
                f"the adapter on {name} is a LoRA variant ({type(variant).__name__}); lpc supports plain LoRA"
            )
        if getattr(base.config, "tie_word_embeddings", False) and layer in (
            base.get_input_embeddings(),
            base.get_output_embeddings(),
        ):
            raise UnsupportedModelError(
                f"the adapter covers {name}, whose weight is tied to another, so it cannot be merged: "
                "take it out of target_modules"
            )


def stated_scaling(layer: LoraLayer, adapter: str) -> float:
    """What B·A is multiplied by, as alpha and rank say: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    rank, alpha = layer.r[adapter], layer.lora_alpha[adapter]
    return float(alpha / (math.sqrt(rank) if layer.use_rslora[adapter] else rank))


def _check_scaling(name: str, layer: LoraLayer, adapter: str) -> None:
    stated = stated_scaling(layer, adapter)
    if layer.scaling[adapter] != stated:
        raise UnsupportedModelError(
            f"the adapter on {name} is scaled by {layer.scaling[adapter]:g}, and its alpha and rank say {stated:g}: "
            "undo set_scale or scale_layer, an adapter that is saved cannot say it"
        )


def lora_layers(model: PeftModel) -> dict[str, LoraLinear | ParamWrapper]:
    """The layers of the active adapter, by the name that what they wrap has in the transformers model.

    That is the module's name for a linear layer, and the parameter's for a wrapped parameter.
    """
    adapter = active_adapter(model)
    found: dict[str, LoraLinear | ParamWrapper] = {}
    for name, layer in base_model(model).named_modules():
        if _is_known(layer) and adapter in layer.lora_A:
            suffix = f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else ""
            found[plain_name(name) + suffix] = layer
    return found


def _is_known(layer: nn.Module) -> TypeGuard[LoraLinear | ParamWrapper]:
    """Whether it adds BA to a matrix; layers on packed weights are of classes that peft has beside bitsandbytes."""
    packed = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear)
    return packed or isinstance(layer, LoraLinear | ParamWrapper)


@contextmanager
def idle_adapter_off(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """An adapter whose products are all zero, as a new one's, is not computed inside the block: the same outputs and
    gradients, and of a half-precision model half of the time.
    """
    worn = lora_weights(model).values() if isinstance(model, PeftModel) else ()
    if not isinstance(model, PeftModel) or any(bool(each.left.any() and each.right.any()) for each in worn):
        yield
        return
    with model.disable_adapter():
        yield


LoraLayers: TypeAlias = "Mapping[str, LoraLinear | ParamWrapper]"
"""What ``lora_layers`` gives; finding them takes as long as reading a large model's scores."""


def lora_weights(model: PeftModel, layers: LoraLayers | None = None) -> dict[str, Projection]:
    """The weights that wear LoRA by parameter name, with their gradients if there are any. Views, no copies."""
    adapter = active_adapter(model)
    return {_wrapped(name, layer): _projection(layer, adapter) for name, layer in _found(model, layers).items()}


def _found(model: PeftModel, layers: LoraLayers | None) -> LoraLayers:
    return lora_layers(model) if layers is None else layers


def _wrapped(name: str, layer: LoraLinear | ParamWrapper) -> str:
    """The name of the parameter that a layer wraps."""
    return name if isinstance(layer, ParamWrapper) else f"{name}.weight"


def _projection(layer: LoraLinear | ParamWrapper, adapter: str) -> Projection:
    weight = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    left, right = stored_factors(layer, a, b)
    seen = a.grad is not None and b.grad is not None
    grad_left, grad_right = stored_factors(layer, a.grad, b.grad) if seen else (None, None)
    packer = packer_of(layer.get_base_layer(), weight)
    return Projection(weight, left, right, grad_left, grad_right, layer.scaling[adapter], packer)


def stored_factors(
    layer: LoraLinear | ParamWrapper, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors left·right of BA in the layout of the parameter; see peft's ParamWrapper.get_delta_factors."""
    if not isinstance(layer, ParamWrapper) or layer.get_param().dim() == 2:
        return (a.mT, b.mT) if layer.fan_in_fan_out else (b, a)
    a = a.view(layer.num_experts, -1, a.shape[1])  # [experts, r, in]
    b = b.view(b.shape[0], -1, layer.num_experts).permute(2, 0, 1)  # [experts, out, r]
    return (a.mT, b.mT) if getattr(layer.get_base_layer(), "is_transposed", False) else (b, a)


def projections(
    model: PeftModel, graph: PruningGraph, layers: LoraLayers | None = None
) -> Iterator[tuple[str, Projection]]:
    """The graph's weights that wear LoRA, by parameter name, with the gradients of the last backward pass."""
    wanted = {name for dimension in graph.dimensions for name in graph.scored(dimension)}
    for name, projection in lora_weights(model, layers).items():
        if name in wanted:
            if projection.grad_left is None:
                raise RuntimeError(f"{name} has no gradient on its adapter: scores are read after the backward pass")
            yield name, projection


def scored_by(model: PeftModel, graph: PruningGraph, layers: LoraLayers | None = None) -> dict[str, str]:
    """How each dimension is scored: by the ``ADAPTER`` on at least one of its weights, or by their true ``GRADIENT``.

    Raises UnsupportedModelError for a dimension without weights, which nothing can score.
    """
    covered = {_wrapped(name, layer) for name, layer in _found(model, layers).items()}
    ways = {}
    for dimension in graph.dimensions:
        weights = graph.scored(dimension)
        if not weights:
            raise UnsupportedModelError(f"{dimension.name} has no weights, so its units cannot be scored")
        adapted = any(name in covered for name in weights)
        ways[dimension.name] = ADAPTER if adapted else GRADIENT
    return ways


@dataclass(frozen=True)
class Adapter:
    """A trained adapter taken off its model: peft's configuration and tensors, in peft's own key format."""

    name: ClassVar[str] = "adapter"

    config: LoraConfig
    state: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, model: PeftModel) -> Adapter:
        """A copy of the model's active adapter."""
        name = active_adapter(model)
        state = get_peft_model_state_dict(model, adapter_name=name)
        config = copy.deepcopy(model.peft_config[name])
        for field in ("target_modules", "target_parameters"):  # sets, which would be written in random order
            if isinstance(getattr(config, field), set):
                setattr(config, field, sorted(getattr(config, field)))
        return cls(config, {key: value.cpu().clone() for key, value in state.items()})

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write it as ``adapter`` into an output's folder; returns the files, relative to it."""
        return tuple(Path(self.name) / name for name in self.write(folder / self.name))

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read what ``save`` wrote. Raises MissingFileError."""
        return cls.read(folder / cls.name)

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write ``ADAPTER_FILES`` into a folder of its own; ``PeftModel.from_pretrained`` loads them."""
        self.config.save_pretrained(str(folder))
        save_file({name: value.contiguous() for name, value in self.state.items()}, folder / ADAPTER_FILES[1])
        return ADAPTER_FILES

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read what ``write`` or peft wrote. Raises MissingFileError."""
        config = LoraConfig.from_pretrained(str(check_adapter_folder(folder)))
        return cls(config, load_file(folder / ADAPTER_FILES[1]))


def check_adapter_folder(folder: str | Path) -> Path:
    """The folder as a path. Raises MissingFileError unless it holds a safetensors adapter in peft's format."""
    folder = Path(folder)
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise MissingFileError(f"there is no {name} in {folder}: name a folder that peft's save_pretrained wrote")
    return folder

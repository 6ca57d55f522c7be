"""Private and unstable names of torch, transformers and accelerate: each behind one function, nowhere else.

Where such a name moves, its function is the only place to change, and its test (test_vendor.py) says which it is.
``passes.models.resized`` names its own, since it lies beside checkpoints; ``exporters.onnx.vendor`` and
``lpc.evaluation.vendor`` hold what only they need.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
import transformers
from peft import PeftModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.initialization import no_init_weights
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.loss import loss_utils
from transformers.modeling_utils import LoadStateDictConfig, remove_tied_weights_from_state_dict
from transformers.models.auto import modeling_auto
from transformers.utils import cached_file
from transformers.utils.loading_report import LoadStateDictInfo

Built = TypeVar("Built", bound=PreTrainedModel)

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module")
CAPTURING = "_output_capturing_hooks_installed"
OFFLOADED = "_hf_hook"
PACKED = ("Params4bit", "Int8Params")
CPU_LAYOUT = "support_avx512bf16_for_cpu"
EXPERTS = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
IN_FP32 = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")


def from_config(
    kind: type[Built],
    config: PreTrainedConfig,
    *,
    attention: str | None = None,
    dtype: torch.dtype | None = None,
    initialised: bool = True,
) -> Built:
    """transformers: ``_from_config`` and ``no_init_weights``; the auto classes, which are public, take no class."""
    given = {"attn_implementation": attention, "dtype": dtype}
    arguments = {name: value for name, value in given.items() if value is not None}
    if initialised:
        return cast(Built, cast(Any, kind)._from_config(config, **arguments))
    with no_init_weights():
        return cast(Built, cast(Any, kind)._from_config(config, **arguments))


def classes_for(auto: str, config: PreTrainedConfig) -> tuple[type[PreTrainedModel], ...]:
    """transformers: ``_model_mapping``, the classes that an auto class has for a configuration, registered ones too."""
    found: Any = getattr(transformers, auto)._model_mapping.get(type(config), None)
    return found if isinstance(found, tuple) else (found,) if found is not None else ()


def names_by_model_type(mapping: str) -> Mapping[str, Any]:
    """transformers: a ``..._MAPPING_NAMES`` of ``modeling_auto``; the auto classes cannot be asked by model type."""
    names: Mapping[str, Any] = getattr(modeling_auto, f"{mapping}_NAMES")
    return names


def attention_of(config: PreTrainedConfig) -> str | None:
    """transformers: ``_attn_implementation``, which is written by a public method and read by none."""
    return cast("str | None", config._attn_implementation)


def experts_of(config: PreTrainedConfig) -> str | None:
    """transformers: ``_experts_implementation``, likewise; the public getter wants a model."""
    return cast("str | None", config._experts_implementation)


class Unvalued(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """torch: ``_local_scalar_dense``. Inside the block, a number that is asked of a tensor on the meta device is 0.

    So models can be traced that look for padding or global tokens: they find none. Which way they take then does not
    matter: what is found there is compared with what runs on values.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchDispatchMode``."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        return func(*args, **(kwargs or {}))


def is_expert_stack(module: object) -> bool:
    """transformers: whether a module is its stack of experts, whose implementation can be exchanged."""
    return all(hasattr(module, name) for name in EXPERTS)


def gated(experts: Any, hidden: torch.Tensor) -> torch.Tensor:
    """transformers: ``_apply_gate``, the gate and the activation of one expert, which each model defines."""
    inner: torch.Tensor = experts._apply_gate(hidden)
    return inner


def register_experts(name: str, function: Callable[..., torch.Tensor]) -> None:
    """transformers: ``ALL_EXPERTS_FUNCTIONS``, its list of implementations of experts, which has no public door."""
    ALL_EXPERTS_FUNCTIONS.register(name, function)


def forget_quantizer(model: PreTrainedModel) -> None:
    """transformers: what its GGUF loader leaves on a model, beside ``quantization_config``, whose weights are dense."""
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
    model.config._is_quantized = False


def loss_named(name: str) -> Callable[..., torch.Tensor]:
    """transformers: ``LOSS_MAPPING``, by which a model of transformers finds its own loss."""
    loss: Callable[..., torch.Tensor] = loss_utils.LOSS_MAPPING[name]
    return loss


def cached_or_none(name: str, file: str) -> str | None:
    """transformers: ``cached_file`` with an underscored argument, so that a repository without the file is no error."""
    found: str | None = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return found


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """transformers: ``cache`` as an argument of ``forward``, which is called ``past_key_values`` up to 5.23."""
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


def cache_of(output: Any) -> Any:
    """transformers: the cache in what ``forward`` returned; likewise. None if there is none."""
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def stays_in_fp32(model: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
    """transformers: whether a class keeps a parameter in fp32 when it is loaded in another dtype."""
    soft, strict = (getattr(model, each, None) or () for each in IN_FP32)
    parts = {torch.float16: (*soft, *strict), torch.bfloat16: tuple(strict)}.get(dtype, ())
    return any(f".{part}." in f".{name}." for part in parts)


def recompute_activations(model: PreTrainedModel, *, on: bool = True) -> None:
    """transformers: gradient checkpointing, by the names of 5.23, or those that it had before."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        how = {"use_reentrant": False}  # which gives gradients where no input of a layer wants one
        getattr(model, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": how})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def second_shell(model: PeftModel) -> PeftModel:
    """torch: ``_modules``. A second PeftModel around the same layers; what is put into it later is not in the first."""
    shell = copy.copy(model)
    shell.__dict__["_modules"] = dict(model._modules)
    return shell


def let_capture_again(module: nn.Module) -> None:
    """transformers: has it put its hooks for captured outputs (attentions, router logits) back when they are asked."""
    if getattr(module, CAPTURING, False):
        setattr(module, CAPTURING, False)


def hooks_of(module: nn.Module) -> Iterator[MutableMapping[int, Any]]:
    """torch: the hooks of a module that run with a forward or backward pass; there is no public list of them."""
    yield from (getattr(module, name) for name in HOOKS if getattr(module, name, None))


def is_wrapped(name: str) -> bool:
    """torch: whether a module of this name is the inside of ``torch.compile`` or FSDP."""
    return name.rpartition(".")[2] in WRAPPED


def is_offloaded(module: nn.Module) -> bool:
    """accelerate: whether its hook moves a module's weights in and out between calls."""
    return hasattr(module, OFFLOADED)


def is_packed(tensor: torch.Tensor) -> bool:
    """bitsandbytes: whether a parameter holds the codes of 8- or 4-bit numbers; its classes are not imported here."""
    return type(tensor).__name__ in PACKED and not tensor.is_floating_point()


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """bitsandbytes: the shape of a parameter's weight, which 4-bit codes do not lie in."""
    packed = getattr(tensor, "quant_state", None) if is_packed(tensor) else None
    return tuple(packed.shape if packed is not None else tensor.shape)


def keep_layout(model: nn.Module) -> None:
    """bitsandbytes: has 4-bit layers leave their codes in the order in which they are unpacked and saved.

    On a processor with AVX-512 BF16 their forward pass turns them into another one for good; saving turns them back.
    """
    for module in model.modules():
        if hasattr(module, CPU_LAYOUT):
            setattr(module, CPU_LAYOUT, False)
            module.state_dict()


@torch.no_grad()
def unpacked_weight(module: nn.Module) -> torch.Tensor:
    """bitsandbytes: the weight [out, in] of a linear layer of 4 or 8 bits in floating point; it stays as it is.

    Of 8 bits the scale a row lies in the weight until the first forward pass, then in the module's state. peft's own
    function for this moves the codes, and 8-bit ones lose their scales by it.
    """
    weight: Any = module.weight
    if getattr(weight, "quant_state", None) is not None:
        functional = import_module("bitsandbytes.functional")
        found: torch.Tensor = functional.dequantize_4bit(weight.data, weight.quant_state)
        return found
    state: Any = module.state
    scale = state.SCB if state.SCB is not None else weight.SCB
    dense: torch.Tensor = weight.data.float() * (scale.float()[:, None] / 127)
    return dense


def added_factor(step: Any) -> float:
    """torch: the alpha of an addition that autograd recorded (``torch.add(x, y, alpha=2)``); 1 where it saved none."""
    return float(getattr(step, "_saved_alpha", 1))


def loaded_as(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, tuple[list[str], bool]]:
    """transformers: which stored tensors its loader makes each tensor of a model of, and whether it converts them.

    Where one stored tensor is split, all that it is made into stands under the first name.
    """
    conversions = get_model_conversion_mapping(model, None, None)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    state, found = model.state_dict(), dict[str, tuple[list[str], bool]]()
    for name in stored:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        found.setdefault(target, ([], pattern is not None))[0].append(name)
    return found


def loading_faults(error: BaseException) -> list[str]:
    """transformers: what did not fit in a load that failed; its error only points to a table that it logs."""
    places = [frame.f_locals.get("loading_info") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = next((place for place in reversed(places) if isinstance(place, LoadStateDictInfo)), None)
    if found is None:
        return []
    said = {name: text.strip().splitlines()[-2:] for name, text in found.conversion_errors.items()}
    return [
        *(f"{name}: {'; '.join(line.strip() for line in lines)}" for name, lines in said.items()),
        *(f"{name} is {tuple(a)} in the file, {tuple(b)} in the class" for name, a, b in sorted(found.mismatched_keys)),
    ]


def load_some(model: PreTrainedModel, stored: Mapping[str, Any]) -> None:
    """transformers: its loader on some of the stored tensors (or slices of files), into a model on the meta device."""
    conversions = get_model_conversion_mapping(model, None, None)
    convert_and_load_state_dict_in_model(model, dict(stored), LoadStateDictConfig(weight_mapping=conversions))


def as_saved(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers: what ``save_pretrained`` writes of some of a model's tensors: its names, its split stacks.

    Which conversions there are is found out once a model, as transformers does at each call.
    """
    if getattr(model, "_weight_conversions", None) is None:
        found = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [each for each in found if not isinstance(each, PrefixChange)]
    left = {name: tensor for name, tensor in state.items() if name not in (model._keys_to_ignore_on_save or ())}
    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, left)
    return saved


def without_tied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """transformers: the tensors of a model that ``save_pretrained`` keeps, of tied ones the one that it expects."""
    found: dict[str, torch.Tensor] = remove_tied_weights_from_state_dict(model.state_dict(), model)
    return found

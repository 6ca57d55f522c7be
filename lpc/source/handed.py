"""What was handed over as a model: a live one is unwrapped or refused by what it is, never taken for a path."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any, TypeVar

import torch
from accelerate.hooks import remove_hook_from_submodules
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from passes.errors import ModelError
from passes.models import base_model, is_packed, vendor, weightless

logger = logging.getLogger(__name__)

EXPECTED = "hand over a transformers model, a peft model, a folder or a hub name"


def check_handed(model: object) -> None:
    """Raise ModelError for anything but a path or a live model whose weights are here, saying what to hand over."""
    if isinstance(model, str | os.PathLike):
        if not str(model).strip() or "\0" in str(model):
            raise ModelError(f"{str(model)!r} names no model: {EXPECTED}")
    elif isinstance(model, PreTrainedModel | PeftModel):
        _check_live(model)
    elif isinstance(model, nn.Module):
        raise ModelError(f"the model is of the type {_kind(model)}{_inside(model)}")
    else:
        raise ModelError(f"the model is {'None' if model is None else f'of the type {_kind(model)}'}: {EXPECTED}")


Live = TypeVar("Live", bound=nn.Module)


def without_hooks(model: Live) -> Live:
    """A copy of the user's model without the hooks that came along: they are the user's, and no checkpoint holds them.

    transformers' own are put back by transformers where they are needed. Those of accelerate, by which the layers of a
    model that ``device_map`` spread work on several devices, go too: the copy lies on the run's device as a whole.
    """
    _together(model)
    own = False
    for module in model.modules():
        for hooks in vendor.hooks_of(module):
            own = own or any(_is_users(hook) for hook in hooks.values())
            hooks.clear()
        vendor.let_capture_again(module)
    if own:
        logger.warning("the hooks on the model are left out of the copy that lpc works on: a checkpoint holds none")
    return model


def _together(model: nn.Module) -> None:
    """Take off what accelerate put on a model that lies on several devices."""
    spread = [module for module in model.modules() if vendor.is_offloaded(module)]
    remove_hook_from_submodules(model)
    for module in spread:
        vars(module).pop("forward", None)  # the class's own, which accelerate puts back as an attribute
    base: Any = base_model(model) if isinstance(model, PreTrainedModel | PeftModel) else model
    if len({str(place) for place in (vars(base).pop("hf_device_map", None) or {}).values()}) > 1:
        logger.warning("the model is spread over several devices; lpc works on a copy that lies on one")


def check_as_built(model: PreTrainedModel) -> None:
    """Raise ModelError if a part of a live model is not what its configuration builds: no checkpoint could hold that.

    Layers that an adapter, or packing, has put in the place of others are not looked at.
    """
    built = dict(weightless(type(model), copy.deepcopy(model.config)).named_modules())
    for name, module in model.named_modules():
        if "forward" in vars(module) and _is_users(vars(module)["forward"]):
            raise ModelError(
                f"{name or 'the model'} has a forward of its own, which no checkpoint holds: put it into a class, and "
                "register that (docs/custom-models.md), or hand over the model without it"
            )
        wanted = built.get(name)
        if wanted is not None and type(module) is not type(wanted) and not _replaced(module):
            raise ModelError(
                f"{name} is a {_whole(module)}, and the configuration builds a {_whole(wanted)} there: change the "
                "configuration, or hand over the model as it was"
            )


def _replaced(module: nn.Module) -> bool:
    """Whether peft or bitsandbytes put a module there."""
    weight = getattr(module, "weight", None)
    return type(module).__module__.startswith("peft.") or (isinstance(weight, torch.Tensor) and is_packed(weight))


def _is_users(hook: Any) -> bool:
    home = getattr(getattr(hook, "func", hook), "__module__", None) or ""
    return not home.startswith(("transformers.", "peft.", "accelerate.", "torch."))


def _whole(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def _kind(value: object) -> str:
    return type(value).__name__


def _inside(wrapper: nn.Module) -> str:
    """What to hand over in place of a wrapper: the model inside, by the way to it."""
    for name, module in wrapper.named_modules():
        if name and isinstance(module, PreTrainedModel | PeftModel):
            return f", a wrapper: hand over the {_kind(module)} inside it, model.{name}"
    return f": {EXPECTED}"


def _check_live(model: PreTrainedModel | PeftModel) -> None:
    base = base_model(model)
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(model, PeftModel):
            raise ModelError(
                f"{name} wears an adapter that this {_kind(base)} carries by itself (add_adapter, load_adapter, or the "
                "inside of a PeftModel): hand over the PeftModel around it, or the folder of the adapter"
            )
        if vendor.is_wrapped(name):
            outer = name.rpartition(".")[0]
            raise ModelError(
                f"{outer} inside this {_kind(base)} is of the type {_kind(base.get_submodule(outer))}: put the module "
                f"inside it ({name}) back in its place and hand over the model again"
            )
    for name, tensor in base.named_parameters():
        if tensor.is_meta:
            raise ModelError(_why_meta(base, name))
    _check_dtypes(model)


def _why_meta(model: PreTrainedModel, name: str) -> str:
    hooked = any(vendor.is_offloaded(module) for module in model.modules())
    if hooked or getattr(model, "hf_device_map", None):
        return (
            f"{name} is offloaded (accelerate keeps it elsewhere between calls): load the model whole, without "
            "device_map or offloading, or hand over its folder"
        )
    return f"{name} is on the meta device, it has no values: load the weights, or hand over the folder that holds them"


def _check_dtypes(model: PreTrainedModel | PeftModel) -> None:
    """Raise ModelError for weights of several dtypes, but for those that the class itself keeps in fp32."""
    base = base_model(model)
    seen: dict[torch.dtype, str] = {}
    for name, tensor in base.named_parameters():
        if ".lora_" in name or "modules_to_save" in name or vendor.stays_in_fp32(base, name, torch.float16):
            continue
        if is_packed(tensor):
            continue
        if not tensor.is_floating_point():
            raise ModelError(f"{name} holds {tensor.dtype}: lpc prunes weights in floating point; load it dequantised")
        seen.setdefault(tensor.dtype, name)
    if len(seen) > 1:
        found = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in seen.items())
        raise ModelError(
            f"the weights have several dtypes ({found}): bring them to one, as model.to(torch.bfloat16) does"
        )

"""A checkpoint that is not loaded: its model on the meta device, and its tensors one at a time, as loading makes them.

The renaming and stacking is transformers' own (``vendor.loaded_as``, ``vendor.load_some``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from passes.models import vendor


@dataclass(frozen=True)
class Unloaded:
    """A model on the meta device, whose checkpoint was held against it, and the file of each stored tensor."""

    model: PreTrainedModel
    files: Mapping[str, Path]

    @cached_property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters by name, on the meta device; tied ones once."""
        return dict(self.model.named_parameters())

    @cached_property
    def _made_of(self) -> Mapping[str, tuple[list[str], bool, str]]:
        """The stored tensors that each parameter is made of, whether they are converted, and the name they are for."""
        first = {id(parameter): name for name, parameter in self.parameters.items()}
        every = dict(self.model.named_parameters(remove_duplicate=False))
        loaded = vendor.loaded_as(self.model, self.files)
        return {first[id(every[name])]: (*how, name) for name, how in loaded.items() if name in every}

    def why_whole(self) -> str | None:
        """Why this checkpoint can only be loaded as a whole; None if its tensors can be had one by one."""
        for name, other in self.model.all_tied_weights_keys.items():
            if self.model.get_parameter(name) is not self.model.get_parameter(other):
                return f"it stores both {name} and {other}, which its configuration ties"
        every = dict(self.model.named_parameters(remove_duplicate=False))
        buffer = next((name for name in self.model.state_dict() if name not in every), None)
        if buffer is not None:
            return f"its class saves a buffer, {buffer}"
        split = next((name for name in self.parameters if name not in self._made_of), None)
        return f"{split} is stored as a part of another tensor" if split else None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters by name, ascending, on the CPU. Each is in memory only while the caller holds it."""
        for name in sorted(self.parameters):
            yield name, self._named(name)

    def read(self, parameter: torch.Tensor) -> torch.Tensor:
        """The values of a parameter of the model, on the CPU; a tensor that is no parameter of it as it is."""
        name = self._names.get(id(parameter))
        return parameter.detach() if name is None else self._named(name)

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[PreTrainedModel]:
        """The model as one that computes in ``dtype`` on the CPU; a module has weights only while its forward runs.

        Its buffers are its own: one that is on the meta device must have been made anew.
        """

        def filled(module: nn.Module, given: Any) -> None:
            for name, parameter in module.named_parameters(recurse=False):
                before[id(module), name] = parameter
                setattr(module, name, nn.Parameter(self.read(parameter).to(dtype), requires_grad=False))

        def emptied(module: nn.Module, given: Any, output: Any) -> None:
            for name, _ in module.named_parameters(recurse=False):
                setattr(module, name, before.pop((id(module), name)))

        before: dict[tuple[int, str], nn.Parameter] = {}
        with ExitStack() as hooks:
            for module in self.model.modules():
                if any(True for _ in module.named_parameters(recurse=False)):
                    hooks.callback(module.register_forward_pre_hook(filled).remove)
                    hooks.callback(module.register_forward_hook(emptied, always_call=True).remove)
            yield self.model

    @cached_property
    def _names(self) -> Mapping[int, str]:
        return {id(parameter): name for name, parameter in self.parameters.items()}

    def _named(self, name: str) -> torch.Tensor:
        stored, converted, target = self._made_of[name]
        return self._converted(target, stored) if converted else self._read(stored[0], self.parameters[name])

    def _read(self, stored: str, like: torch.Tensor) -> torch.Tensor:
        """A stored tensor in the dtype in which it is loaded: pages of the file, which go with the tensor."""
        with safe_open(self.files[stored], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(stored).to(like.dtype)
        return tensor

    def _converted(self, target: str, stored: list[str]) -> torch.Tensor:
        """What the loader makes of some stored tensors; the model is on the meta device again afterwards."""
        module, _, leaf = target.rpartition(".")
        holder, before = self.model.get_submodule(module), self.model.get_parameter(target)
        with ExitStack() as opened:
            paths = dict.fromkeys(self.files[name] for name in stored)
            files = {path: opened.enter_context(safe_open(path, framework="pt")) for path in paths}
            vendor.load_some(self.model, {name: files[self.files[name]].get_slice(name) for name in stored})
        tensor: torch.Tensor = holder.get_parameter(leaf).detach()
        setattr(holder, leaf, before)
        return tensor

"""A checkpoint that is not loaded: its model on the meta device, and its tensors one at a time, as loading makes them.

The renaming and stacking is transformers' own (``vendor.loaded_as``, ``vendor.load_some``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
            stored, converted, target = self._made_of[name]
            yield name, self._converted(target, stored) if converted else self._read(stored[0], self.parameters[name])

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

"""The small model in the place of the masked one: tuned at its own speed, with a way back to the adapter of the dense.

Once no unit will come back, what is masked neither computes nor learns: its entries of A and B get no gradients. So the
rest of the training runs on the compact model, with an adapter of the entries that are left. The result is the dense
model's adapter with these entries in their places and zeros elsewhere: all that follows (merging, shrinking, ``lpc
apply``) works on the dense weights, as if the masked model had been trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from passes.errors import PostconditionError
from passes.graph import Dimension, Masks, PruningGraph, Slice
from passes.models import active_adapter, base_model, bit_difference, lora_layers, lora_weights, stored_factors, vendor
from passes.shrink import cut_tensor, early_compact, gathered, only_cut

Parts = Sequence[tuple[Dimension, Slice]]
SIDES = ("left", "right")


class SmallModel:
    """A compact model that wears the rest of a dense one's adapter. Both have an adapter of the same layers.

    ``model`` is to be trained. The dense one's adapter stays as it was until ``give_back``.
    """

    def __init__(self, dense: PeftModel, graph: PruningGraph, masks: Masks) -> None:
        """Raises PostconditionError unless each tensor is what is left of the dense model's, bit for bit."""
        self._dense, self._graph, self._kept = dense, graph, kept_of(graph, masks)
        compact = early_compact(dense, graph, self._kept)
        name = active_adapter(dense)
        with torch.random.fork_rng():
            self.model: PeftModel = get_peft_model(compact, copy.deepcopy(dense.peft_config[name]), adapter_name=name)
        self._places = self._found_places()
        with torch.no_grad():
            for old, new in self._pairs():
                new.data = self._left(new, old.data).to(old.dtype)
                new.requires_grad_(old.requires_grad)
        self.check()
        self.model.train(dense.training)

    def check(self) -> None:
        """Raise PostconditionError unless its adapter is, bit for bit, what is left of the dense one's."""
        small = lora_weights(self.model)
        for name, projection in lora_weights(self._dense).items():
            for side, parts in zip(SIDES, _factor_parts(self._graph, name), strict=True):
                wanted = gathered(getattr(projection, side), parts, self._kept)
                difference = bit_difference(getattr(small[name], side), wanted)
                if difference is not None:
                    raise PostconditionError(
                        f"pass 'tune' failed its verification: the small model's adapter on {name} is not what is left "
                        f"of it: it {difference}"
                    )

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the adapter into its places in the dense model's, with zeros in all others."""
        for old, new in self._pairs():
            places = self._places.get(new)
            whole = torch.zeros_like(old)
            whole.view(-1)[slice(None) if places is None else places] = new.data.reshape(-1)
            old.copy_(whole)
        self.check()

    def follow(self, optimizer: Any) -> None:
        """Let an optimizer of the dense model's adapter go on with the small one's, its state cut likewise."""
        small = dict(self._pairs())
        for group in optimizer.param_groups:
            group["params"] = [small.get(parameter, parameter) for parameter in group["params"]]
        for old, new in small.items():
            if old in optimizer.state:
                state: Mapping[str, Any] = optimizer.state.pop(old)
                optimizer.state[new] = {
                    name: self._left(new, value) if getattr(value, "shape", None) == old.shape else value
                    for name, value in state.items()
                }

    def move_into(self, shell: PeftModel) -> None:
        """A PeftModel of the dense model's kind (``vendor.second_shell``) becomes this one, for all who hold it."""
        base, old = base_model(self.model), base_model(shell)
        if hasattr(old.config, "use_cache"):
            base.config.use_cache = old.config.use_cache
        if any(getattr(module, "gradient_checkpointing", False) for module in old.modules()):
            vendor.recompute_activations(base)
        shell.base_model, shell.config = self.model.base_model, self.model.config

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """The parameters of the dense model's adapters with those of the small one's."""
        small = dict(base_model(self.model).named_parameters())
        for name, parameter in base_model(self._dense).named_parameters():
            if name in small and ".lora_" in name:
                yield parameter, small[name]

    def _left(self, new: nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """What of a tensor of the dense model's parameter belongs to the small one's."""
        places = self._places.get(new)
        return whole.clone() if places is None else whole.reshape(-1)[places].view(new.shape)

    def _found_places(self) -> dict[nn.Parameter, torch.Tensor]:
        """Where the entries of the small model's A and B are in the dense model's, flat. Others are not cut."""
        found: dict[nn.Parameter, torch.Tensor] = {}
        dense, small = lora_layers(self._dense), lora_layers(self.model)
        projections, name = lora_weights(self.model), active_adapter(self._dense)
        for path, weight in zip(small, projections, strict=True):
            views = [getattr(projections[weight], side) for side in SIDES]
            numbers = zip(views, *(_numbered(layers[path], name) for layers in (dense, small)), strict=True)
            for (view, old, new), parts in zip(numbers, _factor_parts(self._graph, weight), strict=True):
                factors = (small[path].lora_A[name].weight, small[path].lora_B[name].weight)
                parameter = next(each for each in factors if _one_storage(each, view))
                places = torch.empty(new.numel(), dtype=torch.int64)
                places[new.reshape(-1)] = cut_tensor(old, parts, self._kept).reshape(-1)
                found[parameter] = places.to(parameter.device)
        return found


def _numbered(layer: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors left and right of a layer's BA, each entry the number that it has in A or in B."""
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return stored_factors(layer, *(torch.arange(each.numel()).view(each.shape) for each in (a, b)))


def _one_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _factor_parts(graph: PruningGraph, weight: str) -> tuple[Parts, Parts]:
    """The slices of a weight [..., rows, columns] that are of its factor left [..., rows, r], and of right."""
    parts = graph.slices_of.get(weight, ())
    rows, columns = (len(graph.shapes[weight]) - back for back in (2, 1))
    return [each for each in parts if each[1].axis != columns], [each for each in parts if each[1].axis != rows]


def kept_of(graph: PruningGraph, masks: Masks) -> dict[str, tuple[int, ...]]:
    """The kept units, ascending, a dimension name."""
    return {name: tuple(mask.nonzero().flatten().tolist()) for name, mask in masks.items()}


def can_be_small(graph: PruningGraph, masks: Masks) -> bool:
    """Whether something is masked, and nothing but rows and columns of weights goes with it."""
    kept = kept_of(graph, masks)
    return any(not bool(mask.all()) for mask in masks.values()) and only_cut(graph, kept)

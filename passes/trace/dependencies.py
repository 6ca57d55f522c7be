"""torch-pruning on the twin: which linear layers are coupled through MLPs and the residual stream.

Attention blocks and mixtures of experts are opaque nodes, because torch-pruning cannot see through grouped-query
attention (VainF/Torch-Pruning#527) or into stacked expert tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import nn
from transformers.pytorch_utils import Conv1D


class Opaque(nn.Module):
    """Stands for a block in the trace: hidden states in, hidden states out.

    With ``run`` the block itself runs beside, for its other outputs and for their number; without, it returns a tuple
    of so many ``outputs``, the others being None, or for 0 the hidden states alone.
    """

    def __init__(self, block: nn.Module, hidden_size: int, *, run: bool = True, outputs: int = 0) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # not a submodule: its inside is not traced
        self.opaque_scale = nn.Parameter(torch.empty(hidden_size, device="meta"))
        self._run, self._outputs, self.calls = run, outputs, 0
        self._first = next(iter(inspect.signature(block.forward).parameters))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states, scaled, in place of the block's first output."""
        self.calls += 1
        hidden_states = args[0] if args else kwargs[self._first]
        node = hidden_states * self.opaque_scale
        if not self._run:
            return (node, *[None] * (self._outputs - 1)) if self._outputs else node
        with torch.no_grad():
            outputs = self.block(*args, **kwargs)
        if not isinstance(outputs, tuple | list):
            return node
        found = (node, *outputs[1:])
        plain = type(outputs) in (tuple, list)
        return type(outputs)(found) if plain else type(outputs)(*found)  # of named ones

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)  # models ask blocks for their attributes


class _Elementwise(tp.BasePruningFunc):  # type: ignore[misc]
    """Tells torch-pruning the width of a norm or an opaque block, whose outputs are coupled with its inputs."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        return layer  # the twin itself is never cut

    prune_in_channels = prune_out_channels  # torch-pruning tells by this identity that inputs and outputs are coupled

    def get_out_channels(self, layer: nn.Module) -> int:
        return int(next(layer.parameters(recurse=False)).shape[-1])

    get_in_channels = get_out_channels


class _TransposedLinear(tp.BasePruningFunc):  # type: ignore[misc]
    """The same for Conv1D, whose weight is stored [in, out]."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return int(layer.get_parameter("weight").shape[1])

    def get_in_channels(self, layer: nn.Module) -> int:
        return int(layer.get_parameter("weight").shape[0])


@dataclass(frozen=True)
class CoupledModule:
    """A module coupled with a root's outputs: ``produces`` them, or consumes them; and the indices asked for."""

    name: str
    module: nn.Module
    produces: bool
    indices: tuple[int, ...]


class Index(NamedTuple):
    """An index as torch-pruning maps it from a module to the next, beside the one that the walk began with."""

    idx: int
    root_idx: int


class Dependencies:
    """torch-pruning's dependency graph of a twin whose opaque blocks are in place.

    The walk through it is written out here: ``get_pruning_group`` finds the same, but looks through all nodes and all
    that it has found at each step, which takes minutes for a few hundred layers.
    """

    def __init__(self, twin: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
        self.twin = twin
        norms = {type(m) for m in twin.modules() if [p.dim() for p in m.parameters()] == [1] and not list(m.children())}
        self._graph = tp.DependencyGraph().build_dependency(
            twin,
            example_inputs=dict(inputs),
            forward_fn=lambda model, kwargs: _tensors(model(**kwargs)),
            customized_pruners={Conv1D: _TransposedLinear(), **{kind: _Elementwise() for kind in norms | {Opaque}}},
            verbose=False,
        )
        self._names = {module: name for name, module in twin.named_modules()}

    def members(self, module: nn.Module, units: tuple[int, ...]) -> Iterator[CoupledModule]:
        """The modules with parameters that are coupled with these outputs of ``module``, itself included."""
        for (node, function), indices in self._walk(module, units).items():
            member = node.module
            if member in self._names and any(True for _ in member.parameters(recurse=False)):
                produces = bool(self._graph.is_out_channel_pruning_fn(function))
                yield CoupledModule(self._names[member], member, produces, tuple(sorted(indices)))

    def _walk(self, module: nn.Module, units: tuple[int, ...]) -> dict[tuple[Any, Any], set[int]]:
        """The indices of all that goes with these, a node and pruning function, in ``get_pruning_group``'s order.

        It comes to a place again as long as the node was not visited, and then goes on from there first.
        """
        first = (self._graph.module2node[module], self._root(module)), tuple(Index(unit, unit) for unit in units)
        todo, found = [first], {first[0]: set(units)}
        reached, visited = {first}, set[Any]()
        while todo:
            (node, function), indices = todo.pop()
            visited.add(node)
            for edge in node.dependencies:
                mapped = list(indices) if edge.is_triggered_by(function) else []
                for mapping in edge.index_mapping if mapped else ():
                    mapped = mapped if mapping is None else mapping(mapped)
                place = (edge.target, edge.handler), tuple(mapped)
                if mapped and not (edge.target in visited and place in reached):
                    reached.add(place)
                    found.setdefault(place[0], set()).update(index.idx for index in mapped)
                    todo.append(place)
        return found

    def _root(self, module: nn.Module) -> Any:
        return self._graph.get_pruner_of_module(module).prune_out_channels

    def is_traced(self, module: nn.Module) -> bool:
        """Whether the forward pass went through the module."""
        return module in self._graph.module2node


def _tensors(output: Any) -> list[torch.Tensor]:
    return [value for value in output.values() if isinstance(value, torch.Tensor) and value.requires_grad]


def outputs_of(module: nn.Module) -> int:
    """The outputs of a Linear or Conv1D."""
    shape = module.get_parameter("weight").shape
    return int(shape[1] if isinstance(module, Conv1D) else shape[0])

"""The hidden size as a dimension: what writes the residual stream, what reads it, and the norms over it.

torch-pruning finds the modules; the insides of attention and of experts come from their descriptions. It is sound only
where all norms over the stream are RMS norms, which are asked, not believed: each is run on random numbers. What stays
exact when channels go, and how, is in ``passes.shrink.rescale``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.errors import UnsupportedModelError
from passes.families import AttentionBlock, ExpertsBlock
from passes.graph import Dimension, Kind, Role, Slice, Stream, layer_path
from passes.models import Task, task_of
from passes.trace.dependencies import CoupledModule, Dependencies, Opaque
from passes.trace.dimensions import linear_slices
from passes.trace.norms import norm_offset


@dataclass(frozen=True)
class HiddenFinder:
    """Finds the slices of the residual stream. ``shapes`` are those of all parameters, tied ones once."""

    config: PreTrainedConfig
    shapes: Mapping[str, tuple[int, ...]]
    attention: Sequence[AttentionBlock]
    experts: Sequence[ExpertsBlock]

    def dimension(
        self, dependencies: Dependencies, residual: Sequence[CoupledModule], others: Sequence[Dimension]
    ) -> Dimension:
        """The hidden size, which ``residual`` are some members of and which the other dimensions are next to.

        Raises UnsupportedModelError with the reason where its channels cannot be proven sound to remove.
        """
        if self.config.is_encoder_decoder:
            raise self._refused("encoder and decoder have a residual stream each, coupled by the embedding they share")
        if task_of(cast(PreTrainedModel, dependencies.twin)) is Task.FEATURE_EXTRACTION:
            raise self._refused("without a head, its hidden states are what it gives: who reads them has their width")
        size = int(self.config.hidden_size)
        members = self._members(dependencies, residual, size)
        norms = [slice_ for member in members for slice_ in self._norm(member, size)]
        slices = {(part.parameter, part.role): part for part in (*norms, *self._others(members))}
        found = tuple(part for part in slices.values() if part.parameter in self.shapes)
        self._check(found, others, size)
        stream = Stream(self._embedding(dependencies.twin), self._final(norms), self._companions())
        kind = Kind.HIDDEN
        return Dimension(str(kind), kind, -1, size, found, str(kind), stream=stream)

    def _refused(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"the hidden size of this {self.config.model_type} model has to stay: {reason}")

    def _members(self, dependencies: Dependencies, residual: Sequence[CoupledModule], size: int) -> list[CoupledModule]:
        """All that is coupled with the stream, each with one index a channel, in the same order."""
        root = next((member.module for member in residual if member.produces), None)
        if root is None:
            raise self._refused("the trace finds nothing that writes a residual stream")
        first, last = (list(dependencies.members(root, (unit,))) for unit in (0, size - 1))
        for start, end in zip(first, last, strict=True):
            if (start.indices, end.indices) != ((0,), (size - 1,)):
                raise self._refused(f"{start.name} does not hold its channels one by one and in order")
        apart = sorted({member.name for member in residual} - {member.name for member in first})
        if apart:
            raise self._refused(f"{apart[0]} belongs to a residual stream of its own")
        return first

    def _norm(self, member: CoupledModule, size: int) -> Iterator[Slice]:
        """The slice of a norm, none of another module."""
        if isinstance(member.module, nn.Linear | Conv1D | nn.Embedding | Opaque):
            return
        shapes = {leaf: tuple(parameter.shape) for leaf, parameter in member.module.named_parameters()}
        offset = norm_offset(member.module) if shapes == {"weight": (size,)} else None
        if offset is None:
            raise self._refused(
                f"{member.name} ({type(member.module).__name__}) is not a plain RMS norm, and only of those is known "
                "how to keep them the same function with fewer channels (LayerNorm subtracts a mean)"
            )
        yield Slice(f"{member.name}.weight", 0, role=Role.NORM, offset=offset)

    def _others(self, members: Sequence[CoupledModule]) -> Iterator[Slice]:
        blocks = {each.path: each.hidden_slices() for each in self.attention}
        blocks |= {each.path: each.hidden_slices() for each in self.experts}
        for member in members:
            if isinstance(member.module, nn.Embedding):
                yield Slice(f"{member.name}.weight", 1, role=Role.PRODUCE)
            elif isinstance(member.module, nn.Linear | Conv1D):
                yield from linear_slices(member)
            elif isinstance(member.module, Opaque):
                yield from blocks.get(member.name, ())

    def _check(self, found: Sequence[Slice], others: Sequence[Dimension], size: int) -> None:
        """Raise UnsupportedModelError unless every parameter is accounted for, each axis once."""
        axes = [(part.parameter, part.axis) for part in found]
        for parameter, axis in axes:
            if self.shapes[parameter][axis] != size or axes.count((parameter, axis)) > 1:
                raise self._refused(f"{parameter} with shape {self.shapes[parameter]} is not as wide as the stream")
        taken = {(part.parameter, part.axis) for dimension in others for part in dimension.slices}
        described = {norm for norm, _ in self._companions()}
        coupled = {parameter for parameter, _ in axes}
        known = coupled | {parameter for parameter, _ in taken}
        unknown = sorted(n for n in self.shapes if n not in known and n.rpartition(".")[0] not in described)
        unknown += [
            parameter
            for parameter, shape in self.shapes.items()
            if parameter in known - coupled
            and any(length == size and (parameter, axis) not in taken for axis, length in enumerate(shape))
        ]
        odd = [*sorted(parameter for parameter, axis in axes if (parameter, axis) in taken), *unknown]
        if odd or len(coupled) < len(axes):
            what = odd[0] if odd else "a parameter with two axes of its channels"
            raise self._refused(f"{what} is coupled with it in a way that is not understood")

    def _embedding(self, twin: nn.Module) -> str:
        assert isinstance(twin, PreTrainedModel)
        weight = twin.get_input_embeddings().weight
        return next(str(name) for name, parameter in twin.named_parameters() if parameter is weight)

    def _final(self, norms: Sequence[Slice]) -> str:
        layers = {layer_path(block.path) for block in self.attention}
        outside = sorted({part.parameter for part in norms if layer_path(part.module) not in layers})
        if len(outside) != 1:
            raise self._refused(f"there is not one norm behind the layers but {len(outside)}: {outside}")
        return outside[0]

    def _companions(self) -> tuple[tuple[str, str], ...]:
        return tuple(pair for block in self.attention for pair in block.head_norms())

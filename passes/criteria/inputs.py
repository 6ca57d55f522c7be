"""The inputs of consuming projections: where criteria see what units put out, whatever made it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from passes.criteria.base import AnyModel, Averaged, Finite, merged_weights, sum_over_ranks
from passes.criteria.importance import unit_sums
from passes.errors import DataError, UnsupportedModelError
from passes.graph import Dimension, PruningGraph, Role, Slice
from passes.models import Weight, base_model, module_at
from passes.options import ImportanceOptions

Consumers = Mapping[str, tuple[tuple[Dimension, Slice], ...]]
"""By the module's name: the slices of its weight that read units, with their dimensions."""


def consumers(graph: PruningGraph) -> Consumers:
    """The projections that read each dimension's units; these have two axes and are modules of their own.

    Raises UnsupportedModelError for a dimension that no such projection reads.
    """
    remedy = "choose a criterion that reads weights or gradients, such as taylor, fisher or magnitude"
    found: dict[str, list[tuple[Dimension, Slice]]] = {}
    for dimension in graph.dimensions:
        parts = dimension.of_role(Role.CONSUME)
        stacks = [part.parameter for part in parts if len(graph.shapes[part.parameter]) != 2]
        if stacks:
            raise UnsupportedModelError(
                f"the units of {dimension.name} lie inside a stack of experts ({stacks[0]}), which computes them in "
                f"one kernel where their values cannot be seen: {remedy}"
            )
        if not parts:
            raise UnsupportedModelError(
                f"no projection reads the units of {dimension.name}, so they have no values: {remedy}"
            )
        for part in parts:
            found.setdefault(part.module, []).append((dimension, part))
    return {module: tuple(places) for module, places in found.items()}


class InputBatch:
    """What the inputs of the running forward pass say: how many rows there are, and which tokens are padding.

    ``attention_mask`` says it, in the decoder of an encoder-decoder ``decoder_attention_mask`` or else labels of -100.
    """

    def __init__(self, model: AnyModel) -> None:
        self._encodes = bool(getattr(base_model(model).config, "is_encoder_decoder", False))
        self._handle = model.register_forward_pre_hook(self._look, with_kwargs=True)
        self.rows = 0
        self.number = 0
        """Counts the forward passes."""

    def _look(self, module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        names = ("input_ids", "inputs_embeds", "pixel_values")
        self.rows = len(next(inputs[name] for name in names if inputs.get(name) is not None) if not args else args[0])
        self.number += 1
        self._found: dict[tuple[int, torch.device], torch.Tensor] = {}
        self._source, target = inputs.get("attention_mask"), inputs.get("decoder_attention_mask")
        labels = inputs.get("labels")
        if target is None and labels is not None and labels.dim() == 2:
            target = labels != -100
        self._target = target

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """Values [..., width] that a module was given, as [rows, tokens, width]."""
        if not self.rows:
            raise RuntimeError("the forward pass went around the model's own call, so its rows are not known")
        return values.reshape(self.rows, -1, values.shape[-1])

    def real(self, module: str, values: torch.Tensor) -> torch.Tensor:
        """The values [tokens, width] that are no padding, of [rows, tokens, width] that a module was given."""
        mask = self._target if self._encodes and "decoder" in module.split(".") else self._source
        if mask is None:
            return values.flatten(0, 1)
        if mask.shape != values.shape[:2]:
            raise DataError(
                f"{module} computes {list(values.shape[:2])} rows and tokens, the attention mask has "
                f"{list(mask.shape)}: give masks of rows and tokens"
            )
        return values.flatten(0, 1).index_select(0, self._places(mask, values.device))

    def _places(self, mask: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Where a mask [rows, tokens] is on, flat; looked up once a forward pass and device."""
        key = (id(mask), device)
        if key not in self._found:
            self._found[key] = mask.flatten().nonzero()[:, 0].to(device)
        return self._found[key]

    def close(self) -> None:
        """Look no longer."""
        self._handle.remove()


@dataclass
class Moments:
    """Running moments of vectors [width]: their ``count``, ``mean``, and ``spread``, the sum of squared deviations.

    Batches are merged as by Chan, Golub and LeVeque (1983), so that nothing is lost to cancellation; fp32.
    """

    count: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """The moments of values [tokens, width]."""
        values = values.float()
        count = values.new_full((), float(len(values)))
        mean = values.sum(0) / count.clamp_min(1)
        return cls(count, mean, (values - mean).square_().sum(0))

    def add(self, values: torch.Tensor) -> None:
        """Take in more vectors [tokens, width]."""
        other = Moments.of(values)
        count = self.count + other.count
        away = other.mean - self.mean
        share = other.count / count.clamp_min(1)
        self.mean = self.mean + away * share
        self.spread = self.spread + other.spread + away.square() * (self.count * share)
        self.count = count

    def over_ranks(self) -> Moments:
        """The moments of all ranks' vectors together."""
        count = sum_over_ranks(self.count.clone())
        mean = sum_over_ranks(self.mean * self.count) / count.clamp_min(1)
        return Moments(count, mean, sum_over_ranks(self.spread + (self.mean - mean).square() * self.count))

    @property
    def mean_square(self) -> torch.Tensor:
        """The mean of the squares."""
        return self.spread / self.count.clamp_min(1) + self.mean.square()

    @property
    def variance(self) -> torch.Tensor:
        """The unbiased variance; 0 of a single vector."""
        return self.spread / (self.count - 1).clamp_min(1)


class Summary(Protocol):
    """What is kept of the vectors [width] that a projection reads."""

    def add(self, values: torch.Tensor) -> None:
        """Take in more of them, [tokens, width]."""
        ...

    def over_ranks(self) -> Self:
        """What is kept of all ranks' vectors together."""
        ...


S = TypeVar("S", bound=Summary)


class InputReader(Averaged, ABC, Generic[S]):
    """Scores units by what they put out, at the inputs of the projections that read them.

    The forward pass runs under whatever masks and adapters are on; the values are read before the unit's own mask, so
    that a masked unit that would be worth it can come back, or after it. Padding does not count. After an ``observe``
    nothing but the moving average is left.
    """

    _before_masks = True

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        super().__init__(graph, options.smoothing)
        self._options = options
        self._consumers = consumers(graph)
        self._seen: dict[str, S] = {}
        self._handles: list[RemovableHandle] = []
        self._batch: InputBatch | None = None

    def begin(self, model: AnyModel) -> None:
        """Watch the inputs."""
        self._batch = InputBatch(model)
        for name in self._consumers:
            hook = partial(self._see, name)
            module = module_at(model, name)
            self._handles.append(module.register_forward_pre_hook(hook, prepend=self._before_masks))

    def end(self, model: AnyModel) -> None:
        """Watch them no longer."""
        for handle in self._handles:
            handle.remove()
        if self._batch is not None:
            self._batch.close()
        self._handles, self._batch, self._seen = [], None, {}

    @torch.no_grad()
    def _see(self, name: str, module: nn.Module, inputs: Any) -> None:
        assert self._batch is not None
        values = self._batch.real(name, self._batch.by_row(inputs[0]))
        if name in self._seen:
            self._seen[name].add(values)
        else:
            self._seen[name] = self._summary(values)

    @torch.no_grad()
    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> Finite:
        """Take what came by since the last call into the average."""
        unseen = self._consumers.keys() - self._seen.keys()
        if unseen:
            raise RuntimeError(f"nothing was seen of {min(unseen)}: call begin() before the first forward pass")
        weights = merged_weights(model, {part.parameter for places in self._consumers.values() for _, part in places})
        scores = self._scores(model, weights, loss_scale)
        self._seen = {}
        return self._take_in(scores)

    @abstractmethod
    def _summary(self, values: torch.Tensor) -> S:
        """What is kept of values [tokens, width]."""

    @abstractmethod
    def _scores(self, model: AnyModel, weights: Mapping[str, Weight], loss_scale: float) -> dict[str, torch.Tensor]:
        """The scores [units] a dimension, from what was seen and the weights of the projections by name."""


class InputCriterion(InputReader[Moments], ABC):
    """Scores units by moments of single inputs; state between two ``observe`` is O(width) a projection."""

    def _summary(self, values: torch.Tensor) -> Moments:
        return Moments.of(values)

    def _scores(self, model: AnyModel, weights: Mapping[str, Weight], loss_scale: float) -> dict[str, torch.Tensor]:
        scores: dict[str, torch.Tensor] = {}
        for module, places in self._consumers.items():
            axis, parameter = places[0][1].axis, places[0][1].parameter
            along = self._along(weights[parameter], axis, self._seen[module].over_ranks())
            for dimension, part in places:
                found = unit_sums(along, part, dimension.size) * self._share(part)
                so_far = scores.get(dimension.name)
                scores[dimension.name] = found if so_far is None else so_far.to(found.device) + found
        return self._finish({dimension.name: scores[dimension.name] for dimension in self._graph.dimensions})

    @abstractmethod
    def _along(self, weight: Weight, axis: int, moments: Moments) -> torch.Tensor:
        """The scores [width] of the inputs of one weight, which lie along ``axis``."""

    def _share(self, part: Slice) -> float:
        """What the sum over a unit's inputs is multiplied by."""
        return 1.0

    def _finish(self, scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What makes the scores of different dimensions comparable."""
        return scores

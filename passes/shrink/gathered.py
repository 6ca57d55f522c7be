"""Gathered: what every tensor and setting of a compact model must be, worked out apart from the code that cuts.

Tensors are compared bit for bit, so the dtype does not matter and nothing is too small to be seen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from passes.errors import PostconditionError
from passes.graph import Dimension, Kind, PruningGraph, Slice, layer_path
from passes.models import WIDE, bit_difference, constant_difference, count_parameters, weightless
from passes.shrink.rescale import Rescale, Scales, embedding_scale, rescales

logger = logging.getLogger(__name__)

MODES = ("training", "gradient_checkpointing")
"""Settings of a module that say how it is run, not what it computes."""


@dataclass(frozen=True)
class Gathered:
    """What a plan leaves of ``dense``: names, tensors, and these before they were rounded.

    ``compact`` is the model in question; only the scale of its embedding is read.
    """

    dense: PreTrainedModel
    compact: PreTrainedModel
    graph: PruningGraph
    kept: Mapping[str, Sequence[int]]

    @cached_property
    def layers(self) -> dict[str, str]:
        """The paths of the compact model's layers, with those that they have in the dense model."""
        every = layers_of(self.dense)
        numbered = self.graph.by_name.get(str(Kind.LAYERS))
        if numbered is None:
            return {path: path for path in every}
        stack = [layer_path(owned[0]) for owned in numbered.owned]
        stay = [stack[unit] for unit in self.kept[numbered.name]]
        others = {path: path for path in every if path not in stack}
        return {**others, **dict(zip(stack, stay, strict=False))}

    def names(self, dense: Sequence[str]) -> dict[str, str]:
        """The names that are left of these of the dense model, as they are in the compact one."""
        compact = {was: now for now, was in self.layers.items()}
        return {
            f"{compact[path]}{name[len(path) :]}" if path != name else name: name
            for name in dense
            if (path := layer_path(name)) == name or path in compact
        }

    @cached_property
    def _first_names(self) -> dict[str, str]:
        """Every name of a parameter of the dense model, with the first name of the same tensor."""
        first = {id(parameter): name for name, parameter in self.dense.named_parameters()}
        both = self.dense.named_parameters(remove_duplicate=False)
        return {name: first[id(parameter)] for name, parameter in both}

    @cached_property
    def tensors(self) -> dict[str, str]:
        """The parameters and stored buffers by their names in the compact model, with those in the dense one."""
        return self.names(list(self.dense.state_dict()))

    @cached_property
    def rescaled(self) -> dict[str, Rescale]:
        """What happens to parameters beside being cut, by their names in the dense model."""
        tied = self.dense.get_output_embeddings() is not None and bool(self.dense.config.tie_word_embeddings)
        scales = Scales(embedding_scale(self.dense), embedding_scale(self.compact), tied)
        return rescales(self.graph, self.kept, scales)

    @cached_property
    def _gone(self) -> frozenset[str]:
        return self.graph.gone(self.kept)

    def left_of(self, dense: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is left of a tensor of that name in the dense model."""
        first = self._first_names.get(dense, dense)
        if first in self._gone:
            return tensor[..., :0]
        return gathered(tensor, self.graph.cuts_of.get(first, ()), self.kept)

    def check_one(self, name: str, tensor: torch.Tensor, before: torch.Tensor) -> None:
        """Raise PostconditionError unless a tensor of the compact model is what the plan leaves of the dense one's."""
        dense = self.tensors[name]
        rescale = self.rescaled.get(self._first_names.get(dense, dense))
        left = self.left_of(dense, before)
        difference = bit_difference(tensor, left if rescale is None else rescale(left))
        if difference is not None:
            _fail(f"{name} is not what the plan leaves of it: it {difference}")

    def _tensor(self, dense: str) -> torch.Tensor:
        return cast(torch.Tensor, self.dense.state_dict(keep_vars=True)[dense]).detach()

    def unrounded(self, dense: str) -> torch.Tensor:
        """What that tensor must be in the compact model, in ``WIDE``, where it was not rounded."""
        rescale = self.rescaled.get(self._first_names.get(dense, dense), Rescale())
        return rescale(self.left_of(dense, self._tensor(dense)).to(WIDE))

    @cached_property
    def constants(self) -> dict[int, torch.Tensor]:
        """The buffers of the dense model that the compact one has as well, by id, as they are there.

        Raises PostconditionError unless they are equal (see ``constant_difference``).
        """
        mine, theirs = dict(self.dense.named_buffers()), dict(self.compact.named_buffers())
        found, rounded = {}, list[str]()
        rescaled_embedding = self.rescaled_embedding
        for name, dense in self.names(list(mine)).items():
            old, new = mine[dense], theirs.get(name)
            if new is None or new.shape != old.shape or rescaled_embedding == dense.rpartition(".")[0]:
                continue
            difference = constant_difference(new, old)
            if difference is not None:
                _fail(f"the constant {name} {difference}")
            rounded += [name] if old.dtype != new.dtype else []
            found[id(old)] = new.detach()
        if rounded:
            logger.warning(
                "the model's %s was rounded when the model was moved to another dtype; the checkpoint computes with "
                "the exact one (from_pretrained(..., dtype=...) keeps it)",
                rounded[0],
            )
        return found

    @cached_property
    def rescaled_embedding(self) -> str | None:
        """The module of a token embedding whose scale, which follows the hidden size, is made up for in its weight."""
        streams = [d.stream for d in self.graph.of_kind(Kind.HIDDEN) if d.stream is not None]
        return next((s.embedding.rpartition(".")[0] for s in streams if s.embedding in self.rescaled), None)

    def check(self, parameters: int) -> None:
        """Raise PostconditionError, naming tensor and number, unless the compact model is just this."""
        self.check_names()
        found = self.compact.state_dict(keep_vars=True)
        for name, dense in self.tensors.items():
            self.check_one(name, found[name], self._tensor(dense))
        self.check_form(parameters)

    def check_names(self) -> None:
        """Raise PostconditionError unless the compact model has just these tensors."""
        found = self.compact.state_dict(keep_vars=True)
        odd = sorted(found.keys() ^ self.tensors.keys())
        if odd:
            _fail(f"{odd[0]} {'should not be there' if odd[0] in found else 'is missing'}")

    def check_form(self, parameters: int) -> None:
        """Raise PostconditionError unless the compact model has so many parameters and is what its configuration says.

        No values are read.
        """
        counted = count_parameters(self.compact)
        if counted != parameters:
            _fail(f"{counted:,} parameters are left, the plan says {parameters:,}")
        check_settings(self.compact)
        self._check_entries()

    def _check_entries(self) -> None:
        """The configuration says of nothing but sizes something else than the source's."""
        before, after = self.dense.config.to_dict(), self.compact.config.to_dict()
        free = {*self._sizes(), *_NAMING}
        for entry in sorted((before.keys() & after.keys()) - free):
            if before[entry] != after[entry]:
                _fail(f"config.{entry} is {after[entry]!r}, the source has {before[entry]!r}")

    def _sizes(self) -> Iterator[str]:
        """The entries that a smaller model states anew."""
        renamed = self.dense.config.attribute_map
        for width in self.graph.widths:
            yield from (renamed.get(entry, entry) for entry in width.entries)
            if width.epsilon is not None and self.graph.of_kind(Kind.HIDDEN):
                yield width.epsilon
        yield from (renamed.get(entry, entry) for entry in self.graph.fixed_entries)
        if str(Kind.LAYERS) in self.graph.by_name:
            yield from (renamed.get("num_hidden_layers", "num_hidden_layers"), *_LAYERWISE)


_LAYERWISE = ("layer_types", "no_rope_layers", "mlp_only_layers", "decoder_sparse_step")
_NAMING = ("architectures", "auto_map", "model_type", "transformers_version", "per_layer_config", "sliding_window")


def layers_of(model: PreTrainedModel) -> list[str]:
    """The paths of a model's layers: modules that the first number in their path counts."""
    names = (name for name, _ in model.named_modules())
    return [name for name in names if name.rpartition(".")[2].isdigit() and layer_path(name) == name]


def gathered(
    tensor: torch.Tensor, parts: Sequence[tuple[Dimension, Slice]], kept: Mapping[str, Sequence[int]]
) -> torch.Tensor:
    """The entries of a tensor that no removed unit owns: each index is asked whose it is."""
    whole: dict[int, torch.Tensor] = {}
    lanes: dict[int, dict[int, torch.Tensor]] = {}
    for dimension, part in parts:
        stays = _stays(tensor.shape[part.axis], part, dimension.size, kept[dimension.name])
        side, key = (whole, part.axis) if part.at is None else (lanes.setdefault(part.axis, {}), part.at)
        side[key] = side[key] & stays if key in side else stays
    for axis, stacked in lanes.items():
        stay = whole.pop(0, torch.ones(len(tensor), dtype=torch.bool))
        tensor = torch.stack(
            [_taken(tensor[at], axis - 1, stacked.get(at)) for at in stay.nonzero().flatten().tolist()]
        )
    for axis, stay in whole.items():
        tensor = _taken(tensor, axis, stay)
    return tensor


def _stays(length: int, part: Slice, size: int, kept: Sequence[int]) -> torch.Tensor:
    """Which of the indices along the axis of a slice stay."""
    units = torch.zeros(size, dtype=torch.bool)
    units[list(kept)] = True
    index, stays = torch.arange(length), torch.ones(length, dtype=torch.bool)
    for start, block in part.segments:
        unit = torch.div(index - start, block, rounding_mode="floor")
        owned = (unit >= 0) & (unit < size)
        stays &= ~owned | units[unit.clamp(0, size - 1)]
    return stays


def _taken(tensor: torch.Tensor, axis: int, stay: torch.Tensor | None) -> torch.Tensor:
    return tensor if stay is None else tensor[(slice(None),) * axis + (stay.to(tensor.device),)]


def check_settings(model: PreTrainedModel) -> None:
    """Raise PostconditionError unless the model is what its configuration builds: names, shapes, modules, settings."""
    built = weightless(type(model), type(model.config).from_dict(model.config.to_dict()))
    for kind in ("parameters", "buffers"):
        mine, theirs = ({n: tuple(t.shape) for n, t in _named(each, kind)} for each in (model, built))
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                _fail(f"{name} has shape {mine.get(name)}, its configuration says {theirs.get(name)}")
    modules = dict(built.named_modules())
    for path, module in model.named_modules():
        mine, theirs = settings(module), settings(modules[path])
        for name in sorted(mine.keys() & theirs.keys()):
            if mine[name] != theirs[name]:
                _fail(f"{path}.{name} is {mine[name]}, its configuration says {theirs[name]}")


def settings(module: nn.Module) -> dict[str, Any]:
    """What a module knows beside tensors and modules."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_") and name not in MODES
    }


def _named(model: PreTrainedModel, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False) if kind == "parameters" else model.named_buffers()


def _fail(what: str) -> None:
    raise PostconditionError(f"pass 'shrink' failed its verification: {what}")

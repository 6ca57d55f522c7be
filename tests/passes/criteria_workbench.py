"""What the tests of criteria share: batches with labels, dense twins, and unit factors put on by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import zoo
from handmade import exact, materialised, weights_of, worn
from peft import PeftModel
from transformers import PreTrainedModel

from passes.graph import PruningGraph, Role
from passes.options import ImportanceOptions

PLAIN = ImportanceOptions(normalise=False, smoothing=0.0)
ROWS = 3

Batch = dict[str, torch.Tensor]


def batch_of(name: str, *, padded: bool = True) -> Batch:
    """Three rows with their labels; without padding each row has as many labels."""
    case = zoo.ZOO[name]
    batch = zoo.inputs(name, case)
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 256, 7)
    return {**batch, **zoo.labels(case, batch)}


def row_of(batch: Batch, row: int) -> Batch:
    return {key: value[row : row + 1] for key, value in batch.items()}


def some_masks(graph: PruningGraph) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {d.name: torch.rand(d.size, generator=generator) > 0.3 for d in graph.dimensions}
    for mask in found.values():
        mask[0], mask[1] = True, False
    return found


def twin_of(name: str) -> tuple[PeftModel, PreTrainedModel, PruningGraph]:
    """An adapted model in double precision, and the dense one that computes the same."""
    model, graph = worn(name)
    return exact(model), materialised(exact(model), exact(zoo.build(name)), weights_of(graph)), graph


@contextmanager
def by_hand(model: PreTrainedModel, graph: PruningGraph, factors: dict[str, torch.Tensor]) -> Iterator[None]:
    """The inputs of the consuming projections times a factor a unit, [units] or [rows, units]."""
    handles = []
    for dimension in graph.dimensions:
        for part in dimension.of_role(Role.CONSUME):
            units = torch.empty(graph.shapes[part.parameter][part.axis], dtype=torch.int64)
            for unit in range(dimension.size):
                units[part.indices([unit])] = unit

            def hook(_, inputs, name=dimension.name, units=units):
                factor = factors[name][..., units]
                return (inputs[0] * (factor if factor.dim() == 1 else factor[:, None]),)

            handles.append(model.get_submodule(part.module).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

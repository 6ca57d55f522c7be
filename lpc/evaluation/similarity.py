"""How alike the similarities of embeddings are to the dense model's: their ranks, and who is nearest to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from peft import PeftModel
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from lpc.data import Collator, Row
from lpc.evaluation.quality import Quality
from passes.errors import DataError, ModelError
from passes.models import Task, base_model, embedding_loss, evaluation_mode, pooling_of, takes

__all__ = ["Texts", "embedded", "nearest_kept", "rank_correlation", "similarity_quality"]

NEAREST = 10


class Texts(Protocol):
    """Texts, by index: their tokens, and the vectors that they are to have as ``labels``."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Row:
        """One of them."""


def embedded(model: PreTrainedModel | PeftModel, rows: Iterable[Row], batch_size: int) -> Iterator[torch.Tensor]:
    """A live model's vectors, batch after batch, ``[rows, width]`` fp32 on the CPU; it comes back in its modes."""
    base = base_model(model)
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    collate, pooling = Collator.of(base.config, Task.FEATURE_EXTRACTION), pooling_of(base)
    more = {"use_cache": False} if takes(base, "use_cache") else {}
    with evaluation_mode(model), torch.no_grad():
        for batch in in_batches(rows, batch_size):
            inputs = {name: value.to(parameter.device) for name, value in collate(batch).items() if name != "labels"}
            hidden = model(**inputs, **more)["last_hidden_state"]
            yield pooling(hidden, inputs["attention_mask"]).cpu()


def in_batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of so many."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def similarity_quality(found: torch.Tensor, wanted: torch.Tensor) -> Quality:
    """How well vectors ``[rows, width]`` keep what others ``[rows, their width]``, the dense model's, say of likeness.

    Raises DataError for fewer than three rows, ModelError for vectors that are not finite.
    """
    if len(found) < 3:
        raise DataError(f"{len(found)} held-out texts cannot be compared with one another: give more, or hold out more")
    if not bool(torch.isfinite(found).all()):
        raise ModelError("the model's vectors are NaN or infinite: load it in another dtype (--dtype bf16 or fp32)")
    mine, theirs = (_similarities(each) for each in (found, wanted))
    pairs = torch.ones_like(mine, dtype=torch.bool).triu(1)
    return Quality(
        loss=max(0.0, float(embedding_loss(found, wanted))),
        accuracy=None,
        perplexity=None,
        rows=len(found),
        labels=len(found),
        similarity=rank_correlation(mine[pairs], theirs[pairs]),
        neighbours=nearest_kept(mine, theirs),
    )


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman's: the correlation of the ranks of two lists of numbers; equal numbers share their mean rank."""
    ranks = [_ranks(each) for each in (one, other)]
    a, b = (each - each.mean() for each in ranks)
    found = (a * b).sum() / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)
    return float(found.clamp(-1, 1))  # rounding goes beyond


def nearest_kept(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """The mean share of each row's ten largest entries ``[rows, rows]``, its own left out, that are the same ones.

    Of few rows it is a third of them, since all of them are always the same.
    """
    most = max(1, min(NEAREST, len(mine) // 3))
    own = torch.eye(len(mine), dtype=torch.bool)
    near = [each.masked_fill(own, -torch.inf).topk(most).indices for each in (mine, theirs)]
    same = (near[0][:, :, None] == near[1][:, None, :]).any(-1)
    return float(same.double().mean())


def _similarities(vectors: torch.Tensor) -> torch.Tensor:
    whole = normalize(vectors.double(), dim=-1)
    return whole @ whole.T


def _ranks(values: torch.Tensor) -> torch.Tensor:
    places, counts = torch.unique(values, return_inverse=True, return_counts=True)[1:]
    ranks: torch.Tensor = counts.cumsum(0) - (counts.double() - 1) / 2
    return ranks[places]

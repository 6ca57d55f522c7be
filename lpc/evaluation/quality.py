"""What is said of a model's quality on rows: loss, accuracy, perplexity, and of embeddings their likenesses."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Quality"]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well a model does on rows.

    ``loss`` is the model's own: the mean over ``labels`` labels in nats (for regression the mean squared error). In
    question answering the logits of padding are left out, so that it does not depend on the batches. ``accuracy`` is
    the share of labels that the largest logit names, for question answering of rows whose start and end are both
    right; None where labels are no classes. ``perplexity`` is exp(loss) for language models, else None.

    Of embedding models ``loss`` is the distance to the vectors of the dense one (``passes.models.embedding_loss``, all
    rows in one batch); ``similarity`` is Spearman's correlation of the cosines of all pairs of rows with the dense
    model's, ``neighbours`` the mean share of a row's ten nearest ones that are the dense model's ten.

    ``completions``: prompts with what the model goes on with, where that was asked for.
    """

    loss: float
    accuracy: float | None
    perplexity: float | None
    rows: int
    labels: int
    similarity: float | None = None
    neighbours: float | None = None
    completions: tuple[tuple[str, str], ...] = ()

    @property
    def measures(self) -> dict[str, float]:
        """The measures that there are, by name."""
        names = ("loss", "accuracy", "perplexity", "similarity", "neighbours")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

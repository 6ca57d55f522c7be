"""Embedding models: how the last hidden states become one vector a text, and the distance to a dense model's vectors.

A model without a head has no loss. As an embedding model its class is the stock one with one more input: ``labels``,
the vectors that the dense model gives, with which ``forward`` also returns the distance to them as ``loss``.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch.nn.functional import normalize
from transformers import PreTrainedConfig, PreTrainedModel

from passes.models.base import base_model
from passes.models.batches import Collate, Row

SENTENCE_EMBEDDING = "sentence_embedding"
"""What the vectors are called among a model's outputs, and a graph's, as sentence-transformers calls them."""

NOISE = 0.1
"""How far labels are drawn from the vectors, relative to their length; scores grow with its square, all alike."""


class PoolingMode(StrEnum):
    """Which positions make the vector."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "lasttoken"


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """From last hidden states to one vector a row; ``normalise``: of length 1."""

    mode: PoolingMode = PoolingMode.MEAN
    normalise: bool = False

    def __call__(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[rows, width], fp32, of hidden states [rows, tokens, width] where the mask [rows, tokens] is 1."""
        hidden = hidden.float()
        if self.mode is PoolingMode.CLS:
            found = _at(hidden, mask.argmax(1))
        elif self.mode is PoolingMode.LAST:
            found = _at(hidden, (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1))
        else:
            weights = mask[:, :, None].to(hidden.dtype)
            found = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        return normalize(found, dim=-1) if self.normalise else found

    def __str__(self) -> str:
        return f"{self.mode}{', normalised' if self.normalise else ''}"


def _at(hidden: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The states [rows, width] at one place [rows] of each row."""
    return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


WIDTHS = ("word_embedding_dimension", "embedding_dimension")
"""What sentence-transformers calls the width of the vectors, in the configuration of its pooling."""


@dataclass(frozen=True, kw_only=True)
class SentenceFiles:
    """What lies beside the weights of a sentence-transformers folder, taken along as it stands.

    ``files``: their relative paths and contents; ``pooling`` is the path of the one that states the width.
    """

    files: tuple[tuple[str, bytes], ...] = ()
    pooling: str | None = None

    def write(self, folder: Path, config: PreTrainedConfig) -> None:
        """Write those that are not there yet beside a model's configuration, the width of the vectors put right."""
        for name, content in self.files:
            path = folder / name
            if name == self.pooling:
                said = json.loads(content)
                right = {key: config.hidden_size for key in WIDTHS if key in said}
                if right.items() - said.items():
                    content = json.dumps({**said, **right}, indent=2).encode()
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def embedding_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far vectors [rows, width] are from those of the dense model [rows, dense width]; a scalar, fp32.

        mean over i of (1 − cos(e_i, d_i)) + mean over i ≠ j of (cos(e_i, e_j) − cos(d_i, d_j))²

    The first part only where both are as wide, the second only for more than one row.
    """
    found, wanted = (normalize(each.float(), dim=-1) for each in (found, wanted))
    loss: torch.Tensor = found.sum() * 0
    if found.shape == wanted.shape:
        loss = loss + (1 - (found * wanted).sum(-1)).mean()
    if len(found) > 1:
        others = ~torch.eye(len(found), dtype=torch.bool, device=found.device)
        loss = loss + (found @ found.T - wanted @ wanted.T)[others].square().mean()
    return loss


def drawn_around(wanted: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vectors [rows, width] drawn around others, ``NOISE`` of their length away on average.

    At the dense model the distance to its own vectors is least, so it has no gradient there. As the Fisher information
    wants it (Martens 2014, arXiv 1412.1193), labels are drawn from what the model gives: then the mean of
    the gradients' squares is the distance's curvature.
    """
    noise = torch.randn(wanted.shape, generator=generator).to(wanted) / wanted.shape[-1] ** 0.5
    drawn: torch.Tensor = wanted + NOISE * wanted.norm(dim=-1, keepdim=True) * noise
    return drawn


@dataclass(frozen=True)
class Drawing:
    """Makes the batches that another makes, with labels drawn around theirs: the same ones for the same texts."""

    collate: Collate

    def __call__(self, rows: list[Row]) -> Row:
        """One batch."""
        batch = self.collate(rows)
        generator = torch.Generator().manual_seed(int(batch["input_ids"].sum()))
        return {**batch, "labels": drawn_around(batch["labels"], generator)}


def pooling_of(model: PreTrainedModel | PeftModel) -> Pooling:
    """How a model's hidden states are pooled: the mean, unless it was said."""
    found: Pooling = getattr(type(base_model(model)), "pooling", Pooling())
    return found


def sentence_files(model: PreTrainedModel | PeftModel) -> SentenceFiles:
    """What lay beside an embedding model's weights, if anything did."""
    found: SentenceFiles = getattr(type(base_model(model)), "sentence_files", SentenceFiles())
    return found


def embeds(model: PreTrainedModel, pooling: Pooling, files: SentenceFiles = SentenceFiles()) -> None:
    """Make a model without a head an embedding model, in place: its class takes ``labels`` from now on."""
    model.__class__ = embedding_class(type(model), pooling, files)


def embedding_class(stock: type[PreTrainedModel], pooling: Pooling, files: SentenceFiles) -> type[PreTrainedModel]:
    """The class of an embedding model; by name, module and tensors it is the stock one. The same one each time."""
    headless: Any = getattr(cast(Any, stock), "headless", stock)
    return cast("type[PreTrainedModel]", _made_of(headless, pooling, files))


def embedding_like(kind: type[PreTrainedModel], other: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class as it stands in the place of another: an embedding model's, if that is one."""
    if not hasattr(other, "headless"):
        return kind
    return embedding_class(kind, cast(Any, other).pooling, cast(Any, other).sentence_files)


@functools.cache
def _made_of(stock: Any, pooling: Pooling, files: SentenceFiles) -> type:
    signature = inspect.signature(stock.forward)

    def forward(self: Any, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        output = stock.forward(self, *args, **kwargs)
        if labels is None:
            return output
        given = signature.bind_partial(self, *args, **kwargs).arguments
        hidden, mask = output["last_hidden_state"], given.get("attention_mask")
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device) if mask is None else mask
        output[SENTENCE_EMBEDDING] = pooling(hidden, mask)
        output["loss"] = embedding_loss(output[SENTENCE_EMBEDDING], labels)
        return output

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        stock.save_pretrained(self, save_directory, *args, **kwargs)
        files.write(Path(save_directory), self.config)

    labels = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
    named = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    rest = [each for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD]
    cast(Any, forward).__signature__ = signature.replace(parameters=[*named, labels, *rest])
    members: Mapping[str, Any] = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "accepts_loss_kwargs": False,  # for the Trainer: the loss is the mean over a micro-batch's rows
        "headless": stock,
        "pooling": pooling,
        "sentence_files": files,
        "forward": forward,
        "save_pretrained": save_pretrained,
    }
    return type(stock.__name__, (stock,), dict(members))

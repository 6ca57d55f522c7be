"""The dense model's vectors of the texts that a run is made on: what an embedding model has in place of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lpc.data import Row, Sentences
from lpc.evaluation import embedded
from passes.models import pooling_of
from passes.pipeline import Pass, PassRecord, PassResult, Program, RunContext
from passes.ranks import from_first

__all__ = ["EmbedPass", "Embedded"]

VECTORS = "vectors.safetensors"


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """How many texts the dense model gave vectors of, how wide these are, and how they are pooled."""

    texts: int
    width: int
    pooling: str


@dataclass(frozen=True)
class EmbedPass(Pass):
    """Has the dense model give its vectors of all texts, to rank, tune and measure towards; the program stays as it is.

    Texts of one length lie together in a batch.
    """

    sentences: Mapping[str, Sentences] = field(metadata={"record": False})
    name = "embed"
    batches = True
    reports = Embedded

    @property
    def options(self) -> Mapping[str, Any]:
        """How many texts there are of each kind."""
        return {name: len(each) for name, each in self.sentences.items()}

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Fill the vectors in."""
        run, done, total = run.narrowed(self), 0, sum(self.options.values())
        for name, texts in self.sentences.items():
            order = sorted(range(len(texts)), key=lambda index: len(texts.tokens[index]))
            rows: list[Row] = [{"input_ids": texts.tokens[index]} for index in order]
            parts = []
            for part in embedded(program.model, rows, run.batch_size):
                parts.append(part)
                done += len(part)
                run.progress(self.name, done, total)
            vectors = torch.cat(parts)
            texts.fill(from_first({name: vectors[torch.tensor(order).argsort()]})[name])
        report = Embedded(texts=total, width=vectors.shape[1], pooling=str(pooling_of(program.model)))
        return PassResult(program, modified=False, report=report)

    def keep(self, after: Program, folder: Path) -> bool:
        """The vectors."""
        save_file({name: each.vectors for name, each in self.sentences.items()}, folder / VECTORS)
        return True

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The same vectors again."""
        for name, vectors in load_file(folder / VECTORS).items():
            self.sentences[name].fill(vectors)
        return before

"""The model's own text as data: known by number and length from the start, by its tokens once a pass has drawn it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from lpc.data import IGNORED, Row
from lpc.generation.sampling import drawn, seeds
from lpc.generation.script import Script
from passes.errors import OptionError
from passes.models import base_model
from passes.pipeline import Pass, PassRecord, PassResult, Program, RunContext
from passes.ranks import from_first, on_first, told_by_first
from passes.tuning import last_whole, seal

__all__ = ["AT_ONCE", "GeneratePass", "Mixed", "OwnText", "Written", "mixed_count"]

logger = logging.getLogger(__name__)

TEXTS = "own_text.safetensors"
AT_ONCE = 8
"""Batches of the run's size that are drawn at once: what a token costs is mostly the reading of the weights."""


class OwnText(torch.utils.data.Dataset[Row]):
    """Sequences of ``length`` tokens that a model writes by a script: ``heldout``, and then ``count`` to train on.

    Until ``fill`` nothing is there but their number. Where fewer were drawn, those to train on stand there repeatedly.
    """

    def __init__(self, script: Script, *, length: int, count: int, heldout: int = 0) -> None:
        least = len(script.opening) + 2
        if length < least:
            raise OptionError(
                f"sequence_length {length}: a sequence of the model's own needs at least {least} tokens, "
                f"{len(script.opening)} with which it begins, one to predict it from and one to predict"
            )
        self.script, self.length, self.count, self.heldout = script, length, count, heldout
        self._tokens: torch.Tensor | None = None

    def fill(self, tokens: torch.Tensor) -> None:
        """What was drawn, ``[drawn, length]``, at least one more than ``heldout``."""
        self._tokens = tokens

    @property
    def tokens(self) -> torch.Tensor:
        """What was drawn."""
        if self._tokens is None:
            raise RuntimeError("the model's own text is not drawn yet: GeneratePass comes before all that reads data")
        return self._tokens

    def labels(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens, but -100 for those that a text begins with."""
        labels = tokens.clone()
        labels[..., : len(self.script.opening)] = IGNORED
        return labels

    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and labels of what is held out, both ``[heldout, length]``."""
        held = self.tokens[: self.heldout]
        return held, self.labels(held)

    def __len__(self) -> int:
        """How many there are to train on."""
        return self.count

    def __getitem__(self, index: int) -> Row:
        """``input_ids`` and ``labels``, both ``[length]``."""
        tokens = self.tokens[self.heldout + index % (len(self.tokens) - self.heldout)]
        return {"input_ids": tokens, "labels": self.labels(tokens)}


class Mixed(torch.utils.data.Dataset[Row]):
    """The user's rows, each once, and between them the model's own, as evenly as can be: ``share`` of the whole."""

    def __init__(self, given: torch.utils.data.Dataset[Row], own: OwnText, share: float) -> None:
        self._given, self._own, self._share = given, own, share
        self._count = mixed_count(len(cast(Any, given)), share)

    def __len__(self) -> int:
        """The number of both."""
        return self._count

    def __getitem__(self, index: int) -> Row:
        """The row at a place, of the one or the other."""
        before, after = (math.floor(at * self._share) for at in (index, index + 1))
        if after > before:
            return self._own[before % len(self._own)]
        return self._given[(index - before) % len(cast(Any, self._given))]


def mixed_count(given: int, share: float) -> int:
    """How many rows there are in all where so many are the user's and ``share`` is the model's."""
    return math.floor(given / (1 - share))


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was drawn: ``sequences`` of ``length`` tokens, by a chat template or not, of ``asked`` in the time given."""

    sequences: int
    asked: int
    length: int
    chat: bool


@dataclass(frozen=True)
class GeneratePass(Pass):
    """Has the dense model write what a run tunes on, batch by batch; after ``most_seconds`` no further batch is begun.

    The data set is filled, the program stays as it is. Each batch is kept when it is done.
    """

    own: OwnText = field(metadata={"record": False})
    sequences: int
    length: int
    most_seconds: float
    chat: bool
    temperature: float = 1.0
    seed: int | None = None
    name = "generate"
    batches = True
    reports = Written

    @classmethod
    def of(cls, own: OwnText, sequences: int, most_seconds: float, temperature: float = 1.0) -> GeneratePass:
        """The pass that draws so many sequences for a data set."""
        return cls(own, sequences, own.length, most_seconds, own.script.is_chat, temperature)

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Draw; of several processes the first one does."""
        run = run.narrowed(self)
        drawn_here = on_first(lambda: self._draw(program, run))
        count = told_by_first(len(drawn_here) if drawn_here is not None else 0)
        whole = drawn_here if drawn_here is not None else torch.zeros(count, self.length, dtype=torch.int64)
        self.own.fill(from_first({"tokens": whole})["tokens"])
        report = Written(sequences=count, asked=self.sequences, length=self.length, chat=self.chat)
        return PassResult(program, modified=False, report=report)

    def keep(self, after: Program, folder: Path) -> bool:
        """The tokens."""
        save_file({"tokens": self.own.tokens}, folder / TEXTS)
        return True

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The data set filled with the kept tokens."""
        self.own.fill(load_file(folder / TEXTS)["tokens"])
        return before

    def _draw(self, program: Program, run: RunContext) -> torch.Tensor:
        sizes = split(self.sequences, AT_ONCE * run.batch_size)
        parts = self._kept(run.checkpoints, sizes)
        begun = time.monotonic()
        for number, seed in list(enumerate(seeds(run.seed, len(sizes))))[len(parts) :]:
            done = sum(map(len, parts))
            if time.monotonic() - begun > self.most_seconds and done > self.own.heldout:
                logger.warning(
                    "%d of %d sequences of the model's own are there after %.0f s (--self-seconds) and are taken "
                    "repeatedly", done, self.sequences, self.most_seconds,
                )  # fmt: skip
                break
            tell = self._teller(run, done, sizes[number])
            model, heat = base_model(program.model), self.temperature
            parts.append(drawn(model, self.own.script, sizes[number], self.length, seed, heat, tell))
            self._save(run.checkpoints, parts)
        return torch.cat(parts)

    def _teller(self, run: RunContext, done: int, rows: int) -> Any:
        new = self.length - len(self.own.script.opening)
        return lambda token: run.progress(self.name, done + rows * token // new, self.sequences)

    def _kept(self, folder: Path | None, sizes: Sequence[int]) -> list[torch.Tensor]:
        """The batches that an earlier run had finished; none if they are not those of this one."""
        found = last_whole(folder) if folder is not None else None
        if found is None:
            return []
        tokens, parts = load_file(found / TEXTS)["tokens"], list[torch.Tensor]()
        for size in sizes:
            if sum(map(len, parts)) < len(tokens):
                parts.append(tokens[sum(map(len, parts)) :][:size])
        return parts

    def _save(self, folder: Path | None, parts: Sequence[torch.Tensor]) -> None:
        if folder is None:
            return
        place = folder / f"checkpoint-{sum(map(len, parts))}"
        place.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": torch.cat(list(parts))}, place / TEXTS)
        seal(place)


def split(count: int, most: int) -> list[int]:
    """``count`` in parts of at most ``most``."""
    return [min(most, count - begin) for begin in range(0, count, most)]

"""Saved scores: the importance of every unit. From them a new plan takes neither data nor training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from passes.errors import MissingFileError, PlanError
from passes.graph import PruningGraph

SCORES_FILE = "scores.safetensors"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SavedScores:
    """The importance [units] a dimension, with the fingerprint of the source it was measured on.

    ``scored_by`` is as in ``Plan``.
    """

    name: ClassVar[str] = "scores"

    source: str
    criterion: str
    scores: Mapping[str, torch.Tensor]
    scored_by: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write a safetensors file, one tensor a dimension, into an output's folder."""
        head = {"source": self.source, "criterion": self.criterion, "scored_by": dict(self.scored_by)}
        metadata = {"lpc": json.dumps({"schema_version": SCHEMA_VERSION, **head}, sort_keys=True)}
        tensors = {name: score.float().contiguous() for name, score in self.scores.items()}
        save_file(tensors, folder / SCORES_FILE, metadata=metadata)
        return (Path(SCORES_FILE),)

    @classmethod
    def load(cls, path: str | Path) -> SavedScores:
        """Read them from an output's folder, or from the file.

        Raises MissingFileError, or PlanError for a file that lpc did not write.
        """
        path = Path(path) / SCORES_FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise MissingFileError(f"there is no scores file {path}: lpc compress writes OUT/{SCORES_FILE}")
        try:
            with safe_open(path, framework="pt") as file:
                head = json.loads((file.metadata() or {})["lpc"])
                scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if head.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"its schema version is not {SCHEMA_VERSION}")
            return cls(scores=scores, **head)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"{path} holds no scores that lpc wrote: {error}") from error

    def check(self, graph: PruningGraph) -> None:
        """Raise PlanError unless there is a finite score of every unit of the graph, and of nothing else."""
        wanted = {d.name: (d.size,) for d in graph.dimensions}
        found = {name: tuple(score.shape) for name, score in self.scores.items()}
        for name in sorted({*wanted, *found}):
            if wanted.get(name) != found.get(name):
                raise PlanError(
                    f"the scores and the model disagree on the dimension {name}: {found.get(name)} scores for "
                    f"{wanted.get(name)} units"
                )
            if not torch.isfinite(self.scores[name]).all():
                raise PlanError(f"the scores of {name} are not finite")
        if not any(score.any() for score in self.scores.values()):
            raise PlanError("the scores are all zero, so they rank nothing: take the file that the run wrote")

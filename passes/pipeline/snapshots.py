"""Snapshots: what a run leaves at a ratio on its way, from which the ordinary passes make a complete model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file

from passes.graph import Masks
from passes.models import Adapter

SNAPSHOT_FILES = "lpc_snapshot_*.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """Masks, scores [units] a dimension and the adapter as they were after ``step`` optimizer steps, at ``ratio``.

    Base weights do not change while tuning, so with the source that is all of a model.
    """

    ratio: float
    step: int
    masks: Masks
    scores: Mapping[str, torch.Tensor]
    adapter: Adapter

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write it beside a training checkpoint; returns the file, relative to the folder."""
        parts = {"mask": self.masks, "score": self.scores, "adapter": self.adapter.state}
        tensors = {
            f"{part}.{name}": value.contiguous() for part, those in parts.items() for name, value in those.items()
        }
        told = json.dumps({"ratio": self.ratio, "step": self.step})
        file = SNAPSHOT_FILES.replace("*", str(self.ratio))
        save_file(tensors, folder / file, metadata={"snapshot": told})
        return (Path(file),)

    @classmethod
    def load(cls, path: Path, config: LoraConfig) -> Snapshot:
        """Read what ``save`` wrote; ``config`` is that of the run's adapter."""
        parts: dict[str, dict[str, torch.Tensor]] = {"mask": {}, "score": {}, "adapter": {}}
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["snapshot"])
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(key)
        return cls(told["ratio"], told["step"], parts["mask"], parts["score"], Adapter(config, parts["adapter"]))


def load_snapshots(folder: Path, config: LoraConfig) -> list[Snapshot]:
    """The snapshots that were taken before a training checkpoint, ascending."""
    found = [Snapshot.load(path, config) for path in folder.glob(SNAPSHOT_FILES)]
    return sorted(found, key=lambda snapshot: snapshot.step)

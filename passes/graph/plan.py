"""The plan: which units stay, how they were chosen, for which model. JSON, replayable without data."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from passes.errors import MissingFileError, PlanError
from passes.graph.graph import PruningGraph
from passes.graph.kinds import Kind

SCHEMA_VERSION, READABLE = 3, (2, 3)
"""The version that is written, and those that are read; version 2 had no ``artifacts``."""

PLAN_FILE = "plan.json"
LAYOUTS = ("uniform", "per-layer")
COMPENSATED = "compensate"
"""The entry of a plan's options that says that weights were solved on data."""

MEANINGFUL = (
    "model_type",
    "hidden_act",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "layer_types",
)
"""Configuration entries of all types that change what the same parameters compute; a family names its own."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The decision.

    ``kept`` maps each dimension's name to the kept units, ascending: none in what lies in a layer or block that goes.
    ``budget`` is what was asked for, an amount a measure; ``source_parameters`` and ``target_parameters`` say what is
    reached. ``source`` is the fingerprint of the model the plan was made for. ``scored_by`` names the dimensions that
    the criterion scored by something else than the adapter, and by what. ``artifacts`` are the files that the run left
    beside the plan (adapter, solved weights, scores), relative to it, with their sha256: ``lpc apply`` takes no others.
    They are known once they are written, and are no part of the decision: plans that differ in them alone are equal.
    """

    name: ClassVar[str] = "plan"

    source: str
    family: str
    budget: Mapping[str, float | int | str]
    source_parameters: int
    target_parameters: int
    kept: Mapping[str, tuple[int, ...]]
    layout: str = "uniform"
    criterion: str = ""
    scored_by: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise PlanError(f"layout {self.layout!r} is unknown; this version knows {', '.join(LAYOUTS)}")
        depth = {str(kind) for kind in Kind if kind.is_depth} & self.kept.keys()
        for name, units in self.kept.items():
            if any(type(unit) is not int for unit in units):
                raise PlanError(f"the kept units of {name} must be whole numbers, got {list(units)}")
            nothing_left = not units and (name in depth or not depth)
            if nothing_left or list(units) != sorted(set(units)) or (units and units[0] < 0):
                raise PlanError(f"the kept units of {name} must be a non-empty ascending list of indices")

    @property
    def compensated(self) -> bool:
        """Whether weights were solved on calibration data; without them replaying does not give the result."""
        return COMPENSATED in self.options

    @property
    def compensated_first(self) -> bool:
        """Whether that was before tuning, so that the trained adapter fits the solved weights only."""
        return self.compensated and dict(self.options.get("schedule", {})).get("cooldown") == 1

    @property
    def achieved_ratio(self) -> float:
        """The share of the source's parameters that goes."""
        return 1 - self.target_parameters / self.source_parameters

    def masks(self, graph: PruningGraph) -> dict[str, torch.Tensor]:
        """Boolean masks [units] a dimension. Raises PlanError if the plan does not fit the graph."""
        names = {dimension.name for dimension in graph.dimensions}
        if set(self.kept) != names:
            odd = sorted(set(self.kept) ^ names)
            raise PlanError(f"the plan and the model disagree on the dimension {odd[0]}: the plan is for another model")
        masks, removed = {}, graph.removed(self.kept)
        for dimension in graph.dimensions:
            units = self.kept[dimension.name]
            self._check_present(dimension.name, graph.inside.get(dimension.name), removed)
            if units and units[-1] >= dimension.size:
                raise PlanError(f"the plan keeps unit {units[-1]} of {dimension.name}, which has only {dimension.size}")
            masks[dimension.name] = torch.zeros(dimension.size, dtype=torch.bool)
            masks[dimension.name][list(units)] = True
        for width in graph.widths if self.layout == "uniform" else ():
            counts = {
                len(self.kept[d.name]) for d in graph.of_width(width.name) if graph.inside.get(d.name) not in removed
            }
            if len(counts) > 1:
                raise PlanError(f"a uniform plan keeps as many {width.name} in every layer, this one {sorted(counts)}")
            if not counts <= set(width.counts):
                why = graph.untouched.get(width.name, "that number cannot be built")
                raise PlanError(f"the plan keeps {counts.pop()} {width.name} of {width.size}: {why}")
        return masks

    def _check_present(self, name: str, owner: tuple[str, int] | None, removed: Collection[tuple[str, int]]) -> None:
        """Raise PlanError unless the plan keeps units of a dimension exactly where its layer or block stays."""
        if owner is not None and owner in removed and self.kept[name]:
            raise PlanError(f"the plan keeps units of {name}, but not {owner[0]} {owner[1]}, which they are in")
        if owner not in removed and not self.kept[name]:
            raise PlanError(f"the plan keeps no units of {name}: at least one has to stay")

    def counts(self) -> dict[str, int]:
        """Kept units a dimension, counted."""
        return {name: len(units) for name, units in self.kept.items()}

    def to_json(self) -> str:
        """The plan as JSON text; ``from_json`` reads it back."""
        values = {"schema_version": SCHEMA_VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}}
        values["kept"] = {name: list(units) for name, units in self.kept.items()}
        return json.dumps(values, indent=1) + "\n"

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write ``plan.json`` into an output's folder."""
        (folder / PLAN_FILE).write_text(self.to_json(), encoding="utf-8")
        return (Path(PLAN_FILE),)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan. Raises PlanError, naming what is wrong with it."""
        try:
            values = json.loads(text)
            version = values.pop("schema_version")
            if version not in READABLE:
                known = " and ".join(map(str, READABLE))
                raise PlanError(f"the plan has schema version {version}; this lpc reads versions {known}")
            values["kept"] = {name: tuple(units) for name, units in values["kept"].items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"this is not a plan that lpc wrote: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from its file, or from an output's folder. Raises MissingFileError or PlanError."""
        path = Path(path) / PLAN_FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise MissingFileError(f"there is no plan file {path}")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise PlanError(f"{path} is not a plan that lpc wrote: {error}") from error
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

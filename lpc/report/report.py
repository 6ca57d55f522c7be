"""The report: the numbers of a compression, as an object, as JSON, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lpc.evaluation import RepliesCompared
from lpc.report.balance import balance_notes
from lpc.report.costs import Limited, limited
from lpc.report.layers import DimensionKept, dimensions_kept
from lpc.report.render import render
from lpc.report.untouched import untouched
from passes.budget import multiple_of
from passes.graph import Cost, Plan, PruningGraph
from passes.pipeline import PassEntry, PassRecord, RunContext, plain

if TYPE_CHECKING:
    from exporters.runtimes import Verdict


@dataclass(frozen=True)
class Widths:
    """The units of one width in each of its dimensions: when dense, and the least, most and mean that are kept."""

    dense: int
    least: int
    most: int
    mean: float


@dataclass(frozen=True)
class BeforeAfter:
    """One measure on held-out data.

    ``removed``: the units gone, nothing compensated or tuned (None if the model came with an adapter of its own).
    ``pruned``: after tuning.
    """

    dense: float
    removed: float | None
    pruned: float


@dataclass(frozen=True)
class Merging:
    """What rounding W + s·BA to the weights' dtype costs: measures by name with the adapter attached, and merged."""

    attached: Mapping[str, float]
    merged: Mapping[str, float]


@dataclass(frozen=True)
class Completed:
    """A prompt, and what the dense model and the pruned one go on with, greedily."""

    prompt: str
    dense: str
    pruned: str


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Measures on data that were neither scored nor tuned on, by name: loss, perplexity, accuracy.

    Taken over ``labels`` labels (tokens, in a language model) of ``rows`` rows. ``context_length``, in tokens, is that
    of the rows if they were cut from text, else None. ``merging`` is there where a trained adapter was merged into
    weights of fewer digits than its own. ``completions`` are those of a causal language model.
    """

    measures: Mapping[str, BeforeAfter]
    rows: int
    labels: int
    context_length: int | None = None
    merging: Merging | None = None
    completions: tuple[Completed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PackageCost:
    """What one ONNX package takes on disk, and how good it is.

    ``folder`` is that in the output. ``measures`` are those of the held-out data, by name: measured in onnxruntime
    where the precision rounds, else the checkpoint's, whose numbers are the same; empty without held-out data.
    """

    precision: str
    folder: str
    file_bytes: int
    measures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PredictedLatency:
    """Seconds that a workload (``BATCHxPREFILL+DECODE``) takes in a runtime, as the latency table predicts them."""

    workload: str
    runtime: str
    dense_s: float
    pruned_s: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done to which model, what it cost, and, of a saved one, where it runs (``compatibility``).

    ``latency`` is there if the budget limited it. ``others``: what the dense and the pruned model cost in measures that
    the budget limited and ``Cost`` does not have. ``dimensions``: what stays of each, and how its units were ranked.
    ``notes`` say what was done to the source before anything else, and what the data were where the user did not.
    ``answers`` are those of an instruction model; ``packages`` are those of ONNX. ``multiple``: what MLP widths are
    rounded to, if there are such that can go.
    ``passes`` are the records of those that ran, ``pipeline`` the passes as they were built, ``run`` what they shared.
    """

    source: str
    family: str
    asked: Mapping[str, float | int | str]
    layout: str
    achieved_ratio: float
    dense: Cost
    pruned: Cost
    widths: Mapping[str, Widths]
    untouched: Mapping[str, str]
    heldout: HeldOut | None
    passes: tuple[PassRecord, ...]
    compatibility: tuple[Verdict, ...] = ()
    latency: PredictedLatency | None = None
    others: tuple[Limited, ...] = ()
    dimensions: tuple[DimensionKept, ...] = ()
    run: RunContext | None = None
    pipeline: tuple[PassEntry, ...] = ()
    notes: tuple[str, ...] = ()
    multiple: int | None = None
    answers: RepliesCompared | None = None
    packages: tuple[PackageCost, ...] = ()

    @classmethod
    def of(
        cls,
        source: str,
        graph: PruningGraph,
        plan: Plan,
        passes: tuple[PassRecord, ...],
        heldout: HeldOut | None,
        notes: tuple[str, ...] = (),
        scores: Mapping[str, torch.Tensor] | None = None,
    ) -> Report:
        """The report of a finished pipeline; ``scores`` are what its units were ranked by, [units] a dimension."""
        counts = plan.counts()
        return cls(
            source=source,
            family=graph.family,
            asked=plan.budget,
            layout=plan.layout,
            achieved_ratio=plan.achieved_ratio,
            dense=graph.cost(),
            pruned=graph.cost(plan.kept),
            widths=_widths(graph, counts),
            untouched=untouched(graph),
            heldout=heldout,
            passes=passes,
            others=tuple(limited(graph, plan)),
            dimensions=tuple(dimensions_kept(graph, plan, scores)),
            notes=(*notes, *balance_notes(passes)),
            multiple=plan.options.get("multiple") or multiple_of(graph),
        )

    @property
    def asked_ratio(self) -> float | None:
        """The share of the parameters that was to go, if that was asked for."""
        parameters = self.asked.get("parameters")
        return round(1 - parameters, 12) if isinstance(parameters, float) else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``lpc.json``; ``parity`` maps each verified number's name to its value and tolerance."""
        return {
            "source": {"path": self.source, "family": self.family, "parameters": self.dense.parameters},
            "target": {"parameters": self.pruned.parameters},
            "budget": dict(self.asked),
            "layout": self.layout,
            "notes": list(self.notes),
            "ratio": {"asked": self.asked_ratio, "achieved": self.achieved_ratio, "multiple": self.multiple},
            "cost": {
                "dense": plain(self.dense) | {each.measure: each.dense for each in self.others},
                "pruned": plain(self.pruned) | {each.measure: each.pruned for each in self.others},
            },
            "latency": plain(self.latency),
            "dimensions": [plain(each) for each in self.dimensions],
            "widths": {name: plain(widths) for name, widths in self.widths.items()},
            "untouched": dict(self.untouched),
            "heldout": plain(self.heldout),
            "answers": plain(self.answers),
            "packages": [plain(each) for each in self.packages],
            "compatibility": [{**plain(verdict), "evidence": verdict.evidence} for verdict in self.compatibility],
            "compensated": self._changed_by("compensate", "rounds", "recompensate"),
            "recovered": self._changed_by("recover"),
            "run": plain(self.run),
            "pipeline": [plain(entry) for entry in self.pipeline],
            "passes": [_record(record) for record in self.passes],
            "parity": {
                parity.name: {"value": parity.value, "tolerance": parity.tolerance}
                for record in self.passes
                for parity in record.parity
            },
        }

    def _changed_by(self, *names: str) -> bool:
        """Whether one of these passes changed the model."""
        return any(record.name in names and record.modified for record in self.passes)

    def to_markdown(self) -> str:
        """The report as it stands in ``report.md``."""
        return render(self.to_json())


def _record(record: PassRecord) -> dict[str, Any]:
    return {name: value for name, value in plain(record).items() if name != "report" or value is not None}


def _widths(graph: PruningGraph, counts: Mapping[str, int]) -> dict[str, Widths]:
    """The widths of the layers and blocks that are left."""
    found = {}
    for width in graph.widths:
        kept = [counts[dimension.name] for dimension in graph.of_width(width.name) if counts[dimension.name]]
        if kept:
            found[width.name] = Widths(width.size, min(kept), max(kept), sum(kept) / len(kept))
    return found

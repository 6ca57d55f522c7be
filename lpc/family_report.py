"""The report of a family: one table and one curve, quality against size and speed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.files import write_text
from lpc.report import (
    HIGHER_IS_BETTER,
    QUALITIES,
    Panel,
    Point,
    Report,
    draw,
    family_page,
    show_measure,
    table,
)
from lpc.speed import Benchmark, Run

SCHEMA_VERSION = 1
FAMILY, REPORT, PAGE, CURVE, DENSE_ONNX = "family.json", "report.md", "report.html", "curve.svg", "dense-onnx"

COUNTS = ((1.0, ""), (1e3, "thousands"), (1e6, "millions"), (1e9, "billions"))
BYTES = ((1.0, "bytes"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"))
MILLISECONDS = ((1.0, "ms"),)


@dataclass(frozen=True, kw_only=True)
class FamilyMember:
    """The dense model (``ratio`` 0), or the one at a ratio.

    ``measures`` are those on held-out data, ``removed`` the same with the units gone and nothing tuned; ``onnx_bytes``
    the size of the ONNX graphs and their weights, None where there is no package. ``latency_ms``, by workload: of the
    dense model the median, of the others that times the ratio measured pair by pair.
    """

    ratio: float
    folder: str | None
    parameters: int
    weight_bytes: int
    onnx_bytes: int | None
    measures: Mapping[str, float]
    removed: Mapping[str, float]
    latency_ms: Mapping[str, float]

    @property
    def name(self) -> str:
        """``dense``, or the ratio."""
        return str(self.ratio) if self.ratio else "dense"


@dataclass(frozen=True, kw_only=True)
class FamilyReport:
    """What one run made: the dense model first, then by ascending ratio."""

    source: str
    family: str
    layout: str
    members: tuple[FamilyMember, ...]

    @classmethod
    def of(cls, reports: Mapping[float, Report], folder: Path, times: Mapping[float, Benchmark]) -> FamilyReport:
        """The report of saved results by ratio; ``folder`` holds one folder a ratio. ``times`` may be empty."""
        first, latencies = next(iter(reports.values())), _latencies(times)
        dense_folder = DENSE_ONNX if times else None
        members = [_member(0.0, dense_folder, first, _onnx_bytes(folder / DENSE_ONNX), latencies.get(0.0, {}))]
        for ratio, report in reports.items():
            size = _onnx_bytes(folder / str(ratio) / "onnx")
            members.append(_member(ratio, str(ratio), report, size, latencies.get(ratio, {})))
        return cls(source=first.source, family=first.family, layout=first.layout, members=tuple(members))

    @property
    def quality(self) -> str:
        """The measure of the curve."""
        return next(name for name in QUALITIES if name in self.members[0].measures)

    def to_json(self) -> dict[str, Any]:
        """The content of ``family.json``."""
        return {"schema_version": SCHEMA_VERSION, "quality": self.quality, **asdict(self)}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table, a row a model."""
        quality, dense = self.quality, self.members[0]
        header = ["", "parameters", "removed", "weight bytes", "ONNX bytes", f"{quality}, not tuned", quality]
        rows = [
            [
                member.name,
                f"{member.parameters:,}",
                f"{1 - member.parameters / dense.parameters:.1%}",
                f"{member.weight_bytes:,}",
                "–" if member.onnx_bytes is None else f"{member.onnx_bytes:,}",
                show_measure(quality, member.removed[quality]) if quality in member.removed else "–",
                show_measure(quality, member.measures[quality]),
                *(f"{milliseconds:.3f}" for milliseconds in member.latency_ms.values()),
            ]
            for member in self.members
        ]
        return [*header, *(f"{workload}, ms" for workload in dense.latency_ms)], rows

    def to_markdown(self) -> str:
        """The content of ``report.md``."""
        name, ratios = self.source.rstrip("/").rpartition("/")[2], ", ".join(each.name for each in self.members[1:])
        links = "\n".join(f"- [{each.name}]({each.folder}/report.md)" for each in self.members[1:])
        header, rows = self.rows()
        timed = "\n\nTimes: onnxruntime, measured in turns with the dense model." if self.members[0].latency_ms else ""
        return (
            f"# {name}, a family by lpc\n\nOne run, a model at each of the ratios {ratios}; {self.layout} widths. "
            f"Source: `{self.source}` ({self.family}).\n\n{table(header, rows)}{timed}\n\n"
            f"![{self.quality} against size and speed]({CURVE})\n\nEach model's own report:\n\n{links}\n"
        )

    def curve(self) -> str:
        """The content of ``curve.svg``."""
        panels = [self._panel("parameters", COUNTS, lambda member: member.parameters)]
        if self.members[0].onnx_bytes is not None:
            panels.append(self._panel("ONNX files", BYTES, lambda member: member.onnx_bytes or 0))
        else:
            panels.append(self._panel("weights", BYTES, lambda member: member.weight_bytes))
        for workload in self.members[0].latency_ms:
            panels.append(self._panel(workload, MILLISECONDS, lambda member, key=workload: member.latency_ms[key]))
        better = "higher" if self.quality in HIGHER_IS_BETTER else "lower"
        return draw(panels, f"held-out {self.quality} ({better} is better)")

    def _panel(self, cost: str, units: Sequence[tuple[float, str]], of: Callable[..., float]) -> Panel:
        values = [of(member) for member in self.members]
        factor, unit = max((each for each in units if each[0] <= max(values)), default=units[0])
        points = [
            Point(value / factor, member.measures[self.quality], member.name, not member.ratio)
            for value, member in zip(values, self.members, strict=True)
        ]
        return Panel(f"{cost}, {unit}" if unit else cost, tuple(points))

    def write(self, folder: Path) -> None:
        """Write ``family.json``, ``report.md``, ``report.html`` and ``curve.svg``."""
        write_text(folder / FAMILY, json.dumps(self.to_json(), indent=1) + "\n")
        write_text(folder / REPORT, self.to_markdown())
        write_text(folder / PAGE, family_page(self.to_json(), *self.rows()))
        write_text(folder / CURVE, self.curve())


def _member(
    ratio: float, folder: str | None, report: Report, onnx_bytes: int | None, latency: Mapping[str, float]
) -> FamilyMember:
    assert report.heldout is not None
    measures, cost = report.heldout.measures, report.pruned if ratio else report.dense
    removed = {name: measure.removed for name, measure in measures.items() if measure.removed is not None}
    return FamilyMember(
        ratio=ratio,
        folder=folder,
        parameters=cost.parameters,
        weight_bytes=cost.weight_bytes,
        onnx_bytes=onnx_bytes,
        measures={name: measure.pruned if ratio else measure.dense for name, measure in measures.items()},
        removed=removed if ratio else {},
        latency_ms=latency,
    )


def _onnx_bytes(folder: Path) -> int | None:
    """The size of the graphs in a folder and of the weights beside them."""
    return sum(file.stat().st_size for file in folder.glob("*.onnx*")) or None


def _latencies(times: Mapping[float, Benchmark]) -> dict[float, dict[str, float]]:
    """Milliseconds by workload, by ratio; 0 is the dense model, whose times are the medians over all benchmarks."""
    dense: dict[str, list[float]] = {}
    ratios: dict[float, dict[str, float]] = {}
    for ratio, found in times.items():
        for run in (each for each in found.runs if each.threads == found.options.thread_counts[0]):
            if run.model == "dense":
                dense.setdefault(_workload(run), []).append(run.ms_median)
            elif run.ratio is not None:
                ratios.setdefault(ratio, {})[_workload(run)] = run.ratio[1]
    medians = {workload: statistics.median(values) for workload, values in dense.items()}
    pruned = {ratio: {name: each * medians[name] for name, each in those.items()} for ratio, those in ratios.items()}
    return {0.0: medians, **pruned} if times else {}


def _workload(run: Run) -> str:
    what = f"past {run.past}" if run.phase == "decode" else f"{run.tokens} tokens" if run.tokens else "1 image a row"
    return f"{run.phase}, {what}, batch {run.batch}"

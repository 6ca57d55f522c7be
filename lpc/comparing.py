"""Compare runs: outputs of lpc side by side, of what their manifests, benchmarks and evaluations hold."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpc.evaluation import told
from lpc.owned import MANIFEST
from lpc.report import QUALITIES, comparison_page, pareto_front, show_measure
from passes.errors import DataError, MissingFileError, OptionError

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One model. ``measures`` are those on held-out data, ``scores`` lm-eval's by what they are of (torch backend),
    ``latency_ms`` medians by call; each is empty where it was not measured. ``ratio`` is the share that was removed.
    """

    name: str
    folder: str
    source: str
    ratio: float
    layout: str
    parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    measures: Mapping[str, float]
    scores: Mapping[str, float]
    latency_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Runs side by side; the dense model in front where all were made of one."""

    runs: tuple[ComparedRun, ...]

    @property
    def quality(self) -> str | None:
        """The held-out measure that all of them have; None if there is none."""
        return next((name for name in QUALITIES if all(name in run.measures for run in self.runs)), None)

    @property
    def front(self) -> frozenset[str]:
        """The runs that no other beats in both parameters and quality; none without a quality."""
        quality = self.quality
        if quality is None:
            return frozenset()
        return pareto_front({run.name: (run.parameters, run.measures[quality]) for run in self.runs}, quality)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: measures down, runs across, as many as there are."""
        lines: dict[str, list[str]] = {
            "removed": [f"{run.ratio:.1%}" for run in self.runs],
            "layout": [run.layout for run in self.runs],
            "parameters": [f"{run.parameters:,}" for run in self.runs],
            "weight bytes": [f"{run.weight_bytes:,}" for run in self.runs],
            "KV-cache bytes a token": [f"{run.kv_cache_bytes:,}" for run in self.runs],
        }
        for name in dict.fromkeys(name for run in self.runs for name in run.measures):
            values = [run.measures.get(name) for run in self.runs]
            lines[f"held-out {name}"] = ["–" if value is None else show_measure(name, value) for value in values]
        for field, form in (("scores", "{:.3f}"), ("latency_ms", "{:,.2f} ms")):
            for name in dict.fromkeys(name for run in self.runs for name in getattr(run, field)):
                found = [getattr(run, field).get(name) for run in self.runs]
                lines[name] = ["–" if value is None else form.format(value) for value in found]
        return ["", *(run.name for run in self.runs)], [[label, *cells] for label, cells in lines.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        runs = [{**asdict(run), "on_front": run.name in self.front} for run in self.runs]
        return {"schema_version": SCHEMA_VERSION, "quality": self.quality, "runs": runs}

    def page(self) -> str:
        """The table and quality against each cost, as one HTML file that loads nothing."""
        return comparison_page(self.to_json(), *self.rows())


def compare(folders: Sequence[Path | str]) -> RunComparison:
    """Put outputs of ``lpc compress`` (or models of a family) side by side; nothing is measured.

    Raises OptionError for fewer than two or one named twice, MissingFileError for a folder that is no output, DataError
    for one whose files are broken.
    """
    if len(folders) < 2:
        raise OptionError("name at least two outputs of lpc to compare")
    return beside(folders)


def beside(folders: Sequence[Path | str]) -> RunComparison:
    """As ``compare``, for one folder or more. Raises what that raises."""
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise OptionError("one output is named twice: leave one out")
    manifests = [_read(path / MANIFEST) for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest is None:
            raise MissingFileError(f"{path} is no output of lpc: there is no {MANIFEST}")
    known = [manifest for manifest in manifests if manifest is not None]
    names = _names(paths)
    try:
        runs = [_run(name, path, manifest) for name, path, manifest in zip(names, paths, known, strict=True)]
        dense = list(_dense(known, [path / "benchmark.json" for path in paths], [path / "eval.json" for path in paths]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a manifest lacks {error}: it was written by another version of lpc") from error
    return RunComparison(runs=(*dense, *runs))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, whole)) + 1):
        names = [os.sep.join(parts[-count:]) for parts in whole]
        if len({*names, "dense"}) == len(names) + 1:
            return names
    return [str(path) for path in paths]


def _run(name: str, path: Path, manifest: Mapping[str, Any]) -> ComparedRun:
    benchmark, evaluation = _read(path / "benchmark.json"), _read(path / "eval.json")
    return _made(name, path, manifest, benchmark, evaluation, "pruned", manifest["ratio"]["achieved"])


def _dense(
    manifests: Sequence[Mapping[str, Any]], benchmarks: Sequence[Path], evaluations: Sequence[Path]
) -> Iterator[ComparedRun]:
    """The dense model, where all runs began with the same; what of it was measured anywhere."""
    sources = {(m["source"]["path"], m["cost"]["dense"]["parameters"]) for m in manifests}
    if len(sources) == 1:
        first = manifests[0]
        benchmark = next((found for path in benchmarks if (found := _read(path)) is not None), None)
        evaluation = {"runs": [run for path in evaluations for run in (_read(path) or {"runs": []})["runs"]]}
        yield _made("dense", Path(first["source"]["path"]), first, benchmark, evaluation, "dense", 0.0)


def _made(
    name: str,
    path: Path,
    manifest: Mapping[str, Any],
    benchmark: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    model: str,
    ratio: float,
) -> ComparedRun:
    cost = manifest["cost"][model]
    measures = (manifest.get("heldout") or {}).get("measures", {})
    scores = (
        score
        for run in (evaluation or {}).get("runs", ())
        if (run["model"], run["backend"]) == (model, "hf")
        for score in run["scores"]
        if score["value"] is not None
    )
    return ComparedRun(
        name=name,
        folder=str(path),
        source=manifest["source"]["path"],
        ratio=ratio,
        layout="dense" if model == "dense" else manifest["layout"],
        parameters=cost["parameters"],
        weight_bytes=cost["weight_bytes"],
        kv_cache_bytes=cost["kv_cache_bytes"],
        measures={each: values[model] for each, values in measures.items()},
        scores={told(score): score["value"] for score in scores},
        latency_ms=dict(_latency(benchmark, model)),
    )


def _latency(benchmark: Mapping[str, Any] | None, model: str) -> Iterator[tuple[str, float]]:
    runs = (benchmark or {}).get("runs", ())
    for run in runs:
        if run["model"] == model and run.get("threads") == runs[0].get("threads"):
            yield f"{run['phase']} b{run['batch']} t{run['tokens']} p{run['past']}", run["ms_median"]


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no JSON object")
    return values

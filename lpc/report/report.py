"""The report: the numbers of a compression, as an object, as JSON, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lpc.evaluation import evaluation_rows
from lpc.report.costs import Limited, label_of, limited, shown
from lpc.report.untouched import untouched
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


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Measures on data that were neither scored nor tuned on, by name: loss, perplexity, accuracy.

    Taken over ``labels`` labels (tokens, in a language model) of ``rows`` rows. ``context_length``, in tokens, is that
    of the rows if they were cut from text, else None. ``merging`` is there where a trained adapter was merged into
    weights of fewer digits than its own.
    """

    measures: Mapping[str, BeforeAfter]
    rows: int
    labels: int
    context_length: int | None = None
    merging: Merging | None = None


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
    the budget limited and ``Cost`` does not have. ``notes`` say what was done to the source before anything else.
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
    run: RunContext | None = None
    pipeline: tuple[PassEntry, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        source: str,
        graph: PruningGraph,
        plan: Plan,
        passes: tuple[PassRecord, ...],
        heldout: HeldOut | None,
        notes: tuple[str, ...] = (),
    ) -> Report:
        """The report of a finished pipeline."""
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
            notes=notes,
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
            "ratio": {"asked": self.asked_ratio, "achieved": self.achieved_ratio},
            "cost": {
                "dense": plain(self.dense) | {each.measure: each.dense for each in self.others},
                "pruned": plain(self.pruned) | {each.measure: each.pruned for each in self.others},
            },
            "latency": plain(self.latency),
            "widths": {name: plain(widths) for name, widths in self.widths.items()},
            "untouched": dict(self.untouched),
            "heldout": plain(self.heldout),
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


def render(
    manifest: Mapping[str, Any],
    benchmark: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Markdown of ``lpc.json`` and, where they are there, ``benchmark.json`` and ``eval.json``."""
    sections = [_headline(manifest), _missing(manifest), _sizes(manifest), _untouched(manifest), _quality(manifest)]
    if evaluation:
        sections.append(_evaluation(evaluation))
    if benchmark:
        sections.append(_speed(benchmark))
    sections += [_compatibility(manifest), _parity(manifest), _passes(manifest)]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of numbers: the first column is left-aligned, the others are right-aligned."""
    return _table([header, ["---"] + ["---:"] * (len(header) - 1), *rows])


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of texts, left-aligned."""
    return _table([header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)])


def _table(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _headline(manifest: Mapping[str, Any]) -> str:
    source, target, achieved = manifest["source"], manifest["target"], manifest["ratio"]["achieved"]
    asked = ", ".join(_asked(measure, amount) for measure, amount in manifest["budget"].items())
    return (
        f"# {source['path'].rstrip('/').rpartition('/')[2]}, compressed by lpc\n\n"
        f"{source['parameters']:,} → {target['parameters']:,} parameters: {achieved:.1%} removed "
        f"(asked: {asked}), {manifest['layout']} widths. Source: `{source['path']}` ({source['family']})."
        + "".join(f"\n\nNote: {note}." for note in manifest.get("notes", ()))
    )


def _asked(measure: str, amount: float | int | str) -> str:
    """One limit of a budget, for people."""
    name = label_of(measure).partition(" (")[0]
    return f"at most {amount:.1%} of the {name}" if isinstance(amount, float) else f"at most {amount} {name}"


WORDS = {"kv": "KV", "mlp": "MLP"}


def size_rows(manifest: Mapping[str, Any]) -> list[list[str]]:
    """Rows of label, dense, pruned and ratio, for the table of sizes; costs that a model does not have are left out."""
    dense, pruned = manifest["cost"]["dense"], manifest["cost"]["pruned"]
    rows = [
        [label_of(key), shown(dense[key]), shown(pruned[key]), f"{pruned[key] / dense[key]:.3f}"]
        for key in dense
        if dense[key]
    ]
    return [*rows, *_latency_rows(manifest), *(_width_row(name, each) for name, each in manifest["widths"].items())]


def _latency_rows(manifest: Mapping[str, Any]) -> list[list[str]]:
    latency = manifest.get("latency")
    if not latency:
        return []
    dense, pruned = latency["dense_s"], latency["pruned_s"]
    label = f"predicted ms of {latency['workload']} ({latency['runtime']})"
    return [[label, f"{1000 * dense:,.3f}", f"{1000 * pruned:,.3f}", f"{pruned / dense:.3f}"]]


def _width_row(name: str, widths: Mapping[str, Any]) -> list[str]:
    label = " ".join(WORDS.get(word, word) for word in name.replace(".", "_").split("_"))
    kept = f"{widths['most']:,}"
    if widths["least"] < widths["most"]:
        kept = f"{widths['least']:,} to {kept}"
    return [f"{label} a layer", f"{widths['dense']:,}", kept, f"{widths['mean'] / widths['dense']:.3f}"]


def heldout_rows(heldout: Mapping[str, Any]) -> list[list[str]]:
    """Rows of measure, dense, removed but not tuned, pruned and tuned."""
    return [
        [name, *("n/a" if m[at] is None else show_measure(name, m[at]) for at in ("dense", "removed", "pruned"))]
        for name, m in heldout["measures"].items()
    ]


def show_measure(name: str, value: float) -> str:
    """A measure as it is printed: accuracy in percent, perplexity and loss as numbers."""
    return f"{value:.1%}" if name == "accuracy" else f"{value:.2f}" if name == "perplexity" else f"{value:.4f}"


def _sizes(manifest: Mapping[str, Any]) -> str:
    return "## Size\n\n" + table(["", "dense", "pruned", "ratio"], size_rows(manifest))


def _quality(manifest: Mapping[str, Any]) -> str:
    heldout = manifest.get("heldout")
    if not heldout:
        return ""
    context = heldout["context_length"]
    windows = f", {heldout['labels']:,} tokens in windows of {context}" if context else ""
    what = f"On {heldout['rows']:,} held-out {'sequences' if context else 'rows'}{windows}"
    return (
        f"## Quality\n\n{what}, neither scored nor tuned on.\n\n"
        + table(["", "dense", "removed, not tuned", "pruned and tuned"], heldout_rows(heldout))
        + _merging(heldout.get("merging"))
    )


def _merging(merging: Mapping[str, Any] | None) -> str:
    """What merging cost, for people."""
    if not merging:
        return ""
    shown = (
        f"{name} {show_measure(name, value)} attached, {show_measure(name, merging['merged'][name])} merged"
        for name, value in merging["attached"].items()
    )
    return f"\n\nMerging the adapter rounds the weights to their dtype: {'; '.join(shown)}."


def _untouched(manifest: Mapping[str, Any]) -> str:
    left = manifest.get("untouched")
    return "## Left whole\n\n" + "\n".join(f"- {part}: {why}" for part, why in left.items()) if left else ""


def _missing(manifest: Mapping[str, Any]) -> str:
    missing = manifest.get("missing")
    return "## Missing\n\n" + "\n".join(f"- {part}: {why}" for part, why in missing.items()) if missing else ""


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    header, rows = evaluation_rows(evaluation)
    return "## lm-eval\n\n" + table(header, rows)


def speed_rows(benchmark: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a call, dense and pruned median in milliseconds, and the ratio measured pair by pair."""
    calls: dict[tuple[str, int, int, int], dict[str, float]] = {}
    marked: set[tuple[str, int, int, int]] = set()
    for run in benchmark["runs"]:
        key = (run["phase"], run["batch"], run["tokens"], run["past"])
        calls.setdefault(key, {})[run["model"]] = run["ms_median"]
        marked |= {key} if run["beyond_context"] else set()
    rows = []
    for (phase, batch, tokens, past), medians in calls.items():
        times = [f"{medians[model]:.2f}" if model in medians else "–" for model in ("dense", "pruned")]
        ratio = benchmark["ratios"].get(f"{phase}_b{batch}_t{tokens}_p{past}")
        what = f"1 token, past {past}" if phase == "decode" else f"{tokens} tokens" if tokens else "1 image a row"
        what += " (beyond the context: speed only)" if (phase, batch, tokens, past) in marked else ""
        rows.append([f"{phase}, batch {batch}, {what}", *times, "–" if ratio is None else f"{ratio:.2f}"])
    return rows


def _speed(benchmark: Mapping[str, Any]) -> str:
    skipped = [f"- {each['phase']} {each['tokens']}+{each['past']}: {each['reason']}" for each in benchmark["skipped"]]
    left_out = "\n\nLeft out:\n" + "\n".join(skipped) if skipped else ""
    header = ["", "dense", "pruned", "ratio"]
    return "## onnxruntime, milliseconds (median)\n\n" + table(header, speed_rows(benchmark)) + left_out


def compatibility_rows(manifest: Mapping[str, Any]) -> list[list[str]]:
    """Rows of runtime, whether it runs the model and how that is known, and why."""
    return [
        [each["target"], ", ".join(filter(None, (each["runs"], each["evidence"]))), each["reason"]]
        for each in manifest.get("compatibility", ())
    ]


def runs_on(manifest: Mapping[str, Any]) -> list[str]:
    """A line for each answer, the runtimes after it; a star where lpc ran it here. The reasons are in the report."""
    answers: dict[str, list[str]] = {}
    for each in manifest.get("compatibility", ()):
        star = "*" if each["evidence"] == "run here" else ""
        answers.setdefault(each["runs"], []).append(f"{each['target']}{star}".replace(", ", " "))
    return [f"runs on, {answer}: {', '.join(targets)}" for answer, targets in answers.items()]


def _compatibility(manifest: Mapping[str, Any]) -> str:
    verdicts = manifest.get("compatibility")
    if not verdicts:
        return ""
    rows = [[*row, each["source"]] for row, each in zip(compatibility_rows(manifest), verdicts, strict=True)]
    return "## Where it runs\n\n" + text_table(["runtime", "runs", "why", "source"], rows)


def _parity(manifest: Mapping[str, Any]) -> str:
    rows = [[name, f"{p['value']:.1e}", f"{p['tolerance']:.0e}"] for name, p in manifest["parity"].items()]
    return "## Verified\n\nLargest difference over largest value.\n\n" + table(["step", "difference", "allowed"], rows)


def _passes(manifest: Mapping[str, Any]) -> str:
    rows = [[p["name"], f"{p['seconds']:.1f}", f"{p['peak_memory_bytes'] / 2**20:,.0f}"] for p in manifest["passes"]]
    return "## Passes\n\n" + table(["pass", "seconds", "peak memory, MiB"], rows)

"""The report as Markdown, and the rows of its tables, from what the manifest holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lpc.evaluation import NEW_TOKENS, REPLY_TOKENS, difference_rows, evaluation_rows
from lpc.report.answers import answer_rows
from lpc.report.costs import label_of, shown
from passes.errors import visible


def render(
    manifest: Mapping[str, Any],
    benchmark: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Markdown of ``lpc.json`` and, where they are there, ``benchmark.json`` and ``eval.json``."""
    sections = [_headline(manifest), _missing(manifest), _sizes(manifest), _untouched(manifest), _quality(manifest)]
    sections += [_answers(manifest), _packages(manifest)]
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
    asked = asked_words(manifest)
    return (
        f"# {source['path'].rstrip('/').rpartition('/')[2]}, compressed by lpc\n\n"
        f"{source['parameters']:,} → {target['parameters']:,} parameters: {achieved:.1%} removed "
        f"({asked}), {manifest['layout']} widths. Source: `{source['path']}` ({source['family']})."
        + "".join(f"\n\nNote: {note}." for note in manifest.get("notes", ()))
    )


NEAR = 0.0005
"""A share that differs by less is what was asked for."""


def asked_words(manifest: Mapping[str, Any]) -> str:
    """What was asked for, as it was: the ratio that was typed and what rounding made of it, or the budget."""
    ratio = manifest["ratio"]
    if ratio["asked"] is None or len(manifest["budget"]) > 1:
        return "asked: " + ", ".join(_asked(measure, amount) for measure, amount in manifest["budget"].items())
    said = f"asked: a ratio of {ratio['asked']:g}"
    if abs(ratio["achieved"] - ratio["asked"]) < NEAR:
        return said
    multiple = ratio.get("multiple")
    steps = f"MLP widths go in multiples of {multiple}, heads whole" if multiple else "units go whole"
    return f"{said}, rounded up: {steps}"


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


def package_rows(manifest: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the ONNX packages: precision, megabytes, and what was measured of them."""
    found = manifest.get("packages") or []
    names = list(dict.fromkeys(name for each in found for name in each["measures"]))
    rows = [
        [
            each["precision"],
            f"{each['file_bytes'] / 1e6:,.1f}",
            *(show_measure(name, each["measures"][name]) if name in each["measures"] else "–" for name in names),
        ]
        for each in found
    ]
    return ["precision", "MB", *names], rows


def _packages(manifest: Mapping[str, Any]) -> str:
    header, rows = package_rows(manifest)
    what = "The graph with its weights, and held-out quality in onnxruntime."
    return f"## ONNX\n\n{what}\n\n{table(header, rows)}" if rows else ""


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
        + _completed(heldout.get("completions") or ())
    )


def _completed(completions: Sequence[Mapping[str, str]]) -> str:
    """Prompts and completions as code, in which nothing has a meaning."""
    if not completions:
        return ""
    parts = [f"\n\n### Completions\n\nThe most probable token each time, at most {NEW_TOKENS} of them."]
    for each in completions:
        lines = [f"{name}: {visible(each[name])}" for name in ("prompt", "dense", "pruned")]
        parts.append("\n".join(f"    {line}" for text in lines for line in text.splitlines()))
    return "\n\n".join(parts)


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


def _answers(manifest: Mapping[str, Any]) -> str:
    answers = manifest.get("answers")
    if not answers:
        return ""
    asked = f"To {len(answers['dense'])} fixed prompts by the chat template"
    head = f"{asked}, greedily, at most {REPLY_TOKENS} tokens each."
    return f"## Answers\n\n{head}\n\n" + table(["", "dense", "pruned"], answer_rows(answers))


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    header, rows = evaluation_rows(evaluation)
    return "## lm-eval\n\n" + table(header, rows) + _differences(evaluation)


def _differences(evaluation: Mapping[str, Any]) -> str:
    """Model by model against the dense one, on the same documents."""
    header, rows = difference_rows(evaluation)
    how = "Against the dense model on the same documents, with the standard error of the difference (docs/evaluate.md):"
    return f"\n\n{how}\n\n" + text_table(header, rows) if rows else ""


SPEED_HEADER = ["", "dense", "pruned", "ratio", "its quartiles", "tokens/s"]


def speed_rows(benchmark: Mapping[str, Any]) -> list[list[str]]:
    """Rows of ``SPEED_HEADER``: a call, medians in ms, the ratio pair by pair, and the rate of the pruned model."""
    calls: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for run in benchmark["runs"]:
        key = tuple(run.get(each) for each in ("phase", "batch", "tokens", "past", "threads"))
        calls.setdefault(key, {})[run["model"]] = run
    several, rows = len({key[-1] for key in calls}) > 1, []
    for (phase, batch, tokens, past, threads), runs in calls.items():
        times = [f"{runs[model]['ms_median']:.2f}" if model in runs else "–" for model in ("dense", "pruned")]
        what = f"1 token, past {past}" if phase == "decode" else f"{tokens} tokens" if tokens else "1 image a row"
        what += f", {threads} thread{'s' if threads > 1 else ''}" if several else ""
        last = next(reversed(runs.values()))
        what += " (beyond the context: speed only)" if last["beyond_context"] else ""
        rows.append([f"{phase}, batch {batch}, {what}", *times, *_ratio(last), _rate(last)])
    return rows


def _ratio(run: Mapping[str, Any]) -> tuple[str, str]:
    if run.get("ratio") is None:
        return "–", "–"
    low, middle, high = run["ratio"]
    return f"{middle:.2f}", f"{low:.2f}–{high:.2f}"


def _rate(run: Mapping[str, Any]) -> str:
    return f"{run['tokens_per_s']:,.0f}" if run.get("tokens_per_s") else "–"


def unsure_line(benchmark: Mapping[str, Any]) -> str:
    """That the machine was too busy to tell, and of which calls; empty where it was not."""
    found = benchmark.get("unsure")
    return f"the machine was too busy to tell: {'; '.join(found)}. Time them again when it is quiet" if found else ""


def _speed(benchmark: Mapping[str, Any]) -> str:
    skipped = [f"- {each['phase']} {each['tokens']}+{each['past']}: {each['reason']}" for each in benchmark["skipped"]]
    left_out = "\n\nLeft out:\n" + "\n".join(skipped) if skipped else ""
    unsure = f"\n\nNote: {told}." if (told := unsure_line(benchmark)) else ""
    return "## onnxruntime, milliseconds (median)\n\n" + table(SPEED_HEADER, speed_rows(benchmark)) + unsure + left_out


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
    rows = [[_named(p), f"{p['seconds']:.1f}", f"{p['peak_memory_bytes'] / 2**20:,.0f}"] for p in manifest["passes"]]
    return "## Passes\n\n" + table(["pass", "seconds", "peak memory, MiB"], rows)


def _named(record: Mapping[str, Any]) -> str:
    """A pass by its name, and a measure of held-out data by its stage too."""
    stage = record["options"].get("stage")
    return f"{record['name']}, {stage}" if stage else str(record["name"])

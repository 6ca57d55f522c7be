"""The verdict: what a reader looks for first, as one sentence and one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lpc.evaluation import told, verdict
from lpc.report.costs import label_of
from lpc.report.front import QUALITIES
from lpc.report.render import asked_words, heldout_rows, package_rows, show_measure, speed_rows

LOWER_IS_BETTER = ("perplexity", "loss", "word_perplexity", "byte_perplexity", "token_perplexity", "bits_per_byte")
SIZES = ("parameters", "weight_bytes", "kv_cache_bytes", "macs")


@dataclass(frozen=True)
class Line:
    """One row: what, dense, pruned, and the change as it is shown; ``good`` says whether the change is welcome."""

    what: str
    dense: str
    pruned: str
    change: str
    good: bool | None = None


def sentence(manifest: Mapping[str, Any]) -> str:
    """What was done, what it cost, and whether it was proven, in plain words."""
    achieved = manifest["ratio"]["achieved"]
    parts = [f"{achieved:.1%} of the parameters are gone ({asked_words(manifest)})"]
    kv = _ratio(manifest, "kv_cache_bytes")
    if kv is not None and kv < 1:
        parts[0] += f", the KV cache of a token is {kv:.0%} of what it was"
    measures = (manifest.get("heldout") or {}).get("measures", {})
    for name in QUALITIES:
        if name in measures:
            dense, pruned = measures[name]["dense"], measures[name]["pruned"]
            verb = "stayed at" if dense == pruned else "went from"
            to = "" if dense == pruned else f" to {show_measure(name, pruned)}"
            parts.append(f"held-out {name} {verb} {show_measure(name, dense)}{to}")
            break
    proofs = manifest["parity"]
    missing = manifest.get("missing") or {}
    parts.append(f"{len(proofs)} proof{'s' * (len(proofs) != 1)} passed" if proofs else "nothing was left to prove")
    text = "; ".join(parts) + "."
    return text + (f" Missing: {', '.join(missing)}." if missing else "")


def lines(
    manifest: Mapping[str, Any], benchmark: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None
) -> list[Line]:
    """Size, cache, speed, quality: a row each."""
    return [*_sizes(manifest), *_speed(benchmark), *_heldout(manifest), *_packages(manifest), *_evaluated(evaluation)]


def _ratio(manifest: Mapping[str, Any], cost: str) -> float | None:
    dense, pruned = manifest["cost"]["dense"].get(cost), manifest["cost"]["pruned"].get(cost)
    return pruned / dense if dense else None


def _sizes(manifest: Mapping[str, Any]) -> Iterator[Line]:
    dense, pruned = manifest["cost"]["dense"], manifest["cost"]["pruned"]
    for name in (*SIZES, *(each for each in dense if each not in SIZES)):
        if dense.get(name):
            ratio = pruned[name] / dense[name]
            good = ratio < 1 if ratio != 1 else None
            yield Line(label_of(name), _amount(name, dense[name]), _amount(name, pruned[name]), _percent(ratio), good)


def _amount(name: str, value: float) -> str:
    """For people: bytes in MB, counts in millions."""
    unit = " " + ("B" if name.endswith("bytes") else "")
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:,.1f} {prefix}{unit.strip()}"
    return f"{value:,.6g}{unit}".strip()


def _percent(ratio: float) -> str:
    return "±0 %" if abs(ratio - 1) < 5e-4 else f"{ratio - 1:+.1%}".replace("%", " %").replace("-", "−")


def _speed(benchmark: Mapping[str, Any] | None) -> Iterator[Line]:
    for what, dense, pruned, ratio, *_ in speed_rows(benchmark) if benchmark else ():
        known = ratio != "–"
        change = _percent(float(ratio)) if known else "–"
        good = float(ratio) < 1 if known and float(ratio) != 1 else None
        yield Line(f"onnxruntime, ms: {what}", dense, pruned, change, good)


def _heldout(manifest: Mapping[str, Any]) -> Iterator[Line]:
    heldout = manifest.get("heldout")
    if not heldout:
        return
    for (name, dense, _, pruned), values in zip(heldout_rows(heldout), heldout["measures"].values(), strict=True):
        yield Line(f"held-out {name}", dense, pruned, *_change(name, values["dense"], values["pruned"]))


def _packages(manifest: Mapping[str, Any]) -> Iterator[Line]:
    """The ONNX packages: what each takes on disk, and its quality."""
    header, rows = package_rows(manifest)
    for precision, size, *measures in rows:
        told = ", ".join(f"{name} {value}" for name, value in zip(header[2:], measures, strict=True))
        yield Line(f"ONNX in {precision}", "–", f"{size} MB", told or "–")


def _change(name: str, dense: float, pruned: float) -> tuple[str, bool | None]:
    """Relative for what has no upper end, in points for shares."""
    if dense == pruned:
        return "±0", None
    better = (pruned < dense) == (name in LOWER_IS_BETTER)
    if name in LOWER_IS_BETTER:
        return _percent(pruned / dense) if dense else "–", better
    return f"{100 * (pruned - dense):+.1f} points".replace("-", "−"), better


def _evaluated(evaluation: Mapping[str, Any] | None) -> Iterator[Line]:
    """Of lm-eval: the dense model and every other one, where both were evaluated, paired where that could be."""
    runs = (evaluation or {}).get("runs", ())
    dense = next((run for run in runs if run["model"] == "dense"), None)
    paired = {(*_key(d), d["model"], d["backend"]): d for d in (evaluation or {}).get("differences", ())}
    for run in runs if dense is not None else ():
        if run is dense or dense is None:
            continue
        backend = "" if run["backend"] == "hf" else f", {run['backend']}"
        scores = {_key(score): score for score in run["scores"]}
        for key, before in ((_key(score), score) for score in dense["scores"]):
            after = scores.get(key)
            if after is not None and None not in (before["value"], after["value"]):
                difference = paired.get((*key, run["model"], run["backend"]))
                change = _change_paired(difference) if difference else _change_scored(key[1], before, after)
                yield Line(f"{told(before)}{backend}", _scored(before), _scored(after), *change)


def _key(score: Mapping[str, Any]) -> tuple[str, str, int, int | None]:
    return score["task"], score["metric"], score["fewshot"], score["limit"]


def _scored(score: Mapping[str, Any]) -> str:
    spread = f" ± {score['stderr']:.3f}" if score["stderr"] is not None else ""
    return f"{score['value']:.3f}{spread}"


SURE = 0.05
"""A p-value below which a difference is shown as good or bad."""


def _change_paired(difference: Mapping[str, Any]) -> tuple[str, bool | None]:
    """On the same documents; good or bad only where chance alone would hardly do it."""
    better = (difference["difference"] or 0.0) > 0
    return verdict(difference), better == difference["higher_is_better"] if difference["p_value"] < SURE else None


def _change_scored(metric: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, bool | None]:
    """Good or bad only beyond the two standard errors taken together."""
    change, better = _change(metric.partition(" (")[0], before["value"], after["value"])
    spread = ((before["stderr"] or 0) ** 2 + (after["stderr"] or 0) ** 2) ** 0.5
    return change, better if abs(after["value"] - before["value"]) > spread else None

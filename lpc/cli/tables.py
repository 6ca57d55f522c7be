"""What the commands print: tables for people, or one JSON object."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lpc.cli.alike import alike, spread
from lpc.cli.console import print_json, print_line, print_table
from lpc.progress import clocked
from lpc.report import SPEED_HEADER, Report, asked_words, heldout_rows, runs_on, size_rows, speed_rows, unsure_line

if TYPE_CHECKING:
    from exporters.onnx import OnnxPackage
    from lpc.checkup import Diagnosis
    from lpc.demo import Demo
    from lpc.estimation import Estimate
    from lpc.evaluation import Evaluation
    from lpc.family_report import FamilyReport
    from lpc.inspection import Inspection
    from lpc.options import Cell
    from lpc.planning import PlanDifference
    from lpc.speed import Benchmark
    from lpc.sweeping import Outcome, SweepReport
    from passes.graph import Plan


def show_report(report: Report, out: Path, *, as_json: bool, timed: bool = False) -> None:
    """The end of ``lpc compress``."""
    values = report.to_json()
    if as_json:
        print_json({**values, "out": str(out)})
        return
    title = f"{report.achieved_ratio:.1%} of the parameters removed"
    print_line(f"{asked_words(values)}; {report.layout} widths")
    print_table(title, ["", "dense", "pruned", "ratio"], size_rows(values))
    for part, why in report.untouched.items():
        print_line(f"left whole: {part}: {why}")
    if report.heldout is not None:
        header = ["", "dense", "removed", "tuned"]
        print_table(f"on {report.heldout.rows:,} held-out rows", header, heldout_rows(values["heldout"]))
    for line in runs_on(values):
        print_line(line)
    worst = max(values["parity"].items(), key=lambda item: item[1]["value"] / max(item[1]["tolerance"], 1e-30))
    print_line(
        f"verified: {len(values['parity'])} parities hold; the tightest is {worst[0]}, "
        f"{worst[1]['value']:.1e} of {worst[1]['tolerance']:.0e} allowed"
    )
    print_line(f"written to {out}: open {out}/report.html")
    writes_text = report.heldout is None or "perplexity" in report.heldout.measures
    exported = any(record.name == "export" for record in report.passes)
    for command in next_commands(out, onnx=exported, tasks=writes_text, timed=timed):
        print_line(f"next: {command}")


def next_commands(out: Path, *, onnx: bool, tasks: bool, timed: bool = False) -> list[str]:
    """What people do with an output, whose ONNX package may be ``timed`` already; ``tasks``: lm-eval's can be asked of
    it, as of language models alone.
    """
    folder = shlex.quote(str(out))
    exported = [f"lpc benchmark {folder}"] if onnx else [f"lpc export {folder}/hf --out {folder}-onnx"]
    asked = [f"lpc evaluate {folder} --tasks quick"] if tasks else []
    return [*([] if timed else exported), *asked, f"lpc compare {folder} ANOTHER"]


def show_presets(presets: Mapping[str, Estimate]) -> None:
    """The end of ``lpc estimate``: what each preset would take."""
    if not presets:
        return
    rows = []
    for name, each in presets.items():
        way = each.method
        rows.append([name, f"{way.peak.memory_bytes / 2**30:.2f}", f"{way.flops:.2e}", clocked(3600 * way.hours)])
    print_table("presets", ["--preset", "GiB", "operations", "h:mm:ss"], rows)


def show_estimate(found: Estimate) -> None:
    """``lpc estimate``."""
    for title, way in (("the method", found.method), ("ranked by the true gradient", found.true_gradient)):
        rows = [
            [each.name, f"{each.memory_bytes / 2**30:.2f}", f"{each.flops:.2e}", clocked(each.seconds)]
            for each in way.stages
        ]
        rows.append(["all", f"{way.peak.memory_bytes / 2**30:.2f}", f"{way.flops:.2e}", clocked(3600 * way.hours)])
        print_table(title, ["stage", "GiB", "operations", "h:mm:ss"], rows)
        print_line(f"a step: {way.step_seconds:.3g} s, {way.step_flops:.2e} operations")
    how = "measured here" if found.measured else "as stated"
    print_line(f"{found.parameters:,} parameters; {found.rate:.2e} operations a second, {how}")
    if found.device_bytes is not None:
        room = f"{found.device_bytes / 2**30:.1f} GiB"
        remedy = f"; {found.remedy} would" if found.remedy else ""
        print_line(f"fits into {room}" if found.fits else f"does not fit into {room}{remedy}")


def show_plan(plan: Plan, out: Path, *, as_json: bool) -> None:
    """``lpc plan``."""
    if as_json:
        print_json({**json.loads(plan.to_json()), "out": str(out), "achieved_ratio": plan.achieved_ratio})
        return
    counts = {name: len(units) for name, units in plan.kept.items()}
    kept = list(counts.values())
    rows = [[name, f"{kept[places[0]]:,}"] for name, places in alike(counts.items()).items()]
    print_table(f"{plan.achieved_ratio:.1%} of the parameters go", ["dimension", "units kept"], rows)
    print_line(f"written to {out}: lpc apply {out} MODEL makes the model")


def show_difference(difference: PlanDifference, *, as_json: bool) -> None:
    """``lpc diff``."""
    if as_json:
        print_json(difference.to_json())
        return
    if not difference.same_source:
        print_line("the plans are for different models")
    for name, (first, second) in difference.fields.items():
        print_line(f"{name}: {first} | {second}")
    found = difference.dimensions
    rows = [
        [
            name,
            f"{found[places[0]].first:,}",
            f"{found[places[0]].second:,}",
            spread([found[place].both for place in places], "{:,}"),
            spread([found[place].overlap for place in places], "{:.3f}"),
        ]
        for name, places in alike((d.name, (d.first, d.second)) for d in found).items()
    ]
    print_table("units kept", ["dimension", "first", "second", "both", "overlap"], rows)
    first, second = difference.parameters
    same = "the same decision" if difference.is_same_decision else "different decisions"
    print_line(f"{first:,} and {second:,} parameters: {same}")


def show_family(report: FamilyReport, out: Path, *, as_json: bool) -> None:
    """The end of ``lpc compress --snapshots``."""
    if as_json:
        print_json({**report.to_json(), "out": str(out)})
        return
    print_table("one run, a family of models", *report.rows())
    print_line(f"written to {out}: open {out}/report.html")


def show_sweep(report: SweepReport, out: Path, *, as_json: bool) -> None:
    """The end of ``lpc sweep``."""
    if as_json:
        print_json({**report.to_json(), "out": str(out)})
        return
    print_table(report.sentence(), *report.rows())
    header, rows = report.over_seeds()
    if rows:
        print_table("over seeds", header, rows)
    for cell in report.cells:
        if cell.outcome.why:
            print_line(f"{cell.name}: {cell.outcome.why}")
    print_line(f"written to {out}: open {out}/report.html")


def show_cell(cell: Cell, outcome: Outcome, out: Path, *, as_json: bool) -> bool:
    """The end of ``lpc sweep --cell``; whether all is well."""
    failed = outcome.state == "failed"
    if as_json:
        print_json({"cell": cell.name, "state": outcome.state, "why": outcome.why, "out": str(out)})
    else:
        print_line(f"{cell.name}: {outcome.state}" + (f": {outcome.why}" if outcome.why else f", {out}"))
    return not failed


ROUTES = {
    "builder": "the graph is written from the weights, and verified against torch",
    "torch": "the graph is traced by torch.onnx.export, and verified against torch",
}


def show_inspection(inspection: Inspection, *, as_json: bool) -> None:
    """``lpc inspect``."""
    if as_json:
        print_json(inspection.to_json())
        return
    cost = inspection.cost
    print_line(
        f"{inspection.model}: {inspection.model_class} ({inspection.family}, {inspection.task}), "
        f"{cost.parameters:,} parameters, {cost.macs:,} MACs and {cost.kv_cache_bytes:,} KV-cache bytes a token"
    )
    rows = [
        [w.width, str(w.dimensions), f"{w.units:,}", f"{w.least:,}", f"{w.unit_parameters:,}", f"{w.share:.1%}"]
        for w in inspection.widths
    ]
    header = ["dimension", "how many", "units", "at least", "parameters a unit", "share of all"]
    print_table("prunable dimensions", header, rows)
    for width in inspection.widths:
        print_line(f"a unit of {width.width} takes, in the first layer:")
        for part in width.slices:
            print_line(f"  {part}")
    for part, why in inspection.untouched.items():
        print_line(f"left whole: {part}: {why}")
    if inspection.discovered is not None:
        print_line(f"nobody described {inspection.family}: its structure was {inspection.discovered}")
    rounded = f"; MLP widths are rounded to {inspection.multiple}" if inspection.multiple else ""
    print_line(
        f"{inspection.prunable:.1%} of the parameters belong to units that can go, "
        f"at most {inspection.largest_ratio:.4f} of all can be removed{rounded}"
    )
    shares = {name: getattr(inspection.least, name) / getattr(cost, name) for name in vars(cost) if getattr(cost, name)}
    print_line(f"budgets go down to {', '.join(f'{name}={share:.3f}' for name, share in shares.items())}")
    values = {"compatibility": [{**vars(each), "evidence": each.evidence} for each in inspection.runs_on]}
    for line in runs_on(values):
        print_line(f"a smaller checkpoint {line}")
    print_line(f"ONNX: {inspection.no_onnx or ROUTES[inspection.onnx or '']}")


def show_packages(packages: Sequence[OnnxPackage], out: Path, *, as_json: bool) -> None:
    """``lpc export``."""
    from exporters.onnx import parities

    found = parities(packages)
    if as_json:
        parity = {p.name: {"value": p.value, "tolerance": p.tolerance} for p in found}
        written = {
            each.precision: {"folder": str(each.folder), "files": each.files, "file_bytes": each.file_bytes}
            for each in packages
        }
        first = packages[0]
        print_json({"out": str(out), "files": first.files, "opset": first.opset, "packages": written, "parity": parity})
        return
    rows = [[p.name, f"{p.value:.1e}", f"{p.tolerance:.0e}"] for p in found]
    print_table("onnxruntime against torch", ["step", "difference", "allowed"], rows)
    for each in packages:
        print_line(f"{each.precision}, {each.file_bytes:,} bytes, written to {each.folder}: {', '.join(each.files)}")


def show_benchmark(benchmark: Benchmark, *, as_json: bool) -> None:
    """``lpc benchmark``."""
    values = benchmark.to_json()
    if as_json:
        print_json(values)
        return
    print_table("onnxruntime, milliseconds (median)", SPEED_HEADER, speed_rows(values))
    if told := unsure_line(values):
        print_line(told)
    for each in benchmark.skipped:
        print_line(f"left out: {each.phase}, batch {each.batch}, {each.tokens} tokens, past {each.past}: {each.reason}")
    for name, footprint in benchmark.models.items():
        print_line(
            f"{name}: {footprint.file_bytes:,} bytes on disk, loads in {footprint.load_s:.2f} s, "
            f"{(footprint.peak_memory_bytes - footprint.baseline_bytes) / 2**20:.1f} MiB at peak over an idle process, "
            f"{footprint.kv_bytes_per_token:,} KV-cache bytes a token"
        )


def show_evaluation(evaluation: Evaluation, out: Path | None, *, as_json: bool) -> None:
    """``lpc evaluate``."""
    from lpc.evaluation import difference_rows, evaluation_rows

    values = evaluation.to_json()
    if as_json:
        print_json(values)
        return
    header, rows = evaluation_rows(values)
    print_table("lm-eval", header, rows)
    header, rows = difference_rows(values)
    if rows:
        print_table("against the dense model, on the same documents", header, rows)
    for asked in evaluation.asked:
        for task, why in asked.left_out.items():
            print_line(f"left out: {task}: {why}")
    if evaluation.agreements:
        worst = max(evaluation.agreements, key=lambda agreement: agreement.worst)
        print_line(f"backends of one model, at most: {worst}")
    for command in evaluation.asked[-1].command:
        print_line(f"the same with lm-eval itself: {command}")
    if out is not None:
        print_line(f"written to {out}/eval.json, with lm-eval's own files in {out}/lm-eval")


def show_diagnosis(found: Diagnosis, *, as_json: bool) -> None:
    """``lpc doctor``."""
    if as_json:
        print_json(found.to_json())
        return
    for name, version in found.versions.items():
        print_line(f"{name} {version}")
    print_line(
        f"{found.system}, {found.cores} cores ({found.usable_cores} usable), {_gib(found.memory_bytes)} of memory"
    )
    settings = ", ".join(f"{name}={value}" for name, value in found.environment.items()) or "nothing set"
    print_line(f"torch uses {found.threads} threads ({settings}); {_gib(found.free_disk_bytes)} free on this disk")
    for device in found.devices:
        memory = f", {_gib(device.memory_bytes)}" if device.memory_bytes else ""
        print_line(f"device {device.name}: {device.what}{memory}")
    print_line(f"runs take {found.auto} by default; onnxruntime has {', '.join(found.providers) or 'nothing'}")
    for name, why in found.missing.items():
        print_line(f"missing: {name}: {why}")
    if not found.missing:
        print_line("nothing is missing")


def _gib(amount: int) -> str:
    return f"{amount / 2**30:,.1f} GiB"


def show_demo(demo: Demo, out: Path, *, as_json: bool) -> None:
    """``lpc demo``."""
    if as_json:
        report, benchmark, evaluation = (part.to_json() for part in (demo.report, demo.benchmark, demo.evaluation))
        print_json({"out": str(out), "report": report, "benchmark": benchmark, "evaluation": evaluation})
        return
    show_benchmark(demo.benchmark, as_json=False)
    show_evaluation(demo.evaluation, None, as_json=False)
    show_report(demo.report, out, as_json=False, timed=True)

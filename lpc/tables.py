"""What the commands print: tables for people, or one JSON object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lpc.console import print_json, print_line, print_table
from lpc.evaluation.tables import evaluation_rows
from lpc.report import Report, size_rows, speed_rows

if TYPE_CHECKING:
    from exporters.onnx_options import OnnxPackage
    from lpc.benchmark_result import Benchmark
    from lpc.demo import Demo
    from lpc.evaluation.results import Evaluation
    from lpc.inspection import Inspection


def show_report(report: Report, out: Path, *, as_json: bool) -> None:
    """The end of ``lpc compress``."""
    values = report.to_json()
    if as_json:
        print_json({**values, "out": str(out)})
        return
    rows = size_rows(values)
    if report.heldout is not None:
        heldout = report.heldout
        rows.append(
            [
                "held-out perplexity",
                f"{heldout.dense:.2f}",
                f"{heldout.pruned:.2f}",
                f"{heldout.pruned / heldout.dense:.3f}",
            ]
        )
        if heldout.removed is not None:
            rows.append(["  before healing", "", f"{heldout.removed:.2f}", f"{heldout.removed / heldout.dense:.3f}"])
    print_table(f"{report.achieved_ratio:.1%} of the parameters removed", ["", "dense", "pruned", "ratio"], rows)
    worst = max(values["parity"].items(), key=lambda item: item[1]["value"] / max(item[1]["tolerance"], 1e-30))
    print_line(
        f"verified: {len(values['parity'])} parities hold; the tightest is {worst[0]}, "
        f"{worst[1]['value']:.1e} of {worst[1]['tolerance']:.0e} allowed"
    )
    print_line(f"written to {out}: open {out}/report.md")


def show_inspection(inspection: Inspection, *, as_json: bool) -> None:
    """``lpc inspect``."""
    if as_json:
        print_json(inspection.to_json())
        return
    cost = inspection.cost
    print_line(
        f"{inspection.model}: {inspection.family}, {inspection.layers} layers, {cost.parameters:,} parameters, "
        f"{cost.macs:,} MACs and {cost.kv_cache_bytes:,} KV-cache bytes a token"
    )
    rows = [
        [str(d.kind), str(d.layers), f"{d.units:,}", f"{d.unit_parameters:,}", f"{d.share:.1%}"]
        for d in inspection.dimensions
    ]
    header = ["dimension", "layers", "units a layer", "parameters a unit", "share of all"]
    print_table("prunable dimensions", header, rows)
    for dimension in inspection.dimensions:
        print_line(f"a unit of {dimension.kind} takes, in the first layer:")
        for part in dimension.slices:
            print_line(f"  {part}")
    print_line(
        f"MLP widths are rounded to {inspection.multiple}; "
        f"KV heads go with their {inspection.query_heads_per_group} query heads; "
        f"at most {inspection.largest_ratio:.4f} of all parameters can go"
    )


def show_package(package: OnnxPackage, out: Path, *, as_json: bool) -> None:
    """``lpc export``."""
    parity = {p.name: {"value": p.value, "tolerance": p.tolerance} for p in package.parity}
    if as_json:
        print_json({"out": str(out), "files": package.files, "opset": package.opset, "parity": parity})
        return
    rows = [[p.name, f"{p.value:.1e}", f"{p.tolerance:.0e}"] for p in package.parity]
    print_table("onnxruntime against torch", ["step", "difference", "allowed"], rows)
    print_line(f"written to {out}: {', '.join(package.files)}")


def show_benchmark(benchmark: Benchmark, *, as_json: bool) -> None:
    """``lpc benchmark``."""
    values = benchmark.to_json()
    if as_json:
        print_json(values)
        return
    print_table("onnxruntime, milliseconds (median)", ["", "dense", "pruned", "ratio"], speed_rows(values))
    for each in benchmark.skipped:
        print_line(f"left out: {each.phase}, batch {each.batch}, {each.tokens} tokens, past {each.past}: {each.reason}")
    for name, footprint in benchmark.models.items():
        print_line(
            f"{name}: {footprint.file_bytes:,} bytes on disk, loads in {footprint.load_s:.2f} s, "
            f"{(footprint.peak_memory_bytes - footprint.baseline_bytes) / 2**20:.1f} MiB at peak over an idle process, "
            f"{footprint.kv_bytes_per_token:,} KV-cache bytes a token"
        )


def show_evaluation(evaluation: Evaluation, *, as_json: bool) -> None:
    """``lpc evaluate``."""
    values = evaluation.to_json()
    if as_json:
        print_json(values)
        return
    header, rows = evaluation_rows(values)
    print_table("lm-eval", header, rows)
    if evaluation.agreements:
        worst = max(evaluation.agreements, key=lambda agreement: agreement.worst)
        print_line(f"torch and ONNX agree: {worst}")


def show_demo(demo: Demo, out: Path, *, as_json: bool) -> None:
    """``lpc demo``."""
    if as_json:
        report, benchmark, evaluation = (part.to_json() for part in (demo.report, demo.benchmark, demo.evaluation))
        print_json({"out": str(out), "report": report, "benchmark": benchmark, "evaluation": evaluation})
        return
    show_benchmark(demo.benchmark, as_json=False)
    show_evaluation(demo.evaluation, as_json=False)
    show_report(demo.report, out, as_json=False)

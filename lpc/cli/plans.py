"""The commands on plans: make one from saved scores, apply one, compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpc.cli import console
from lpc.cli import options as o

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.")]


def plan(
    model: o.Model,
    importance: Annotated[Path, typer.Option(help="scores.safetensors of an earlier output of this MODEL.")],
    out: Annotated[Path, typer.Option(help="The plan's file.")] = Path("plan.json"),
    ratio: o.Ratio = None,
    budget: o.Limits = None,
    workload: o.At = o.DEFAULT_WORKLOAD,
    layout: o.LayoutName = "uniform",
    multiple: o.Multiple = None,
    min_heads: o.MinHeads = 1,
    min_channels: o.MinChannels = 1,
    protect: o.Protect = None,
    freeze: o.Freeze = None,
    comparison: o.ComparisonName = o.DEFAULT_COMPARISON,
    custom_code: o.CustomCode = False,
    trust_remote_code: o.Trust = False,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Make a plan for MODEL from saved scores: another budget or layout, in seconds, without data or training."""
    from exporters.files import write_text
    from lpc.cli.tables import show_plan
    from lpc.planning import plan as run
    from passes.errors import OutputExistsError

    target = o.target_of(
        ratio, budget, workload, layout, multiple, min_heads, min_channels, protect, freeze, comparison
    )
    if out.exists() and not force:
        raise OutputExistsError(f"{out} is there already; choose another file, or pass --force")
    with console.progress_bars() as progress:
        made = run(
            model,
            importance,
            target,
            custom_code=custom_code,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    write_text(out, made.to_json())
    show_plan(made, out, as_json=json)


def apply(
    context: typer.Context,
    plan: PlanFile,
    model: o.Model,
    adapter: Annotated[Path | None, typer.Option(help="The trained adapter: OUT/adapter of the run.")] = None,
    compensation: Annotated[
        Path | None, typer.Option(help="Compensated weights (default: compensation.safetensors beside PLAN).")
    ] = None,
    out: o.Out = Path("lpc-out"),
    export: o.Export = None,
    onnx: o.Onnx = True,
    device: o.Device = "auto",
    trust_remote_code: o.Trust = False,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Apply PLAN to the MODEL that it was made for and write a complete verified output; nothing is trained."""
    from lpc.cli.output import hold
    from lpc.cli.tables import show_report
    from lpc.compression import apply as run

    exports = o.exports_of(export, onnx)
    hold(context, out, force=force, reads=(plan, model, adapter, compensation))
    with console.progress_bars() as progress:
        result = run(
            plan,
            model,
            adapter=adapter,
            compensation=compensation,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        report = result.save(out, export=exports, force=force, progress=progress)
    show_report(report, out, as_json=json)


def diff(first: PlanFile, second: PlanFile, json: o.Json = False) -> None:
    """Show where two plans differ: units a dimension, how many of them both keep, and the options."""
    from lpc.cli.tables import show_difference
    from lpc.planning import diff as run
    from passes.graph import Plan

    show_difference(run(Plan.load(first), Plan.load(second)), as_json=json)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (plan, apply, diff):
        app.command()(command)

"""The commands on plans: make one from saved scores, apply one, compare two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporters.files import write_text
from exporters.options import OnnxOptions
from lpc.cli.compress import leaving, target_of
from lpc.cli.output import asked_for, hold, told_if_done
from lpc.cli.progress import progress_shown
from lpc.cli.words import Given, Part, required
from lpc.options import CompressOptions, OutputOptions
from passes.errors import OutputExistsError
from passes.options import Budget, Group, RunOptions, Target, TraceOptions, option
from passes.places import check_file, find_place
from passes.stored import check_model, check_plan


@dataclass(frozen=True, kw_only=True)
class ScoresOptions:
    """What a plan is made of."""

    importance: Path = option(
        help="scores.safetensors of an earlier output of this MODEL.", group=Group.DATA, common=True, metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What a plan is applied with."""

    adapter: Path | None = option(
        None, help="The trained adapter: OUT/adapter of the run.", group=Group.DATA, common=True, metavar="DIR"
    )
    compensation: Path | None = option(
        None,
        help="Compensated weights; by default compensation.safetensors beside PLAN.",
        group=Group.DATA,
        common=True,
        metavar="FILE",
    )


PLAN = (
    Part(Target),
    Part(Budget),
    Part(TraceOptions, ("custom_code",)),
    Part(ScoresOptions),
    Part(OutputOptions, ("out", "force", "json"), {"out": Path("plan.json")}),
    Part(CompressOptions, ("trust_remote_code",)),
)
APPLY = (
    Part(ReplayOptions),
    Part(OutputOptions, ("out", "export", "onnx", "force", "json"), {"export": ("hf",)}),
    Part(OnnxOptions),
    Part(RunOptions, ("device",)),
    Part(CompressOptions, ("trust_remote_code",)),
)
DIFF = (Part(OutputOptions, ("json",)),)


def plan(given: Given) -> None:
    """Make a plan for MODEL from saved scores. Another budget or layout, in seconds, without data or training."""
    required(given, ScoresOptions)
    model, output, target = given.arguments["model"], given.make(OutputOptions), target_of(given)
    importance = given.make(ScoresOptions).importance
    check_model(model, weights=False)
    check_file(importance, "scores.safetensors of an earlier output with --importance")
    if output.out.exists() and not output.force:
        raise OutputExistsError(f"{output.out} is there already; choose another file, or pass --force")
    from lpc.cli.tables import show_plan
    from lpc.planning import plan as run

    more = {**given.of(TraceOptions), **given.of(CompressOptions)}
    with progress_shown() as progress:
        made = run(model, importance, target, **more, progress=progress)
    write_text(output.out, made.to_json())
    show_plan(made, output.out, as_json=output.json)


def apply(given: Given) -> None:
    """Apply PLAN to the MODEL that it was made for.

    Writes a complete verified output; nothing is trained. A folder of safetensors goes through a tensor at a time,
    whatever its size. With --export hf,onnx it is loaded.
    """
    plan, model = given.arguments["plan"], given.arguments["model"]
    replay, output = given.make(ReplayOptions), given.make(OutputOptions)
    exports = output.exports
    if given.of(OutputOptions).get("onnx"):
        exports = tuple(dict.fromkeys((*exports, "onnx")))
    check_file(plan, "a plan.json")
    find_place(model)
    for each in (replay.adapter, replay.compensation):
        if each is not None:
            check_file(each, "what the run wrote beside its plan")
    reads = (plan, model, replay.adapter, replay.compensation)
    with told_if_done(output.out, as_json=output.json):
        hold(given.held, output.out, force=output.force, reads=reads, asked=asked_for(given, reads))
        check_plan(plan)
        check_model(model, weights=True)
    from lpc.cli.tables import show_report
    from lpc.streaming import apply_to as run

    with progress_shown() as progress:
        more = {**vars(replay), **given.of(RunOptions), **given.of(CompressOptions), "export": leaving(given, exports)}
        report = run(plan, model, output.out, **more, force=output.force, progress=progress)
    show_report(report, output.out, as_json=output.json)


def diff(given: Given) -> None:
    """Show where two plans differ. Units a dimension, how many of them both keep, and the options."""
    first, second = given.arguments["first"], given.arguments["second"]
    for each in (first, second):
        check_file(each, "a plan.json")
        check_plan(each)
    from lpc.cli.tables import show_difference
    from lpc.planning import diff as run
    from passes.graph import Plan

    show_difference(run(Plan.load(first), Plan.load(second)), as_json=given.make(OutputOptions).json)

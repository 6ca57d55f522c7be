"""``lpc compress``: one model, or with ``--snapshots`` a family of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters.options import OF_ONNX, OnnxOptions
from lpc.cli.output import Going, going_on, hold, hold_run, least_bytes, told_if_done
from lpc.cli.progress import progress_shown
from lpc.cli.words import Given, Part
from lpc.options import (
    PRESET_RECIPES,
    CompressOptions,
    DataOptions,
    InputOptions,
    InstructionFormat,
    OutputOptions,
    find_recipe,
    read_recipe,
    recipe_options,
)
from passes.errors import OptionError
from passes.options import (
    Budget,
    Group,
    RecoverOptions,
    RunOptions,
    SnapshotOptions,
    Target,
    TraceOptions,
    TuneOptions,
    check,
    check_loggers,
    option,
)
from passes.places import check_file, find_place
from passes.ranks import launched
from passes.stored import check_model


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Where options come from that no word says."""

    recipe: str | None = option(
        None,
        help="Options from a recipe: a name (lpc recipe show), a recipe.yaml, or an output folder; words win over it.",
        group=Group.REMOVE,
        common=True,
        metavar="NAME|FILE",
    )
    preset: str | None = option(
        None,
        choices=tuple(PRESET_RECIPES),
        help="fast: nothing is trained. best: ten times the steps. lpc estimate says what each costs here.",
        group=Group.REMOVE,
        common=True,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.recipe is not None and self.preset is not None:
            raise OptionError("--preset is short for a recipe: leave it or --recipe out")

    @property
    def name(self) -> str | None:
        """The recipe that is asked for; None if there is none."""
        return PRESET_RECIPES[self.preset] if self.preset is not None else self.recipe


PARTS = (
    Part(RecipeOptions),
    Part(Target),
    Part(Budget),
    Part(SnapshotOptions, if_asked=True),
    Part(TraceOptions),
    Part(TuneOptions),
    Part(RunOptions),
    Part(CompressOptions),
    Part(RecoverOptions, if_asked=True),
    Part(InputOptions),
    Part(DataOptions),
    Part(InstructionFormat, if_asked=True),
    Part(OnnxOptions),
    Part(OutputOptions),
)


def compress(given: Given) -> None:
    """Make MODEL smaller, prove it, and write OUT.

    OUT has hf, onnx, adapter, plan.json, report.html and lpc.json, which names the rest. Say how far with --ratio,
    with one --budget or several, or with --snapshots for a model at each of several ratios. Without data a causal
    LM writes its own.
    """
    model, data, output = given.arguments["model"], given.make(InputOptions).data, given.make(OutputOptions)
    options, _ = options_of(given), output.exports
    check_loggers(options.tune.report_to)
    if output.benchmark and options.snapshots is None:
        raise OptionError("--benchmark goes with --snapshots; one model is timed by lpc benchmark")
    find_place(model)
    for each in data:
        check_file(each, "a text, a .jsonl file or a saved data set with --data")
    going = going_on(output, options.tune)
    _hold(given, model, data, options, output, going)
    check_model(model, weights=True)
    run = _one if options.snapshots is None else _family
    exports = leaving(given, output.exports)
    with told_if_done(going.done, as_json=output.json):
        run(model, data, options, output, going, exports)


def leaving(given: Given, names: Sequence[str]) -> dict[str, Any]:
    """The formats to write, with the options of those that have words for them. Raises OptionError."""
    onnx = given.make(OnnxOptions)
    return {name: onnx if name in OF_ONNX else None for name in names}


def _hold(
    given: Given,
    model: str,
    data: tuple[Path, ...],
    options: CompressOptions,
    output: OutputOptions,
    going: Going,
) -> None:
    """Hold the output folder, apart from all that is read; the first process does, which writes. Raises OutputError."""
    if launched()[0]:
        return
    needs = least_bytes(model, options.target.ratio, onnx="onnx" in output.exports)
    hold(
        given.held,
        output.out,
        force=output.force or going.done is not None,
        reads=(model, *data, *given.files),
        writes=(options.tune.checkpoints,),
        needs_bytes=needs,
    )
    hold_run(given.held, going)


def with_recipe(given: Given) -> Given:
    """What was said, and what the recipe says where no word does. Raises OptionError, DataError, MissingFileError."""
    name = given.make(RecipeOptions).name
    if name is None:
        return given
    found = recipe_options(read_recipe(find_recipe(name)))
    words, target = given.options, dict(found.get(Target, {}))
    if given.of(Target).keys() & {"ratio", "budget"} or given.of(SnapshotOptions):
        found[Target] = {key: value for key, value in target.items() if key not in ("ratio", "budget")}
    kinds = dict.fromkeys((*found, *words))
    merged = {kind: {**found.get(kind, {}), **words.get(kind, {})} for kind in kinds}
    return replace(given, options=merged)


def options_of(given: Given) -> CompressOptions:
    """All options of the compression that the words, and the recipe, ask for. Raises OptionError."""
    given = with_recipe(given)
    snapshots = _snapshots(given)
    tune = given.make(TuneOptions)
    recover = None
    if given.of(RecoverOptions):
        # A teacher for it is a second model in memory: only if distillation was asked for.
        distill = tune.distill if "distill" in given.of(TuneOptions) else None
        made = {"distill": distill, "bf16": tune.bf16, **given.of(RecoverOptions)}
        recover = given.make(RecoverOptions, **made)
    instructions = given.make(InstructionFormat) if given.of(InstructionFormat) else None
    return given.make(
        CompressOptions,
        target=target_of(given, snapshots),
        trace=given.make(TraceOptions),
        run=given.make(RunOptions),
        tune=tune,
        data_options=given.make(DataOptions, instructions=instructions),
        recover=recover,
        snapshots=snapshots,
    )


def target_of(given: Given, snapshots: SnapshotOptions | None = None) -> Target:
    """The target that the words ask for, or the last of the snapshots. Raises OptionError."""
    said = given.of(Target)
    if snapshots is not None and "ratio" not in said and "budget" not in said:
        return given.make(Target, ratio=snapshots.ratios[-1])
    if given.of(Budget) and "budget" not in said:
        raise OptionError("--workload says what latency is of: give a --budget latency=AMOUNT with it")
    if given.of(Budget):
        return given.make(Target, budget=replace(said["budget"], **given.of(Budget)))
    return given.make(Target)


def _snapshots(given: Given) -> SnapshotOptions | None:
    said = given.of(SnapshotOptions)
    if said and "ratios" not in said:
        raise OptionError("--snapshot-steps goes with --snapshots: give the ratios, such as --snapshots 0.1,0.3")
    return given.make(SnapshotOptions) if said else None


def _one(
    model: str,
    data: tuple[Path, ...],
    options: CompressOptions,
    output: OutputOptions,
    going: Going,
    exports: dict[str, Any],
) -> None:
    from lpc.cli.tables import show_report
    from lpc.compression import compress as run

    with progress_shown() as progress:
        more = {**going.arguments(), "export": exports}
        result = run(model, list(data) or None, **options.arguments(), **more, progress=progress)
        result = replace(result, command=shlex.join(["lpc", *sys.argv[1:]]))
        report = result.save(output.out, export=exports, force=output.force, progress=progress)
    if not launched()[0]:
        show_report(report, output.out, as_json=output.json)


def _family(
    model: str,
    data: tuple[Path, ...],
    options: CompressOptions,
    output: OutputOptions,
    going: Going,
    exports: dict[str, Any],
) -> None:
    from lpc.cli.tables import show_family
    from lpc.family import compress_family as run

    leaving: dict[str, Any] = {"export": exports, "benchmark": output.benchmark}
    with progress_shown() as progress:
        asked = {**options.arguments(), **going.arguments(), **leaving}
        family = run(model, list(data) or None, **asked, progress=progress)
        report = family.save(output.out, **leaving, force=output.force, progress=progress)
    if not launched()[0]:
        show_family(report, output.out, as_json=output.json)

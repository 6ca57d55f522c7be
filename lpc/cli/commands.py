"""The commands on one model or output: inspect, export, benchmark, evaluate, demo."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from exporters.files import write_text
from exporters.options import OnnxOptions
from lpc.cli import console
from lpc.cli.output import asked_for, hold, told_if_done
from lpc.cli.progress import progress_shown
from lpc.cli.words import Given, Part
from lpc.options import BenchmarkOptions, EvaluateOptions, OutputOptions
from lpc.owned import MANIFEST
from passes.errors import OutputExistsError
from passes.options import Group, TraceOptions, option
from passes.places import check_file
from passes.stored import check_model


@dataclass(frozen=True, kw_only=True)
class AgainstOptions:
    """What a benchmark compares with."""

    against: Path | None = option(
        None, help="Another one, taken as the dense model.", group=Group.DATA, common=True, metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """Where results go that no output of lpc takes in."""

    out: Path | None = option(
        None,
        help="Folder for the results; by default DIR if that is an output of lpc, else DIR's name with -eval, here.",
        group=Group.OUTPUT,
        common=True,
        metavar="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Whether a page is written."""

    html: Path | None = option(
        None, help="Write a page with the table and trade-offs, too.", group=Group.OUTPUT, common=True, metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How far the demo goes."""

    files: bool = option(
        False, help="Only write the embedded model and its text into OUT, to try commands on.", group=Group.OUTPUT
    )


INSPECT = (Part(TraceOptions), Part(OutputOptions, ("json",)))
EXPORT = (Part(OnnxOptions), Part(OutputOptions, ("out", "format", "streamed", "force", "json")))
BENCHMARK = (Part(AgainstOptions), Part(BenchmarkOptions), Part(OutputOptions, ("json",)))
EVALUATE = (
    Part(EvaluateOptions),
    Part(AgainstOptions),
    Part(ResultsOptions),
    Part(OutputOptions, ("json",)),
)
COMPARE = (Part(PageOptions), Part(OutputOptions, ("force", "json")))
DOCTOR = (Part(OutputOptions, ("json",)),)
DEMO = (
    Part(DemoOptions),
    Part(OutputOptions, ("out", "force", "json"), {"out": Path("demo-out")}),
)


def inspect(given: Given) -> None:
    """Show what of MODEL can go, and what each unit costs. A folder with only a config.json is enough."""
    model, options, output = given.arguments["model"], given.make(TraceOptions), given.make(OutputOptions)
    check_model(model, weights=False)
    from lpc.cli.tables import show_inspection
    from lpc.inspection import inspect as run

    with progress_shown():
        found = run(model, options)
    show_inspection(found, as_json=output.json)


def export(given: Given) -> None:
    """Write the ONNX package of a checkpoint, and verify it. Any that lpc or transformers can load."""
    folder, options, output = given.arguments["folder"], given.make(OnnxOptions), given.make(OutputOptions)
    check_file(folder, "the folder of a checkpoint")
    with told_if_done(output.out, as_json=output.json):
        asked = asked_for(given, (folder,))
        hold(given.held, output.out, force=output.force, reads=(folder,), owned=output.owned, asked=asked)
    from lpc.cli.tables import show_packages
    from lpc.exporting import export_each as run

    how = {"streamed": output.streamed, "format": output.format}
    with progress_shown():
        packages = run(folder, output.out, options, **how, force=output.force)
    show_packages(packages, output.out, as_json=output.json)


def benchmark(given: Given) -> None:
    """Time prefill and decode in onnxruntime. Writes DIR/benchmark.json and the report."""
    folder, options, output = given.arguments["folder"], given.make(BenchmarkOptions), given.make(OutputOptions)
    against = given.make(AgainstOptions).against
    for each in (folder, *([against] if against else [])):
        check_file(each, "an output of lpc, or an ONNX folder")
    from lpc.cli.tables import show_benchmark
    from lpc.speed import benchmark as run

    with progress_shown() as progress:
        found = run(folder, against, options, progress)
    show_benchmark(found, as_json=output.json)


def evaluate(given: Given) -> None:
    """Evaluate dense, pruned and ONNX with lm-eval, side by side.

    Results are added to eval.json, and what is done is not run again. A folder that is no output of lpc is never
    written into.
    """
    folder, options, output = given.arguments["folder"], given.make(EvaluateOptions), given.make(OutputOptions)
    check_file(folder, "an output of lpc, a checkpoint, or an ONNX folder")
    if options.text is not None:
        check_file(options.text, "a text file with --text")
    against, out = given.make(AgainstOptions).against, given.make(ResultsOptions).out
    if against is not None:
        check_file(against, "a checkpoint with --against")
    from lpc.cli.tables import show_evaluation
    from lpc.evaluating import evaluate as run

    own = folder if (folder / MANIFEST).is_file() else Path(f"{folder.resolve().name}-eval")
    with progress_shown() as progress:
        found = run(folder, options, dense=against, out=out or own, progress=progress)
    show_evaluation(found, out or own, as_json=output.json)


def compare(given: Given) -> None:
    """Show outputs of lpc side by side. Sizes, held-out quality, lm-eval and latency, as far as they were measured."""
    page = given.make(PageOptions).html
    if page is not None and page.exists() and not given.make(OutputOptions).force:
        raise OutputExistsError(f"{page} is there already; choose another file, or pass --force")
    from lpc.comparing import compare as run

    found = run(given.arguments["runs"])
    if page is not None:
        write_text(page, found.page())
    if given.make(OutputOptions).json:
        console.print_json(found.to_json())
        return
    console.print_table("runs side by side", *found.rows())
    if page is not None:
        console.print_line(f"written to {page}")


def doctor(given: Given) -> None:
    """Show versions, devices, threads, and what is missing. Exit code 2 if lpc cannot work."""
    from lpc.checkup import doctor as run
    from lpc.cli.tables import show_diagnosis

    found = run()
    show_diagnosis(found, as_json=given.make(OutputOptions).json)
    if not found.is_well:
        sys.exit(console.USER_ERROR)


def demo(given: Given) -> None:
    """Go the whole way on the embedded model. Compress, export, benchmark, evaluate: no network, no data."""
    output = given.make(OutputOptions)
    if given.make(DemoOptions).files:
        from lpc.demo import write_files

        write_files(output.out, force=output.force)
        written = {"model": f"{output.out}/model", "train": f"{output.out}/train.txt"}
        console.print_json(written) if output.json else console.print_line(
            f"written to {output.out}: lpc compress {output.out}/model --data {output.out}/train.txt --ratio 0.3"
        )
        return
    with ExitStack() as tried:  # the demo holds it again, once torch is there
        hold(tried, output.out, force=output.force, reads=())
    from lpc.cli.tables import show_demo
    from lpc.demo import run

    with progress_shown() as progress:
        found = run(output.out, force=output.force, progress=progress)
    show_demo(found, output.out, as_json=output.json)

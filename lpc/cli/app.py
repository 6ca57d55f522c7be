"""The command line. Each command parses, calls the library, and prints what came back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpc.cli import console, plans
from lpc.cli import options as o

app = typer.Typer(
    name="lpc",
    help="Make a trained transformer smaller: prune heads and MLP channels while tuning, verify, export to ONNX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def compress(
    context: typer.Context,
    model: o.Model,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            help="What to tune on; may be repeated. A causal LM: text, or .jsonl files with `text`, with prompts and "
            "answers or with `messages`. Any model: .jsonl files with its inputs and labels, or a folder saved by "
            "datasets' save_to_disk.",
        ),
    ],
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
    snapshots: o.Snapshots = None,
    snapshot_steps: o.SnapshotSteps = None,
    benchmark: o.Timed = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps; 0 trains nothing.")] = 200,
    criterion: Annotated[
        str, typer.Option(help="How units are ranked (docs/criteria.md); auto: obs, else loraprune.")
    ] = "auto",
    one_shot: o.OneShot = None,
    samples: Annotated[int, typer.Option(help="Sequences or rows to rank on and to solve on.")] = 128,
    out: o.Out = Path("lpc-out"),
    export: o.Export = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw: LoRA's start, order, samples.")] = 0,
    onnx: o.Onnx = True,
    batch_size: Annotated[int, typer.Option(help="Sequences or rows a batch, in every step.")] = 8,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens a sequence (default: 256 or the context).")
    ] = None,
    prompt_template: o.PromptTemplate = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate (default: by width).")] = None,
    query_heads: o.QueryHeads = False,
    custom_code: o.CustomCode = False,
    depth: o.Depth = None,
    depth_scores: Annotated[str, typer.Option(help="summed, or skipped: by the rise of the loss.")] = "summed",
    hidden: o.Hidden = False,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder for training checkpoints.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between two checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Tune under bf16 autocast.")] = False,
    compensate: o.Compensate = None,
    distill: o.Distill = None,
    recover_steps: o.RecoverSteps = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    trust_remote_code: o.Trust = False,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Compress MODEL and write OUT/hf, OUT/onnx, OUT/adapter, OUT/plan.json, OUT/lpc.json and OUT/report.md.

    Say how far with --ratio, with one --budget or several, or with --snapshots for a model at each of several ratios.
    """
    from dataclasses import replace

    from lpc.cli.family import run_family
    from lpc.cli.output import hold, least_bytes
    from lpc.cli.tables import show_report
    from lpc.compression import compress as run
    from lpc.material import DataOptions
    from passes.trace import TraceOptions
    from passes.tuning import TuneOptions

    exports = o.exports_of(export, onnx)
    needs = least_bytes(model, ratio, onnx="onnx" in exports)
    hold(context, out, force=force, reads=(model, *data, prompt_template), writes=(checkpoints,), needs_bytes=needs)
    family = o.snapshots_of(snapshots, snapshot_steps, benchmark)
    if family is not None and ratio is None and not budget:
        ratio = family.ratios[-1]
    target = o.target_of(
        ratio, budget, workload, layout, multiple, min_heads, min_channels, protect, freeze, comparison
    )
    tune = TuneOptions(steps=steps, seed=seed, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16)
    tune = replace(tune, criterion=criterion, depth_scores=depth_scores)
    tune = replace(tune, checkpoints=checkpoints, save_every=save_every, resume=resume)
    healing = o.healing_of(tune, one_shot, compensate, distill, recover_steps)
    tune = healing.tune
    instructions = o.instructions_of(prompt_template)
    text = DataOptions(sequence_length=sequence_length, samples=samples, instructions=instructions)
    trace = TraceOptions(query_heads=query_heads, custom_code=custom_code, depth=depth, hidden=hidden)
    if family is not None:
        o.check_family(healing)
        run_family(
            model,
            data,
            family,
            out,
            target=target,
            tune=tune,
            text=text,
            trace=trace,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            export=exports,
            benchmark=benchmark,
            force=force,
            json=json,
        )
        return
    with console.progress_bars() as progress:
        result = run(
            model,
            data,
            target=target,
            tune=tune,
            compensate=healing.compensate,
            recover=healing.recover,
            text=text,
            trace=trace,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        report = result.save(out, export=exports, force=force, progress=progress)
    show_report(report, out, as_json=json)


@app.command()
def inspect(
    model: o.Model,
    query_heads: o.QueryHeads = False,
    custom_code: o.CustomCode = False,
    depth: o.Depth = None,
    hidden: o.Hidden = False,
    json: o.Json = False,
) -> None:
    """Show MODEL's dimensions, their units, and what each unit costs. A folder with only a config.json is enough."""
    from lpc.cli.tables import show_inspection
    from lpc.inspection import inspect as run

    with console.progress_bars():
        found = run(model, query_heads=query_heads, custom_code=custom_code, depth=depth, hidden=hidden)
    show_inspection(found, as_json=json)


@app.command()
def export(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A checkpoint that lpc or transformers can load.")],
    out: Annotated[Path, typer.Option(help="Output folder.")],
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Write the verified ONNX package of a checkpoint."""
    from exporters.files import PACKAGE
    from lpc.cli.output import hold
    from lpc.cli.tables import show_package
    from lpc.exporting import export as run

    hold(context, out, force=force, reads=(model,), owned=PACKAGE)
    with console.progress_bars():
        package = run(model, out, force=force)
    show_package(package, out, as_json=json)


@app.command()
def benchmark(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An lpc output, or an ONNX folder.")],
    against: Annotated[Path | None, typer.Option(help="Another one, taken as the dense model.")] = None,
    repeats: Annotated[int, typer.Option(help="Counted runs a call.")] = 15,
    json: o.Json = False,
) -> None:
    """Time prefill and decode in onnxruntime and write DIR/benchmark.json."""
    from lpc.cli.tables import show_benchmark
    from lpc.speed import BenchmarkOptions
    from lpc.speed import benchmark as run

    with console.progress_bars() as progress:
        found = run(folder, against, BenchmarkOptions(repeats=repeats), progress)
    show_benchmark(found, as_json=json)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An lpc output, a checkpoint, or an ONNX folder.")],
    text: Annotated[Path | None, typer.Option(help="Text file whose perplexity to measure.")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks, or .jsonl files, separated by commas.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder with task definitions of your own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N documents of each task.")] = None,
    backend: Annotated[str, typer.Option(help="hf, onnx, genai or all.")] = "all",
    json: o.Json = False,
) -> None:
    """Evaluate with lm-eval, dense, pruned and ONNX side by side, and write DIR/eval.json."""
    from lpc.cli.tables import show_evaluation
    from lpc.evaluation import EvaluateOptions
    from lpc.evaluation import evaluate as run
    from lpc.report import record

    options = EvaluateOptions(
        text=text,
        tasks=tuple(task for task in tasks.split(",") if task),
        include_path=include_path,
        limit=limit,
        backend=backend,
    )
    with console.progress_bars() as progress:
        found = run(folder, options, progress=progress)
    record(folder, {"eval.json": found.to_text()})
    show_evaluation(found, as_json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo-out"),
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Compress the embedded model, export, benchmark and evaluate it; needs neither network nor data."""
    from lpc.cli.tables import show_demo
    from lpc.demo import run

    with console.progress_bars() as progress:
        found = run(out, force=force, progress=progress)
    show_demo(found, out, as_json=json)


plans.register(app)


def main() -> None:
    """The ``lpc`` command: exit code 0 when all is well, 2 with one message for what the user can mend."""
    with console.user_errors():
        console.prepare_process()
        app()

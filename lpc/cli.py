"""The command line. Each command parses, calls the library, and prints what came back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpc import console

app = typer.Typer(
    name="lpc",
    help="Make a trained transformer smaller: prune heads and MLP channels while tuning, verify, export to ONNX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Write into an output folder that is not empty.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a name on the Hugging Face hub.")]
Multiple = Annotated[int | None, typer.Option(help="Round MLP widths to this (default: 64 from 1024 up, else 8).")]
SequenceLength = Annotated[int | None, typer.Option(help="Tokens a sequence (default: 256 or the context).")]
QueryHeads = Annotated[bool, typer.Option("--query-heads", help="Keep all KV heads; prune query heads inside a group.")]
CustomCode = Annotated[
    bool, typer.Option("--custom-code", help="Allow sizes that no stock class holds; adds a modelling file.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.")]


@app.command()
def compress(
    model: Model,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            help="What to tune on; may be repeated. A causal LM: text or .jsonl files with `text`. Any model: .jsonl "
            "with the model's inputs and labels, or a folder saved by datasets' save_to_disk.",
        ),
    ],
    ratio: Annotated[float, typer.Option(help="Share of all parameters to remove, between 0 and 1.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 200,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("lpc-out"),
    seed: Annotated[int, typer.Option(help="Seed of LoRA's start and of the data order.")] = 0,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write the ONNX package too.")] = True,
    batch_size: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    sequence_length: SequenceLength = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate (default: by width).")] = None,
    multiple: Multiple = None,
    query_heads: QueryHeads = False,
    custom_code: CustomCode = False,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder for training checkpoints.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between two checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Tune under bf16 autocast.")] = False,
    trust_remote_code: Trust = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compress MODEL and write OUT/hf, OUT/onnx, OUT/adapter, OUT/plan.json, OUT/lpc.json and OUT/report.md."""
    from dataclasses import replace

    from exporters.folder import check_output
    from lpc.compression import DataOptions
    from lpc.compression import compress as run
    from lpc.tables import show_report
    from passes.trace import TraceOptions
    from passes.tune import TuneOptions

    check_output(out, force=force)
    tune = TuneOptions(steps=steps, seed=seed, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16)
    tune = replace(tune, checkpoints=checkpoints, save_every=save_every, resume=resume)
    with console.progress_bars() as progress:
        result = run(
            model,
            data,
            ratio,
            multiple=multiple,
            tune=tune,
            text=DataOptions(sequence_length=sequence_length),
            trace=TraceOptions(query_heads=query_heads, custom_code=custom_code),
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        report = result.save(out, onnx=onnx, force=force, progress=progress)
    show_report(report, out, as_json=json)


@app.command()
def inspect(model: Model, query_heads: QueryHeads = False, custom_code: CustomCode = False, json: Json = False) -> None:
    """Show MODEL's dimensions, their units, and what each unit costs. A folder with only a config.json is enough."""
    from lpc.inspection import inspect as run
    from lpc.tables import show_inspection

    with console.progress_bars():
        found = run(model, query_heads=query_heads, custom_code=custom_code)
    show_inspection(found, as_json=json)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A checkpoint that lpc or transformers can load.")],
    out: Annotated[Path, typer.Option(help="Output folder.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the verified ONNX package of a checkpoint."""
    from exporters.folder import check_output
    from lpc.exporting import export as run
    from lpc.tables import show_package

    check_output(out, force=force)
    with console.progress_bars():
        package = run(model, out, force=force)
    show_package(package, out, as_json=json)


@app.command()
def benchmark(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An lpc output, or an ONNX folder.")],
    against: Annotated[Path | None, typer.Option(help="Another one, taken as the dense model.")] = None,
    repeats: Annotated[int, typer.Option(help="Counted runs a call.")] = 15,
    json: Json = False,
) -> None:
    """Time prefill and decode in onnxruntime and write DIR/benchmark.json."""
    from lpc.benchmark import BenchmarkOptions
    from lpc.benchmark import benchmark as run
    from lpc.manifest import refresh
    from lpc.tables import show_benchmark

    with console.progress_bars() as progress:
        found = run(folder, against, BenchmarkOptions(repeats=repeats), progress)
    refresh(folder)
    show_benchmark(found, as_json=json)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An lpc output, a checkpoint, or an ONNX folder.")],
    text: Annotated[Path | None, typer.Option(help="Text file whose perplexity to measure.")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks, or .jsonl files, separated by commas.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder with task definitions of your own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N documents of each task.")] = None,
    backend: Annotated[str, typer.Option(help="hf, onnx, genai or all.")] = "all",
    json: Json = False,
) -> None:
    """Evaluate with lm-eval, dense, pruned and ONNX side by side, and write DIR/eval.json."""
    from lpc.evaluate import EvaluateOptions
    from lpc.evaluate import evaluate as run
    from lpc.manifest import refresh
    from lpc.tables import show_evaluation

    options = EvaluateOptions(
        text=text,
        tasks=tuple(task for task in tasks.split(",") if task),
        include_path=include_path,
        limit=limit,
        backend=backend,
    )
    with console.progress_bars() as progress:
        found = run(folder, options, progress=progress)
    found.write(folder / "eval.json")
    refresh(folder)
    show_evaluation(found, as_json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo-out"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Compress the embedded model, export, benchmark and evaluate it; needs neither network nor data."""
    from lpc.demo import run
    from lpc.tables import show_demo

    with console.progress_bars() as progress:
        found = run(out, force=force, progress=progress)
    show_demo(found, out, as_json=json)


def main() -> None:
    """The ``lpc`` command: exit code 0 when all is well, 2 with one message for what the user can mend."""
    with console.user_errors():
        console.prepare_process()
        app()

"""The demo: the whole way on the embedded model, with text that every Python installation carries."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from exporters.files import Owned, claimed, staged_folder, write_text
from lpc.compression import compress
from lpc.demo.text import corpus
from lpc.evaluating import evaluate
from lpc.evaluation import Evaluation
from lpc.exporting import export
from lpc.options import BenchmarkOptions, DataOptions, EvaluateOptions
from lpc.owned import OUTPUT
from lpc.report import Report
from lpc.speed import Benchmark, benchmark
from passes.options import TuneOptions
from passes.pipeline import Progress, silent

RATIO = 0.3
STEPS = 200
SEQUENCE_LENGTH = 128
EVALUATED_DOCUMENTS = 60


@dataclass(frozen=True)
class Demo:
    """What the demo measured."""

    report: Report
    benchmark: Benchmark
    evaluation: Evaluation


DEMO_FILES = Owned(
    names=frozenset({"model", "train.txt", "heldout.txt"}), is_made=lambda folder: (folder / "heldout.txt").is_file()
)
SEPARATOR = "\n<|endoftext|>\n"


def write_files(out: Path, *, force: bool = False) -> None:
    """Write the embedded model (``out/model``) and its text (``train.txt``, ``heldout.txt``), to try commands on.

    Raises OutputExistsError, OutputError.
    """
    text = corpus()
    with (
        as_file(files("lpc") / "assets" / "demo-model") as model,
        staged_folder(out, force=force, owned=DEMO_FILES) as stage,
    ):
        shutil.copytree(model, stage / "model")
        write_text(stage / "train.txt", SEPARATOR.join(text.train) + "\n")
        write_text(stage / "heldout.txt", SEPARATOR.join(text.heldout) + "\n")


def run(out: Path, *, force: bool = False, progress: Progress = silent) -> Demo:
    """Compress, export, benchmark and evaluate; leaves ``out`` as ``lpc compress`` would, with all reports in it.

    Besides, ``out/dense-onnx`` holds the dense model's ONNX package that the benchmark compares with, and
    ``out/heldout.txt`` the text of the evaluation. Raises OutputExistsError, OutputError, PostconditionError.
    """
    text = corpus()
    model_files = as_file(files("lpc") / "assets" / "demo-model")
    with claimed(out, force=force, owned=OUTPUT), model_files as model:
        result = compress(
            model,
            data=list(text.train),
            ratio=RATIO,
            tune=TuneOptions(steps=STEPS),
            data_options=DataOptions(sequence_length=SEQUENCE_LENGTH),
            progress=progress,
        )
        report = result.save(out, force=force, progress=progress)
        export(model, out / "dense-onnx", force=True)
        write_text(out / "heldout.txt", SEPARATOR.join(text.heldout) + "\n")
        timed = benchmark(out, out / "dense-onnx", BenchmarkOptions(), progress)
        options = EvaluateOptions(text=out / "heldout.txt", limit=EVALUATED_DOCUMENTS)
        evaluation = evaluate(out, options, dense=model, progress=progress)
    return Demo(report, timed, evaluation)

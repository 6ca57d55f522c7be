"""The pipelines that lpc builds: the page shows them as the code does, and the context reaches all their passes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import build_model
from transformers import PreTrainedModel

import lpc
from lpc.material import Material
from lpc.pipelines import compression_pipeline
from lpc.result import Result
from passes.pipeline import Pass, PassResult, Pipeline, Program, RunContext
from passes.trace import TracePass

PAGE = Path(__file__).parents[2] / "docs/pipeline.md"
SHOWN = re.compile(r"<!-- pipelines -->\n(.*?)\n<!-- end of pipelines -->", re.DOTALL)
DATA = [list(range(i, i + 100)) for i in range(20)]

RUNS: dict[str, dict[str, object]] = {
    "default": {},
    "`--progressive` or `--criterion loraprune`": {"tune": lpc.TuneOptions(criterion="loraprune")},
    "`--progressive --compensate`": {"tune": lpc.TuneOptions(criterion="loraprune"), "compensate": True},
    "`--steps 0`": {"tune": lpc.TuneOptions(steps=0)},
    "`--steps 0 --criterion loraprune`": {"tune": lpc.TuneOptions(steps=0, criterion="loraprune")},
    "`--recover-steps 200`": {"recover": lpc.RecoverOptions()},
}


@pytest.fixture(scope="module")
def program() -> Program:
    return TracePass()(Program.start(build_model("llama"))).program


def pipeline_of(program: Program, run: dict[str, object]) -> Pipeline:
    rows = [{"input_ids": torch.arange(8)} for _ in range(20)]
    measure = lambda model, batch_size: None  # noqa: E731
    unmeasured = lambda folder: None  # noqa: E731
    material = Material(rows, None, measure, measure, measure, None, unmeasured)  # type: ignore[arg-type]
    options = lpc.CompressOptions(target=lpc.Target(ratio=0.3), **run)  # type: ignore[arg-type]
    return compression_pipeline(program, material, options, RunContext())


def test_the_page_shows_the_pipelines_of_the_code(program: Program) -> None:
    lines = [f"| {name} | {' → '.join(pipeline_of(program, run).names)} |" for name, run in RUNS.items()]
    found = SHOWN.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[1].splitlines() == ["| run | passes |", "|---|---|", *lines]


def test_every_option_of_every_pass_is_plain(program: Program) -> None:
    for run in RUNS.values():
        json.dumps([[entry.name, entry.options] for entry in pipeline_of(program, run).entries])


@pytest.fixture(scope="module")
def result(tiny_model_folder: Path, text_file: Path) -> Result:
    return lpc.compress(
        tiny_model_folder,
        data=text_file,
        ratio=0.3,
        steps=2,
        seed=3,
        batch_size=2,
        sequence_length=32,
        samples=6,
        compensate=lpc.CompensateOptions(guard=False),
        recover=lpc.RecoverOptions(steps=1),
        dtype="bf16",
        pipeline=lambda passes: passes.insert(Noting(), after="shrink"),
    )


@dataclass(frozen=True)
class Noting(Pass):
    name = "noting"

    def call(self, program: Program, run: RunContext) -> PassResult:
        return PassResult(program, modified=False, report=(run.seed, run.batch_size, run.samples))


def test_seed_batch_size_and_samples_reach_everything(result: Result) -> None:
    told = {record.name: record.options for record in result.report.passes}
    shared = {"seed": 3, "batch_size": 2, "samples": 6}
    for name in ("score", "compensate", "tune", "recover", "attach"):
        mine = {key: value for key, value in told[name].items() if key in shared}
        assert mine == {key: value for key, value in shared.items() if key in mine}, name
        assert "seed" in mine
    assert result.plan.options["seed"] == 3
    assert result.plan.options["batch_size"] == 2
    score = next(record.report for record in result.report.passes if record.name == "score")
    assert (score.rows, score.batches) == (6, 3)  # type: ignore[union-attr]


def test_an_inserted_pass_gets_the_context_and_is_recorded(result: Result, tmp_path: Path) -> None:
    assert [r.report for r in result.report.passes if r.name == "noting"] == [(3, 2, 6)]
    result.save(tmp_path / "out", export=["hf"])
    manifest = json.loads((tmp_path / "out/lpc.json").read_text())
    names = [entry["name"] for entry in manifest["pipeline"]]
    assert ["load", *names] == [record["name"] for record in manifest["passes"]]
    assert names.index("noting") == names.index("shrink") + 1
    run = manifest["run"]
    assert (run["seed"], run["batch_size"], run["samples"], run["dtype"]) == (3, 2, 6, "bf16")
    assert run["device"] in ("cpu", "cuda", "mps")


def test_the_dtype_is_that_of_the_weights_to_the_end_and_of_the_plan(result: Result, tiny_model_folder: Path) -> None:
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.bfloat16}
    assert str(result.model.config.dtype).endswith("bfloat16")
    rotary = result.model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
    again = lpc.apply(result.plan, tiny_model_folder)
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.bfloat16}


def test_held_out_batches_have_the_runs_size(tiny_llama: PreTrainedModel) -> None:
    sizes: Counter[int] = Counter()

    def look(module: torch.nn.Module, args: tuple[object, ...], values: dict[str, torch.Tensor]) -> None:
        sizes[len(values["input_ids"])] += 1

    def watch(passes: Pipeline) -> Pipeline:
        return Pipeline(Watched(each, look) if each.name == "measure" else each for each in passes)

    text, run = lpc.DataOptions(sequence_length=16, heldout_fraction=0.2), lpc.RunOptions(batch_size=3, samples=4)
    tune = lpc.TuneOptions(steps=0, criterion="magnitude")
    lpc.compress(tiny_llama, DATA, 0.3, run=run, tune=tune, data_options=text, pipeline=watch)
    assert max(sizes) == 3
    assert sizes[3] > 3


class Watched(Pass):
    """A pass whose model is looked at while it runs."""

    name = "measure"

    def __init__(self, inner: Pass, look: object) -> None:
        self.inner, self.look = inner, look

    @property
    def options(self) -> Mapping[str, object]:
        return self.inner.options

    def call(self, program: Program, run: RunContext) -> PassResult:
        handle = program.model.register_forward_pre_hook(self.look, with_kwargs=True)
        try:
            return self.inner.call(program, run)
        finally:
            handle.remove()


def test_a_pipeline_without_a_plan_gives_no_result(program: Program) -> None:
    with pytest.raises(lpc.OptionError, match="end with ShrinkPass"):
        Result.of(program)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": lpc.TuneOptions(save_every=1)}, "save_every and resume need a folder"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"dtype": "int4"}, "unknown dtype 'int4': choose one of auto, fp32, bf16, fp16"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(options: dict[str, object], message: str) -> None:
    with pytest.raises(lpc.OptionError, match=message):
        lpc.compress("nowhere/at-all", DATA, 0.3, **options)  # type: ignore[arg-type]

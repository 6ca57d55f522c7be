from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM, AutoTokenizer

from lpc.cli.commands import EVALUATE
from lpc.evaluating import evaluate
from lpc.evaluation import Evaluation, difference_rows, harness
from lpc.evaluation.results import Agreement
from lpc.options import EvaluateOptions
from passes.errors import (
    DataError,
    OptionError,
    OutputError,
    OutputExistsError,
    UnsupportedModelError,
)

CHOICES = [
    {"query": f"Question: The {a} saw the", "choices": [a, b, "tree", "mat"], "gold": n % 4}
    for n, (a, b) in enumerate([("cat", "dog"), ("dog", "cat"), ("man", "sea"), ("sun", "sky"), ("bee", "ant")] * 2)
]


@pytest.fixture(scope="module")
def checkpoints(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense checkpoint, and an lpc output whose model answers otherwise."""
    out = tmp_path_factory.mktemp("evaluating") / "out"
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.normal_()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(out)
    return tiny_model_folder, out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("arc_easy", "openbook_qa"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    return folder


def test_second_evaluation_adds_and_runs_nothing_twice(
    checkpoints: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, pruned = checkpoints
    before = sorted(pruned.iterdir())
    calls: list[str] = []
    run = harness.run

    def counted(backend: Any, tasks: Any, **more: Any) -> Any:
        calls.extend(task.task_name for task in harness.leaves(tasks))
        return run(backend, tasks, **more)

    monkeypatch.setattr(harness, "run", counted)
    first = evaluate(
        pruned, EvaluateOptions(tasks=("arc_easy",), task_data=data, limit=4), dense=dense, out=tmp_path / "new"
    )
    assert calls == ["arc_easy"] * 2
    options = EvaluateOptions(tasks=("arc_easy", "openbookqa"), task_data=data, limit=4)
    told = list[int]()
    second = evaluate(
        pruned, options, dense=dense, out=tmp_path / "new", progress=lambda _, done, total: told.append(done)
    )
    assert told[-1] == 100
    assert calls == ["arc_easy"] * 2 + ["openbookqa"] * 2
    assert second.runs[0].scores[:2] == first.runs[0].scores
    assert {score.task for score in second.runs[1].scores} == {"arc_easy", "openbookqa"}
    assert len(second.asked) == 2
    assert Evaluation.read(tmp_path / "new" / "eval.json") == second
    shots = evaluate(
        pruned, EvaluateOptions(tasks=("arc_easy",), task_data=data, fewshot=1), dense=dense, out=tmp_path / "new"
    )
    assert [(s.fewshot, s.limit) for s in shots.runs[0].scores if s.task == "arc_easy"] == [(0, 4)] * 2 + [
        (1, None)
    ] * 2
    assert len(calls) == 6
    assert sorted(pruned.iterdir()) == before


def test_files_are_lm_evals_and_differences_are_of_the_same_documents(
    checkpoints: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    dense, pruned = checkpoints
    options = EvaluateOptions(tasks=("arc_easy",), task_data=data)
    found = evaluate(pruned, options, dense=dense, out=tmp_path / "new")
    right = {}
    for run, name in zip(found.runs, ("dense-hf", "model-hf"), strict=True):
        place = tmp_path / "new" / "lm-eval" / name / "arc_easy"
        results = json.loads(next(place.glob("results_*.json")).read_text())
        assert results["results"]["arc_easy"]["acc,none"] == run.scores[0].value
        lines = next(place.glob("samples_arc_easy_*.jsonl")).read_text().splitlines()
        right[name] = {row["doc_id"]: row["acc"] for row in map(json.loads, lines)}
        assert len(right[name]) == len(CHOICES)
    gap = sum(right["model-hf"][n] - right["dense-hf"][n] for n in range(len(CHOICES))) / len(CHOICES)
    difference = found.differences[0]
    assert (difference.task, difference.metric, difference.documents) == ("arc_easy", "acc", len(CHOICES))
    assert difference.difference == pytest.approx(gap)
    header, rows = difference_rows(found.to_json())
    assert header == ["", "model hf"]
    assert [row[0] for row in rows] == ["arc_easy acc", "arc_easy acc_norm"]
    commands = found.asked[0].command
    assert len(commands) == 2
    assert all("--tasks arc_easy" in each and str(tmp_path / "new/lm-eval/tasks") in each for each in commands)


def test_changed_model_is_evaluated_again_and_its_old_scores_go(
    checkpoints: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "new"
    for number, source in enumerate(checkpoints):
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(model)
        AutoTokenizer.from_pretrained(source).save_pretrained(model)
        task = ("arc_easy", "openbookqa")[number]
        found = evaluate(model, EvaluateOptions(tasks=(task,), task_data=data, limit=3), out=out)
    assert {score.task for score in found.runs[0].scores} == {"openbookqa"}


def test_other_process_finds_what_was_done(checkpoints: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    row = {"ctx_a": "A", "ctx_b": "b", "activity_label": "C", "endings": ["d", "e"], "label": 1}
    (tmp_path / "hellaswag.jsonl").write_text(json.dumps(row) + "\n")  # a task with a function in its definition
    code = (
        "from pathlib import Path; from lpc.evaluating import evaluate; from lpc.options import EvaluateOptions\n"
        f"options = EvaluateOptions(tasks=('hellaswag',), task_data=Path({str(tmp_path)!r}))\n"
        f"evaluate({str(checkpoints[1])!r}, options, out={str(tmp_path / 'new')!r})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    note = tmp_path / "new/lm-eval/model-hf/hellaswag/lpc-task.json"
    first, written = note.read_text(), note.stat().st_mtime_ns
    evaluate(checkpoints[1], EvaluateOptions(tasks=("hellaswag",), task_data=tmp_path), out=tmp_path / "new")
    assert (note.read_text(), note.stat().st_mtime_ns) == (first, written)


def test_where_lm_eval_bootstraps_nothing_is_printed_and_nothing_forked(
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multiprocessing.Pool", lambda *_: pytest.fail("a pool of processes"))
    rows = [{"context": f"The {word} sat on", "continuation": word} for word in ("cat", "dog", "sun")]
    (tmp_path / "lambada_openai.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(checkpoints[1], EvaluateOptions(tasks=("lambada_openai",), task_data=tmp_path))
    assert found.runs[0].scores[0].metric == "perplexity"
    assert found.runs[0].scores[0].stderr
    assert capfd.readouterr().out == ""


def test_preset_tells_what_it_left_out(checkpoints: tuple[Path, Path], data: Path) -> None:
    found = evaluate(checkpoints[1], EvaluateOptions(tasks=("quick",), task_data=data))
    assert {score.task for score in found.runs[0].scores} == {"arc_easy", "openbookqa"}
    assert {score.limit for score in found.runs[0].scores} == {200}
    assert set(found.asked[0].left_out) == {"piqa", "winogrande"}


def test_folders_that_are_not_for_results_are_refused(
    checkpoints: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    options = EvaluateOptions(tasks=("arc_easy",), task_data=data)
    with pytest.raises(OutputError, match="is a model and is not written into"):
        evaluate(checkpoints[1], options, out=checkpoints[1])
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds something else than an evaluation"):
        evaluate(checkpoints[1], options, out=tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "eval.json").write_text('{"schema_version": 1}')
    with pytest.raises(DataError, match="not of schema version 2"):
        evaluate(checkpoints[1], options, out=tmp_path / "old")


def test_examples_for_a_task_that_has_none_are_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(CHOICES[0]) + "\n")
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\n"
        "doc_to_target: gold\nnum_fewshot: 0\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    with pytest.raises(OptionError, match="mine is defined without examples"):
        evaluate(checkpoints[1], EvaluateOptions(tasks=("mine",), include_path=tmp_path, fewshot=2))


def test_batch_size_is_a_number_or_auto() -> None:
    option = next(o for part in EVALUATE for o in part.options() if o.name == "batch_size")
    assert option.facts.read is not None
    assert (option.facts.read("auto"), option.facts.read("4")) == (None, 4)
    with pytest.raises(OptionError, match="a whole number, or auto, not 'big'"):
        option.facts.read("big")


def test_agreement_with_nan_does_not_hold() -> None:
    agreement = Agreement(
        model="m", backend="onnx", reference="hf", task="t", requests=1, total=math.nan, worst=0.0, tolerance=1e-3
    )
    assert not agreement.holds


def test_models_of_other_tasks_are_refused_with_the_remedy(text_file: Path, tmp_path: Path) -> None:
    for name in ("bert-sequence-classification", "t5"):
        zoo.build(name).save_pretrained(tmp_path / name / "hf")
        with pytest.raises(UnsupportedModelError, match=r"causal language models only: use lpc\.quality"):
            evaluate(tmp_path / name, EvaluateOptions(text=text_file))

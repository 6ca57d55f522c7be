"""What ``lpc.compress`` does when it is told nothing: obs, compensation before tuning, distillation; and its replay."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import zoo
from peft import PeftModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lpc
from exporters.files import sha256
from exporters.options import OnnxOptions
from lpc.cli.app import app

TEXT = lpc.DataOptions(sequence_length=32)
RUN = lpc.RunOptions(samples=12)
SOLVE = lpc.CompensateOptions(samples=12, guard=False)


@pytest.fixture(scope="module")
def out(tiny_model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output whose projections were solved before tuning. The guard is off: a random model would trip it."""
    tune = lpc.TuneOptions(steps=3, batch_size=2)
    result = lpc.compress(tiny_model_folder, text_file, 0.3, tune=tune, run=RUN, data_options=TEXT, compensate=SOLVE)
    folder = tmp_path_factory.mktemp("default") / "out"
    result.save(folder, export=["hf"])
    return folder


def passes_of(result: lpc.Result) -> list[str]:
    return [record.name for record in result.report.passes if record.name not in ("load", "measure")]


def test_it_scores_compensates_and_distils(tiny_model_folder: Path, text_file: Path) -> None:
    result = lpc.compress(tiny_model_folder, text_file, 0.3, steps=2, run=RUN, data_options=TEXT)
    assert passes_of(result) == ["trace", "attach", "score", "compensate", "tune", "decide", "merge", "shrink"]
    assert result.plan.criterion == "obs"
    assert result.plan.options["schedule"]["cooldown"] == 1
    assert result.plan.options["samples"] == 12
    assert result.plan.options["distill"]["hidden_weight"] > 0
    tuned = next(record.report for record in result.report.passes if record.name == "tune")
    solved = next(record.options for record in result.report.passes if record.name == "compensate")
    assert solved["ridge"] == 1.0
    assert tuned.events == ()
    assert tuned.teacher_share > 0


def test_without_steps_it_compensates_after_scoring_unless_told_not_to(
    tiny_model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    solved = lpc.compress(tiny_model_folder, text_file, 0.3, steps=0, run=RUN, data_options=TEXT)
    assert passes_of(solved) == ["trace", "score", "decide", "detach", "merge", "compensate", "shrink"]
    assert next(r.options for r in solved.report.passes if r.name == "compensate")["ridge"] == 0.01
    plain = lpc.compress(tiny_model_folder, text_file, 0.3, steps=0, run=RUN, data_options=TEXT, compensate=False)
    assert "compensate" not in passes_of(plain)
    int4 = OnnxOptions(precision=("int4",), greedy_prompts=0)
    report = plain.save(tmp_path / "out", export={"onnx": int4})
    assert "onnx int4 weights, row by row on the text" in report.to_json()["parity"]  # by what it was scored on
    assert solved.plan.kept == plain.plan.kept


def test_a_progressive_schedule_is_loraprunes(tiny_model_folder: Path, text_file: Path) -> None:
    tune = lpc.TuneOptions(steps=4, schedule=lpc.Schedule())
    result = lpc.compress(tiny_model_folder, text_file, 0.3, tune=tune, run=RUN, data_options=TEXT)
    assert passes_of(result) == ["trace", "attach", "tune", "decide", "merge", "shrink"]
    assert result.plan.criterion == "loraprune"


def test_what_obs_cannot_rank_is_loraprunes(tiny_model_folder: Path, text_file: Path) -> None:
    model = zoo.build("mixtral")
    rows = torch.randint(0, 90, (24, 12), generator=torch.Generator().manual_seed(0)).tolist()
    result = lpc.compress(model, rows, 0.1, steps=2, data_options=lpc.DataOptions(sequence_length=12))
    assert result.plan.criterion == "loraprune"
    assert "compensate" not in passes_of(result)
    deep = lpc.TraceOptions(depth="layers")
    result = lpc.compress(tiny_model_folder, text_file, 0.3, steps=2, run=RUN, data_options=TEXT, trace=deep)
    assert result.plan.criterion == "loraprune"


def test_the_output_replays_bit_for_bit(out: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    assert lpc.Plan.load(out / "plan.json").compensated_first
    again = lpc.apply(out / "plan.json", tiny_model_folder, adapter=out / "adapter")
    again.save(tmp_path / "again", export=["hf"])
    assert sha256(tmp_path / "again/hf/model.safetensors") == sha256(out / "hf/model.safetensors")
    assert again.report.to_json()["compensated"] is True


def test_the_command_takes_the_weights_from_where_it_is_told(
    out: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(out / "plan.json", tmp_path / "plan.json")
    words = ["apply", str(tmp_path / "plan.json"), str(tiny_model_folder), "--adapter", str(out / "adapter")]
    words += ["--compensation", str(out / "compensation.safetensors"), "--no-onnx", "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert sha256(tmp_path / "again/hf/model.safetensors") == sha256(out / "hf/model.safetensors")


def test_an_adapter_without_its_weights_is_refused(out: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copy(out / "plan.json", tmp_path / "plan.json")
    with pytest.raises(lpc.PlanError, match="trained on compensated weights, and they are not here"):
        lpc.apply(tmp_path / "plan.json", tiny_model_folder, adapter=out / "adapter")
    with pytest.raises(lpc.MissingFileError, match=r"no compensated weights .*nowhere"):
        lpc.apply(tmp_path / "plan.json", tiny_model_folder, compensation=tmp_path / "nowhere")


def test_an_adapter_of_another_plan_is_refused(out: Path, tiny_model_folder: Path) -> None:
    plan = lpc.plan(tiny_model_folder, out / "scores.safetensors", lpc.Target(ratio=0.2))
    with pytest.raises(lpc.PlanError, match="apply that plan, or leave the adapter out"):
        lpc.apply(plan, tiny_model_folder, adapter=out / "adapter")
    assert lpc.apply(plan, tiny_model_folder).report.achieved_ratio >= 0.2


def test_weights_of_another_model_are_refused(out: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    unnamed = dataclasses.replace(lpc.Plan.load(out), artifacts={})
    for tensors, message in (
        ({"model.layers.0.nothing.weight": torch.ones(2)}, "has no model.layers.0.nothing.weight"),
        ({"model.layers.0.self_attn.o_proj.weight": torch.ones(3, 3)}, r"o_proj.weight is \[3, 3\], here"),
    ):
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(lpc.PlanError, match=message):
            lpc.apply(unnamed, tiny_model_folder, compensation=tmp_path / "other.safetensors")


def test_the_plan_names_all_that_the_run_left_and_apply_takes_nothing_else(
    out: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    plan = lpc.Plan.load(out)
    files = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "compensation.safetensors")
    assert set(plan.artifacts) == {*files, "scores.safetensors"}
    assert all(sha256(out / name) == value for name, value in plan.artifacts.items())
    shutil.copytree(out / "adapter", tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    save_file({name: value + 1e-3 for name, value in weights.items()}, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(lpc.PlanError, match=r"not what the plan was made with: its sha256 is \w{12}…, the plan names"):
        lpc.apply(out / "plan.json", tiny_model_folder, adapter=tmp_path / "adapter")
    with pytest.raises(lpc.PlanError, match=r"adapter_model.safetensors is not what the plan was made with"):
        live = PeftModel.from_pretrained(lpc.load(tiny_model_folder), tmp_path / "adapter")
        lpc.apply(out / "plan.json", tiny_model_folder, adapter=live)
    solved = {name: value + 1e-3 for name, value in load_file(out / "compensation.safetensors").items()}
    save_file(solved, tmp_path / "compensation.safetensors")
    with pytest.raises(lpc.PlanError, match=r"compensation.safetensors is not what the plan was made with"):
        lpc.apply(out / "plan.json", tiny_model_folder, compensation=tmp_path / "compensation.safetensors")


def test_the_adapter_of_the_plan_may_be_worn_already(out: Path, tiny_model_folder: Path) -> None:
    live = PeftModel.from_pretrained(lpc.load(tiny_model_folder), out / "adapter")
    again = lpc.apply(out / "plan.json", tiny_model_folder, adapter=live)
    saved = load_file(out / "hf/model.safetensors")
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in saved.items())


def test_an_adapter_for_a_run_that_left_none_is_refused(
    out: Path, tiny_model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    plain = lpc.compress(tiny_model_folder, text_file, 0.3, steps=0, run=RUN, data_options=TEXT, compensate=False)
    plain.save(tmp_path / "plain", export=["hf"])
    shutil.copytree(out / "adapter", tmp_path / "adapter")
    with pytest.raises(lpc.PlanError, match=r"the plan's run left no adapter/adapter_config.json"):
        lpc.apply(tmp_path / "plain", tiny_model_folder, adapter=tmp_path / "adapter")


def test_the_measure_with_the_units_gone_is_that_of_the_source(tiny_model_folder: Path, text_file: Path) -> None:
    """Neither compensated nor tuned."""
    tune = lpc.TuneOptions(steps=3, batch_size=2)
    tuned = lpc.compress(tiny_model_folder, text_file, 0.3, tune=tune, run=RUN, data_options=TEXT, compensate=SOLVE)
    plain = lpc.compress(tiny_model_folder, text_file, 0.3, steps=0, run=RUN, data_options=TEXT, compensate=False)
    assert tuned.plan.kept == plain.plan.kept
    measures = [result.report.heldout.measures["perplexity"] for result in (tuned, plain)]
    assert measures[0].removed == pytest.approx(measures[1].pruned, rel=1e-4)
    assert measures[0].pruned != pytest.approx(measures[1].pruned, rel=1e-4)


def test_the_command_line_says_when_units_go(tiny_model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    words = ["compress", str(tiny_model_folder), "--data", str(text_file), "--ratio", "0.3", "--steps", "2"]
    words += ["--sequence-length", "32", "--no-onnx", "--json"]
    for more, criterion, events in (
        ([], "obs", False),
        (["--progressive"], "loraprune", True),
        (["--criterion", "taylor", "--one-shot", "--no-compensate", "--distill", "0"], "taylor", False),
    ):
        folder = tmp_path / criterion
        done = CliRunner().invoke(app, [*words, *more, "--out", str(folder)], catch_exceptions=False)
        assert done.exit_code == 0
        plan = lpc.Plan.load(folder / "plan.json")
        assert plan.criterion == criterion
        assert (plan.options["schedule"]["cooldown"] < 1) == events
        assert ("distill" in plan.options) == (criterion != "taylor")

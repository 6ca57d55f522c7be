"""Plans as data: made from saved scores, applied, compared; and the layouts through the whole path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import build_model
from typer.testing import CliRunner

import lpc
from lpc.cli.app import app
from passes.criteria import SavedScores
from passes.errors import MissingFileError, OptionError, PlanError
from passes.graph import Plan


@pytest.fixture(scope="module")
def run(tiny_model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A uniform run whose scores and adapter the plans start from."""
    out = tmp_path_factory.mktemp("run") / "out"
    result = lpc.compress(tiny_model_folder, text_file, 0.3, steps=4, data_options=lpc.DataOptions(sequence_length=32))
    result.save(out, export=["hf"])
    return out


def test_saved_scores_are_those_of_the_run_and_read_back(run: Path) -> None:
    saved = SavedScores.load(run / "scores.safetensors")
    plan = Plan.load(run / "plan.json")
    assert (saved.source, saved.criterion) == (plan.source, "obs")
    for name, units in plan.kept.items():
        best = saved.scores[name].argsort(descending=True)[: len(units)]
        assert sorted(best.tolist()) == list(units)


def test_the_same_target_from_the_scores_gives_the_same_decision(run: Path, tiny_model_folder: Path) -> None:
    again = lpc.plan(tiny_model_folder, run / "scores.safetensors", lpc.Target(ratio=0.3))
    assert lpc.diff(again, Plan.load(run / "plan.json")).is_same_decision


def test_a_per_layer_plan_applies_without_data_and_loads_everywhere(
    run: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    target = lpc.Target(budget=lpc.Budget(parameters=0.75, kv_cache_bytes=0.8), layout="per-layer")
    plan = lpc.plan(tiny_model_folder, run / "scores.safetensors", target)
    counts = {name: len(units) for name, units in plan.kept.items()}
    assert len({counts["layers.0.mlp_channels"], counts["layers.1.mlp_channels"]}) == 2
    result = lpc.apply(plan, tiny_model_folder, adapter=run / "adapter")
    report = result.save(tmp_path / "out", export=["hf"])
    assert report.pruned.parameters <= 0.75 * report.dense.parameters
    assert report.pruned.kv_cache_bytes <= 0.8 * report.dense.kv_cache_bytes
    loaded = lpc.load(tmp_path / "out" / "hf")
    ids = torch.arange(9)[None]
    assert torch.equal(loaded(ids).logits, result.model(ids).logits)
    manifest = json.loads((tmp_path / "out" / "lpc.json").read_text())
    assert manifest["layout"] == "per-layer"
    assert manifest["budget"] == {"parameters": 0.75, "kv_cache_bytes": 0.8}


def test_scores_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    build_model("llama", seed=3).save_pretrained(tmp_path / "other")
    with pytest.raises(PlanError, match="load the model that they were measured on"):
        lpc.plan(tmp_path / "other", run / "scores.safetensors", lpc.Target(ratio=0.3))


def test_a_plan_for_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    build_model("llama", seed=3).save_pretrained(tmp_path / "other")
    with pytest.raises(PlanError, match="load the model that the plan was made for"):
        lpc.apply(run / "plan.json", tmp_path / "other")


def test_files_that_hold_no_scores_are_named(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no scores file .*nowhere"):
        SavedScores.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(PlanError, match="holds no scores that lpc wrote"):
        SavedScores.load(tiny_model_folder / "model.safetensors")


def test_scores_that_miss_a_dimension_are_refused(run: Path, tiny_model_folder: Path) -> None:
    saved = SavedScores.load(run / "scores.safetensors")
    fewer = {name: score for name, score in saved.scores.items() if name != "layers.1.kv_groups"}
    with pytest.raises(PlanError, match=r"disagree on the dimension layers\.1\.kv_groups"):
        lpc.plan(tiny_model_folder, SavedScores(saved.source, "loraprune", fewer), lpc.Target(ratio=0.3))


def test_diff_counts_what_both_plans_keep() -> None:
    values = {"source": "a", "family": "llama", "source_parameters": 10, "budget": {"parameters": 0.5}}
    first = Plan(**values, target_parameters=5, kept={"d": (0, 1, 2), "e": (4,)})
    second = Plan(**{**values, "layout": "per-layer"}, target_parameters=6, kept={"d": (1, 2, 3, 5), "e": (4,)})
    found = lpc.diff(first, second)
    d, e = found.dimensions
    assert (d.first, d.second, d.both, d.overlap) == (3, 4, 2, 2 / 5)
    assert e.overlap == 1
    assert (found.parameters, found.is_same_decision) == ((5, 6), False)
    assert found.fields == {"layout": ("uniform", "per-layer")}
    with pytest.raises(PlanError, match="only one of them has the dimension e"):
        lpc.diff(first, Plan(**values, target_parameters=5, kept={"d": (0,)}))


def _plan(model: Path, run: Path) -> list[str]:
    return ["plan", str(model), "--importance", str(run / "scores.safetensors")]


def test_the_commands_make_compare_and_apply_plans(run: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    file = tmp_path / "plan.json"
    made = runner.invoke(
        app,
        [
            *_plan(tiny_model_folder, run),
            *["--budget", "macs=0.7", "--layout", "per-layer", "--protect", "layers.0", "--json"],
            "--out",
            str(file),
        ],
        catch_exceptions=False,
    )
    assert made.exit_code == 0
    assert json.loads(made.stdout)["budget"] == {"macs": 0.7}
    plan = Plan.load(file)
    assert len(plan.kept["layers.0.mlp_channels"]) == 64
    assert plan.options["protect"] == ["layers.0"]
    compared = runner.invoke(app, ["diff", str(run / "plan.json"), str(file), "--json"], catch_exceptions=False)
    assert not json.loads(compared.stdout)["same_decision"]
    applied = runner.invoke(
        app,
        [
            *["apply", "--no-onnx", "--json"],
            str(file),
            str(tiny_model_folder),
            "--adapter",
            str(run / "adapter"),
            "--out",
            str(tmp_path / "out"),
        ],
        catch_exceptions=False,
    )
    assert applied.exit_code == 0
    report = json.loads(applied.stdout)
    assert report["cost"]["pruned"]["macs"] <= 0.7 * report["cost"]["dense"]["macs"]


def test_an_existing_plan_file_is_not_overwritten(run: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("mine")
    with pytest.raises(lpc.OutputExistsError, match="--force"):
        CliRunner().invoke(
            app,
            [*_plan(tiny_model_folder, run), "--ratio", "0.3", "--out", str(file)],
            catch_exceptions=False,
        )
    assert file.read_text() == "mine"


def test_target_and_its_short_forms_exclude_each_other(tiny_model_folder: Path, text_file: Path) -> None:
    with pytest.raises(OptionError, match="either target or ratio"):
        lpc.compress(tiny_model_folder, text_file, 0.3, target=lpc.Target(ratio=0.3))
    assert lpc.Target() == lpc.Target(ratio=0.2)


@pytest.mark.parametrize(
    ("trace", "target"),
    [
        (lpc.TraceOptions(hidden=True), lpc.Target(ratio=0.3)),
        pytest.param(
            lpc.TraceOptions(depth="layers"),
            lpc.Target(ratio=0.2, freeze=("kv_groups", "mlp_channels")),
            marks=pytest.mark.matrix,
        ),
        (lpc.TraceOptions(depth="blocks"), lpc.Target(ratio=0.1, layout="per-layer", freeze=("kv_groups",))),
    ],
)
def test_depth_and_hidden_size_go_the_whole_way_and_replay(
    tiny_model_folder: Path, text_file: Path, tmp_path: Path, trace: lpc.TraceOptions, target: lpc.Target
) -> None:
    tune = lpc.TuneOptions(steps=3, depth_scores="skipped" if trace.depth else "summed")
    text = lpc.DataOptions(sequence_length=32)
    result = lpc.compress(tiny_model_folder, text_file, target=target, tune=tune, data_options=text, trace=trace)
    report = result.save(tmp_path / "out", export=["hf"])
    assert report.pruned.parameters == sum(p.numel() for p in result.model.parameters())
    assert report.achieved_ratio >= target.ratio
    again = lpc.apply(tmp_path / "out" / "plan.json", tiny_model_folder, adapter=tmp_path / "out" / "adapter")
    for name, parameter in result.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name))

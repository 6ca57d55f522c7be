"""Compensation, distillation and recovery through ``lpc.compress`` and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import build_model
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import lpc
from lpc.cli.app import app
from lpc.data import RowFormat, open_rows
from lpc.material import set_aside
from passes.models import Task

LORA = lpc.LoraOptions(rank=4)
KL = lpc.DistillOptions(weight=0.3, temperature=2.0, hidden_weight=0.0)
TUNE = lpc.TuneOptions(steps=4, batch_size=2, schedule=lpc.Schedule(every=1), distill=KL)
TEXT = lpc.DataOptions(sequence_length=32)


@pytest.fixture(scope="module")
def result(tiny_model_folder: Path, text_file: Path) -> lpc.Result:
    return lpc.compress(
        tiny_model_folder,
        data=text_file,
        ratio=0.3,
        lora=LORA,
        tune=TUNE,
        data_options=TEXT,
        compensate=lpc.CompensateOptions(samples=16, guard=False),
        recover=lpc.RecoverOptions(steps=4, every=2, batch_size=2, lora=LORA, distill=KL),
    )


def test_the_passes_run_in_order_and_the_best_state_is_the_result(result: lpc.Result) -> None:
    names = [record.name for record in result.report.passes]
    assert names == [
        "load",
        "trace",
        "measure",
        "attach",
        "tune",
        "decide",
        "measure",
        "merge",
        "compensate",
        "shrink",
        "recover",
        "measure",
    ]
    records = {record.name: record for record in result.report.passes}
    assert 0 < records["tune"].report.teacher_share < 1
    assert 0 < records["recover"].report.teacher_share < 1
    assert records["recover"].report.kept
    assert records["recover"].report.after < records["recover"].report.before


def test_the_output_says_what_was_done_and_apply_that_it_is_not_repeated(
    result: lpc.Result, tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result.save(tmp_path / "out", export=["hf"])
    manifest = json.loads((tmp_path / "out" / "lpc.json").read_text())
    assert (manifest["compensated"], manifest["recovered"]) == (True, True)
    assert (tmp_path / "out" / "recovery" / "adapter_model.safetensors").is_file()
    plan = lpc.Plan.load(tmp_path / "out" / "plan.json")
    assert plan.compensated
    assert plan.options["distill"]["weight"] == 0.3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, result.model(input_ids=ids).logits)
    again = lpc.apply(plan, tiny_model_folder, adapter=tmp_path / "out" / "adapter")
    assert "replayed without compensation.safetensors, it is not" in caplog.text
    assert again.report.to_json()["compensated"] is False
    assert sum(p.numel() for p in again.model.parameters()) == plan.target_parameters


def test_the_command_line_takes_them(tiny_model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--ratio", "0.3", "--steps", "3", "--batch-size", "2", "--sequence-length", "32", "--no-onnx", "--json"]
    after = ["--compensate", "--distill", "0.5", "--recover-steps", "2"]
    done = CliRunner().invoke(
        app, ["compress", str(tiny_model_folder), "--data", str(text_file), *asked, *after, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    passes = {each["name"]: each for each in json.loads((out / "lpc.json").read_text())["passes"]}
    assert passes["tune"]["options"]["distill"]["weight"] == 0.5
    assert passes["recover"]["options"]["steps"] == 2
    assert passes["recover"]["options"]["distill"]["weight"] == 0.5
    assert "compensate" in passes


class Numbers(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([index])}


def test_the_end_of_a_text_is_set_aside_and_nothing_is_in_both_parts() -> None:
    train, aside = set_aside(Numbers(), fraction=0.1)
    first, second = ([int(part[i]["input_ids"]) for i in range(len(part))] for part in (train, aside))
    assert (first, second) == (list(range(90)), list(range(90, 100)))
    with pytest.raises(lpc.DataError, match="give more text"):
        set_aside(torch.utils.data.Subset(Numbers(), [0]))


def test_of_rows_a_random_choice_is_set_aside() -> None:
    model = build_model("llama")
    rows = open_rows(
        [{"input_ids": [i, i], "labels": [i, i]} for i in range(40)], RowFormat.of(type(model), model.config)
    )
    assert rows.format.task is Task.CAUSAL_LM
    train, aside = set_aside(rows, fraction=0.25)
    first, second = ({int(part[i]["input_ids"][0]) for i in range(len(part))} for part in (train, aside))
    assert first | second == set(range(40))
    assert not first & second
    assert second != set(range(30, 40))

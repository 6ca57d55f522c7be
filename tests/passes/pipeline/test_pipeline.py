"""All passes in a row, and the same result again from source, plan and adapter alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from workbench import (
    EVERY_STEP,
    PROJECTIONS,
    Blocks,
    build_model,
    dense_twin,
    randomise_adapter,
    relative,
    silence_by_hand,
    traced,
)

from passes.decide import DecidePass, ReplayPass
from passes.errors import LpcError, PlanError
from passes.graph import Plan
from passes.models import count_parameters
from passes.models.adapter import lora_layers
from passes.options import Target, TuneOptions
from passes.pipeline import Pipeline, Program
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, MergePass, TunePass

TARGET = Target(ratio=0.35)
IDS = Blocks(3, seed=9).ids


def compress(model: PreTrainedModel | PeftModel, **options: object) -> Program:
    values = {"steps": 4, "batch_size": 4, "schedule": EVERY_STEP, **options}
    passes = [
        TracePass(),
        AttachPass(),
        TunePass(TARGET, Blocks(), TuneOptions(**values)),
        DecidePass(TARGET, "loraprune"),
        MergePass(),
        ShrinkPass(),
    ]
    return Pipeline(passes)(Program.start(model)).program


def replay(model: PreTrainedModel | PeftModel, plan: Plan) -> Program:
    return Pipeline([TracePass(), ReplayPass(plan), MergePass(), ShrinkPass()])(Program.start(model)).program


@dataclass(frozen=True)
class Finished:
    """A compressed program, and its plan and adapter as files."""

    program: Program
    folder: Path

    @property
    def plan(self) -> Plan:
        return Plan.load(self.folder / "plan.json")

    def adapted(self, model: PreTrainedModel) -> PeftModel:
        return PeftModel.from_pretrained(model, self.folder).eval()


def finish(model: PreTrainedModel, folder: Path) -> Finished:
    program = compress(model)
    program.adapter.write(folder)
    (folder / "plan.json").write_text(program.plan.to_json(), encoding="utf-8")
    return Finished(program, folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(build_model("llama"), tmp_path_factory.mktemp("finished"))


def same_bits(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][n]) for n, v in states[0].items())


def test_every_pass_left_its_record(finished: Finished) -> None:
    history = finished.program.history
    assert [record.name for record in history] == ["trace", "attach", "tune", "decide", "merge", "shrink"]
    assert all(parity.holds for record in history for parity in record.parity)
    assert [len(record.parity) for record in history] == [0, 1, 0, 0, 1, 1]


@torch.no_grad()
def test_the_result_is_the_source_with_the_adapter_added_and_the_units_silenced(finished: Finished) -> None:
    model = finished.adapted(build_model("llama"))
    expected = silence_by_hand(dense_twin(model, build_model("llama")), dict(finished.plan.kept))
    assert relative(finished.program.model(IDS).logits, expected(IDS).logits) < 1e-5
    dense = count_parameters(build_model("llama"))
    assert count_parameters(finished.program.model) == finished.plan.target_parameters <= 0.65 * dense


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("qwen2", torch.float32), ("qwen3", torch.bfloat16)]
)
def test_source_plan_and_adapter_give_the_same_tensors_again(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    done = finish(build_model(family).to(dtype), tmp_path)
    again = replay(done.adapted(build_model(family).to(dtype)), done.plan)
    assert same_bits(again.model, done.program.model)
    assert again.model.config.to_dict() == done.program.model.config.to_dict()


def test_compressing_twice_gives_the_same_plan_and_tensors(finished: Finished) -> None:
    again = compress(build_model("llama"))
    assert again.plan == finished.program.plan
    assert same_bits(again.model, finished.program.model)


def test_without_the_adapter_the_tensors_are_others(finished: Finished) -> None:
    assert not same_bits(replay(build_model("llama"), finished.plan).model, finished.program.model)


def test_a_plan_is_refused_for_a_source_with_one_other_weight(finished: Finished) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(PlanError, match="load the model that the plan was made for") as caught:
        replay(model, finished.plan)
    assert caught.value.__notes__ == ["failing pass: replay; already run: trace"]


def brought(rank: int = 3) -> PeftModel:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=list(PROJECTIONS), r=rank, lora_alpha=5, lora_dropout=0.0)
    model = get_peft_model(build_model("llama"), config)
    randomise_adapter(model)
    return model


def test_a_brought_adapter_is_the_start_of_the_training() -> None:
    model = brought()
    layer = lora_layers(model)["model.layers.0.mlp.up_proj"]
    start = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    program = Pipeline(
        [AttachPass(), TunePass(TARGET, Blocks(), TuneOptions(steps=1, batch_size=4, learning_rate=1e-6))]
    )(traced(model)).program
    assert program.model is model
    end = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    for before, after in zip(start, end, strict=True):
        # One step of AdamW moves a weight by at most the learning rate (and its decay).
        assert 0 < float((after - before).abs().max()) < 3e-6


@torch.no_grad()
def test_a_brought_adapter_ends_in_the_weights() -> None:
    program = compress(brought(), steps=1, learning_rate=1e-7)
    expected = silence_by_hand(dense_twin(brought(), build_model("llama")), dict(program.plan.kept))
    assert relative(program.model(IDS).logits, expected(IDS).logits) < 1e-4
    assert program.adapter.config.r == 3


def test_an_error_on_the_way_names_the_pass_and_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecidePass, "call", lambda self, program, run: 1 / 0)
    with pytest.raises(LpcError, match="'decide' failed: ZeroDivisionError") as caught:
        compress(build_model("llama"), steps=1)
    assert caught.value.__notes__ == ["failing pass: decide; already run: trace, attach, tune"]

"""Recovery: real training runs on a compact model, of which the best state stays and never a worse one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from peft import PeftModel, PeftModelForCausalLM
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedModel
from workbench import Blocks, build_model, planned, random_kept, traced

from passes.errors import DataError, OptionError, PreconditionError
from passes.models import heldout_loss
from passes.options import DistillOptions, LoraOptions, RecoverOptions
from passes.pipeline import Program, RunContext
from passes.shrink import ShrinkPass
from passes.tuning import RecoverPass
from passes.tuning.recover import RecoverCallback, RecoverReport

LEARNABLE, HELDOUT = Blocks(16), Blocks(8)
LEARNABLE.ids = torch.arange(16).unsqueeze(1) + torch.arange(12)  # rows that count on
HELDOUT.ids = LEARNABLE.ids[3:11]

OPTIONS = RecoverOptions(steps=12, every=4, patience=2, batch_size=8, learning_rate=5e-3, lora=LoraOptions(rank=4))


def compact(dtype: torch.dtype = torch.float32) -> Program:
    program = traced(build_model("llama").to(dtype))
    return ShrinkPass()(planned(program, random_kept(program.traced, 2, 24, seed=3))).program


def recovered(
    program: Program, options: RecoverOptions = OPTIONS, **arguments: object
) -> tuple[Program, RecoverReport]:
    done = RecoverPass(LEARNABLE, HELDOUT, options, **arguments)(program)
    assert isinstance(done.report, RecoverReport)
    return done.program, done.report


def loss_by_hand(model: PreTrainedModel) -> float:
    with torch.no_grad():
        logits = model(input_ids=HELDOUT.ids).logits[:, :-1]
    return float(cross_entropy(logits.flatten(0, 1), HELDOUT.ids[:, 1:].flatten()))


def test_the_heldout_loss_falls_and_the_result_is_a_plain_compact_model() -> None:
    program = compact()
    before, shapes = loss_by_hand(program.model), [p.shape for p in program.model.parameters()]
    done, report = recovered(program)
    assert report.before == pytest.approx(before, rel=1e-5)
    assert report.after == pytest.approx(loss_by_hand(done.model), rel=1e-5)
    assert report.after < 0.9 * report.before
    assert report.kept
    assert type(done.model) is LlamaForCausalLM
    assert [p.shape for p in done.model.parameters()] == shapes
    assert not done.model.training
    assert not any(p.requires_grad for p in done.model.parameters())
    assert [step for step, _ in report.evaluations] == [0, 4, 8, 12]
    assert report.best_step == min(report.evaluations, key=lambda each: each[1])[0]


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """While training the held-out losses are these; afterwards the true ones, which are far above."""
    script: Iterator[float] = iter(losses)
    true = RecoverCallback.look

    def look(self: RecoverCallback, step: int) -> bool:
        self._evaluate = lambda _: next(script)
        return true(self, step)

    monkeypatch.setattr(RecoverCallback, "look", look)


def test_the_best_state_is_merged_and_training_stops_when_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a constant rate, the state after 4 of many steps is that of a run of 4."""
    constant = {"lr_scheduler": "constant", "patience": 2, "every": 2, "learning_rate": 1e-3, "batch_size": 8}
    straight, _ = recovered(compact(), RecoverOptions(steps=4, **constant))
    scripted(monkeypatch, [99.0, 98.0, 97.0, 98.0, 97.5])
    done, report = recovered(compact(), RecoverOptions(steps=30, **constant))
    assert [step for step, _ in report.evaluations] == [0, 2, 4, 6, 8]
    assert report.best_step == 4
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in done.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_is_no_better_is_dropped_and_nothing_has_changed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = compact(dtype)
    before = copy.deepcopy(program.model)
    scripted(monkeypatch, [1.0, 1.0, 2.0])
    done, report = recovered(program)
    assert [step for step, _ in report.evaluations] == [0, 4, 8]
    assert not report.kept
    assert report.after == report.before
    assert done.recovery is None
    assert not isinstance(done.model, PeftModel)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in done.model.state_dict().items())
    assert not done.history[-1].modified
    assert done.history[-1].parity[0].value == 0


def test_rounding_in_the_merge_that_costs_too_much_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter looked better; merged, the model is not."""
    program = compact()
    before = copy.deepcopy(program.model)
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2])
    done, report = recovered(program)
    assert (report.best_step, report.kept) == (12, False)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in done.model.state_dict().items())


def test_the_adapter_of_the_recovery_gives_the_result_again(tmp_path: Path) -> None:
    program = compact()
    before = copy.deepcopy(program.model)
    done, _ = recovered(program)
    assert done.recovery is not None
    done.recovery.adapter.write(tmp_path)
    again = PeftModelForCausalLM.from_pretrained(before, tmp_path).merge_and_unload()
    assert all(torch.equal(value, done.model.state_dict()[name]) for name, value in again.state_dict().items())


def test_random_states_and_the_configuration_are_left_alone() -> None:
    program = compact()
    configuration = program.model.config.to_dict()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    done, _ = recovered(program)
    assert torch.equal(torch.rand(2), expected)
    assert done.model.config.to_dict() == configuration


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = (recovered(compact())[0].model.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_dense_model_in_memory_may_be_the_teacher() -> None:
    dense = build_model("llama").train()
    before = copy.deepcopy(dense.state_dict())
    distill = DistillOptions(weight=1.0, temperature=1.0)
    options = RecoverOptions(steps=6, every=3, batch_size=8, distill=distill, lora=LoraOptions(rank=4))
    _, report = recovered(compact(), options, teacher=lambda: dense)
    assert report.losses[-1][1] < report.losses[0][1]
    assert 0 < report.teacher_share < 1
    assert dense.training
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_distilling_without_a_teacher_is_refused() -> None:
    with pytest.raises(OptionError, match="give a teacher"):
        RecoverPass(LEARNABLE, HELDOUT, RecoverOptions(distill=DistillOptions()))


def test_a_compact_model_is_needed() -> None:
    program = traced(build_model("llama"))
    under_masks = planned(program, random_kept(program.traced, 2, 24, seed=3))
    with pytest.raises(PreconditionError, match="run ShrinkPass first"):
        recovered(under_masks)


@pytest.mark.parametrize("name", ["llama", "bert-token-classification", "bert-sequence-classification", "t5"])
def test_the_heldout_loss_does_not_depend_on_the_batches(name: str) -> None:
    """It is the mean over labels, however many a row has."""
    model = zoo.build(name)
    inputs = zoo.inputs(model, zoo.ZOO[name])
    inputs |= zoo.labels(zoo.ZOO[name], inputs)
    rows = [{key: value[row] for key, value in inputs.items()} for row in range(3)]
    with torch.no_grad():
        expected = float(model(**inputs).loss)
    for batch_size in (1, 2, 3):
        assert heldout_loss(model, rows, batch_size) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_heldout_data_are_needed() -> None:
    with pytest.raises(DataError, match="no held-out data"):
        heldout_loss(build_model("llama"), [], 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"every": 0}, {"patience": 0}, {"learning_rate": -1.0}, {"max_grad_norm": -1.0}], ids=str
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        RecoverOptions(**wrong)


class Stop:
    """A progress that notes the steps of training, and interrupts after one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.steps = at, list[int]()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.steps.append(done)
        if done == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("at", "next_step"), [(1, 1), (5, 5), (8, 7), (12, 11)])
def test_a_recovery_that_is_stopped_goes_on_from_its_last_whole_checkpoint_and_ends_with_the_same_bits(
    tmp_path: Path, at: int, next_step: int
) -> None:
    """Checkpoints are taken at even steps, after the look: step 8 looks, is stopped before it is saved, looks again."""
    straight, expected = recovered(compact())
    run = RunContext(checkpoints=tmp_path, progress=Stop(at))
    with pytest.raises(KeyboardInterrupt):
        RecoverPass(LEARNABLE, HELDOUT, OPTIONS, save_every=2)(compact(), run)
    again = Stop()
    done = RecoverPass(LEARNABLE, HELDOUT, OPTIONS, save_every=2)(compact(), replace(run, progress=again))
    assert again.steps == list(range(next_step, 13))
    assert done.report == expected
    assert all(
        torch.equal(p, q) for p, q in zip(done.program.model.parameters(), straight.model.parameters(), strict=True)
    )


def test_the_best_state_of_before_a_stop_is_the_one_that_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = {"lr_scheduler": "constant", "patience": 9, "every": 2, "learning_rate": 1e-3, "batch_size": 8}
    straight, _ = recovered(compact(), RecoverOptions(steps=4, **constant))
    options, run = RecoverOptions(steps=10, **constant), RunContext(checkpoints=tmp_path, progress=Stop(9))
    scripted(monkeypatch, [99.0, 98.0, 97.0, 98.0, 97.5])
    with pytest.raises(KeyboardInterrupt):
        RecoverPass(LEARNABLE, HELDOUT, options, save_every=8)(compact(), run)
    monkeypatch.undo()
    scripted(monkeypatch, [98.5])
    done = RecoverPass(LEARNABLE, HELDOUT, options, save_every=8)(compact(), RunContext(checkpoints=tmp_path))
    assert isinstance(done.report, RecoverReport)
    assert (done.report.best_step, len(done.report.evaluations)) == (4, 6)
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in done.program.model.state_dict().items())


def test_a_recovery_whose_patience_had_ended_trains_no_step_more(tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=1.0, every=1)
    first, again = Stop(), Stop()
    one, other = (
        RecoverPass(LEARNABLE, HELDOUT, options, save_every=1)(
            compact(), RunContext(checkpoints=tmp_path, progress=progress)
        )
        for progress in (first, again)
    )
    assert (len(first.steps), again.steps) == (2, [])
    assert one.report == other.report


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    run = RunContext(checkpoints=tmp_path)
    RecoverPass(LEARNABLE, HELDOUT, OPTIONS, save_every=6)(compact(), run)
    with pytest.raises(OptionError, match="checkpoint-12 is of a recovery with other options"):
        RecoverPass(LEARNABLE, HELDOUT, replace(OPTIONS, learning_rate=1e-3), save_every=6)(compact(), run)

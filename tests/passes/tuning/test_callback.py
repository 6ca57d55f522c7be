"""The callback, driven by hand and by a Trainer that a user sets up."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from workbench import EVERY_STEP, Blocks, adapted, backward, build_model, scores_of, solver_for, uniform

from passes.budget import best_units
from passes.criteria import LoRAPrune
from passes.errors import MissingFileError, ModelError, OptionError
from passes.graph import PruningGraph
from passes.options import ImportanceOptions, Schedule
from passes.pipeline import Program
from passes.trace import trace
from passes.tuning import callback as callback_module
from passes.tuning.callback import Event, PruningCallback, PruningPolicy

HALF = solver_for(trace(build_model("llama").config), uniform(2, 32))


class Told:
    """A criterion whose scores the test sets."""

    def __init__(self, graph: PruningGraph) -> None:
        self.scores = {d.name: torch.arange(d.size, dtype=torch.float32) for d in graph.dimensions}
        self.begun = self.ended = self.observed = 0
        self.watching, self.finite = False, True

    def begin(self, model: object) -> None:
        self.begun += 1
        self.watching = True

    def observe(self, model: object, loss_scale: float = 1.0) -> bool:
        self.scale = loss_scale
        self.observed += 1
        return self.finite

    def end(self, model: object) -> None:
        self.ended += 1
        self.watching = False

    def reverse(self) -> None:
        self.scores = {name: score.flip(0) for name, score in self.scores.items()}


@pytest.fixture(scope="module")
def graph() -> PruningGraph:
    return trace(build_model("llama").config)


def arguments(folder: Path, **changes: object) -> TrainingArguments:
    values = {"max_grad_norm": 0.0, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    return TrainingArguments(output_dir=str(folder), **{**values, **changes})


class Driven:
    """A callback over steps that the test takes one by one."""

    def __init__(self, folder: Path, policy: PruningPolicy, steps: int, program: Program | None = None) -> None:
        self.program = program or adapted(build_model("llama"))
        self.criterion = Told(self.program.traced)
        self.callback = PruningCallback(self.program.model, self.program.traced, self.criterion, policy)
        self.args, self.control = arguments(folder), TrainerControl()
        self.state = TrainerState(max_steps=steps)
        self.callback.on_train_begin(self.args, self.state, self.control)

    def step(self) -> dict[str, tuple[int, ...]]:
        """One optimizer step; the units that are on after it."""
        self.state.global_step += 1
        self.callback.on_step_end(self.args, self.state, self.control)
        return {name: tuple(m.nonzero().flatten().tolist()) for name, m in self.callback.state.masks.items()}


@pytest.mark.parametrize("counts", [(1, 1), (2, 8), (4, 64)])
def test_the_highest_scores_are_selected(graph: PruningGraph, counts: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {d.name: torch.rand(d.size, generator=generator) for d in graph.dimensions}
    masks = best_units(graph, scores, graph.uniform(uniform(*counts)))
    for dimension in graph.dimensions:
        count = counts[0] if dimension.name.endswith("kv_groups") else counts[1]
        ranked = sorted(range(dimension.size), key=lambda unit: -scores[dimension.name][unit])
        assert masks[dimension.name].nonzero().flatten().tolist() == sorted(ranked[:count])


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_ties_keep_the_lower_units(graph: PruningGraph, value: float) -> None:
    scores = {d.name: torch.full((d.size,), value) for d in graph.dimensions}
    for mask in best_units(graph, scores, graph.uniform(uniform(3, 24))).values():
        assert mask[: int(mask.sum())].all()


def test_scores_of_zero_never_bring_a_masked_unit_back(graph: PruningGraph) -> None:
    scores = {d.name: torch.zeros(d.size) for d in graph.dimensions}
    among = {d.name: torch.arange(d.size) >= d.size // 2 for d in graph.dimensions}
    for name, mask in best_units(graph, scores, graph.uniform(uniform(1, 8)), among=among).items():
        assert not (mask & ~among[name]).any()


@pytest.mark.parametrize("revival", [True, False])
def test_units_come_back_only_when_revival_is_on(tmp_path: Path, revival: bool) -> None:
    policy = PruningPolicy(solver=HALF, schedule=EVERY_STEP, revival=revival)
    driven = Driven(tmp_path, policy, steps=20)
    seen = []
    for step in range(1, 21):
        if step == 8:
            driven.criterion.reverse()
        seen.append(driven.step()["layers.0.mlp_channels"])
    came_back = [set(after) - set(before) for before, after in itertools.pairwise(seen)]
    assert any(came_back) is revival
    assert len(seen[-1]) == 32
    assert (seen[-1] == tuple(range(32))) is revival
    assert (sum(event.revived for event in driven.callback.state.events) > 0) is revival


def test_masks_wait_for_the_warmup_and_rest_in_the_cooldown(tmp_path: Path) -> None:
    driven = Driven(
        tmp_path, PruningPolicy(solver=HALF, schedule=Schedule(warmup=0.2, cooldown=0.5, every=2)), steps=20
    )
    widths = []
    for _ in range(20):
        on = driven.step()
        widths.append((len(on["layers.1.kv_groups"]), len(on["layers.1.mlp_channels"])))
        driven.criterion.reverse()
    assert widths[:3] == [(4, 64)] * 3
    assert widths[3] < (4, 64)
    assert widths[9:] == [(2, 32)] * 11
    assert [event.step for event in driven.callback.state.events] == [4, 6, 8, 10]


@torch.no_grad()
def test_the_forward_pass_is_under_the_masks_until_training_ends(tmp_path: Path) -> None:
    program, ids = adapted(build_model("llama")), Blocks(2).ids
    plain = program.model(ids).logits
    driven = Driven(tmp_path, PruningPolicy(solver=HALF, schedule=Schedule(warmup=0.5, cooldown=0.5)), 2, program)
    assert torch.equal(program.model(ids).logits, plain)
    driven.step()
    assert not torch.allclose(program.model(ids).logits, plain, rtol=0.1)
    driven.callback.on_train_end(driven.args, driven.state, driven.control)
    assert torch.equal(program.model(ids).logits, plain)


def test_gradients_are_scored_before_they_are_clipped(tmp_path: Path) -> None:
    program = adapted(build_model("llama"))
    backward(program.model, Blocks(4).ids)
    expected = scores_of(program, ImportanceOptions())
    criterion = LoRAPrune(program.traced, ImportanceOptions(smoothing=0))
    policy = PruningPolicy(solver=HALF, schedule=EVERY_STEP, max_grad_norm=1e-3)
    callback = PruningCallback(program.model, program.traced, criterion, policy)
    callback.on_pre_optimizer_step(arguments(tmp_path), TrainerState(max_steps=2), TrainerControl())
    assert all(torch.equal(criterion.scores[name], score) for name, score in expected.items())
    gradients = [p.grad.flatten() for p in program.model.parameters() if p.grad is not None]
    assert float(torch.cat(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_scores_are_read_until_the_last_event_and_finite_gradients_checked_after_it(tmp_path: Path) -> None:
    policy = PruningPolicy(solver=HALF, schedule=Schedule(warmup=0, cooldown=0.6))
    driven = Driven(tmp_path, policy, steps=5)
    backward(driven.program.model, Blocks(4).ids)
    for step in range(1, 6):
        driven.callback.on_pre_optimizer_step(driven.args, driven.state, driven.control)
        assert driven.criterion.observed == min(step, 2)
        assert (driven.criterion.ended > 0) == (step >= 2)
        driven.step()
    next(p for p in driven.program.model.parameters() if p.grad is not None).grad[0, 0] = float("inf")
    with pytest.raises(ModelError, match="gradients of step 6 are not finite"):
        driven.callback.on_pre_optimizer_step(driven.args, driven.state, driven.control)


@pytest.mark.parametrize(
    ("policy", "seen"), [({}, [1, 2, 3, 4, 5, 6]), ({"score_every": 2}, [2, 4, 6]), ({"memory": 2}, [3, 4, 5, 6])]
)
def test_only_steps_that_count_for_an_event_are_scored(tmp_path: Path, policy: dict[str, int], seen: list[int]) -> None:
    """Events after the steps 4 and 6 of 10; the criterion watches exactly while a step is to be seen."""
    schedule = Schedule(warmup=0.4, cooldown=0.4, every=2)
    driven = Driven(tmp_path, PruningPolicy(solver=HALF, schedule=schedule, **policy), steps=10)
    backward(driven.program.model, Blocks(4).ids)
    scored = []
    for step in range(1, 11):
        before, watching = driven.criterion.observed, driven.criterion.watching
        driven.callback.on_pre_optimizer_step(driven.args, driven.state, driven.control)
        if driven.criterion.observed > before:
            assert watching
            scored.append(step)
        else:
            assert not watching
        driven.step()
    assert scored == seen


class Late:
    """An answer that comes when it is waited for."""

    ready = False

    def __init__(self, value: object) -> None:
        self.value = value

    def __bool__(self) -> bool:
        self.ready = True
        return bool(self.value)


def test_what_a_device_says_of_gradients_is_known_a_step_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 1 is bad: known at step 2, or before anything is saved."""
    monkeypatch.setattr(callback_module, "Answer", Late)
    schedule = Schedule(warmup=0.8, cooldown=0.2)
    for how in ("next step", "saved", "ended"):
        driven = Driven(tmp_path, PruningPolicy(solver=HALF, schedule=schedule), steps=5)
        backward(driven.program.model, Blocks(4).ids)
        driven.criterion.finite = False
        driven.callback.on_pre_optimizer_step(driven.args, driven.state, driven.control)
        driven.step()
        driven.criterion.finite = True
        later = {
            "next step": driven.callback.on_pre_optimizer_step,
            "saved": driven.callback.on_save,
            "ended": driven.callback.on_train_end,
        }
        with pytest.raises(ModelError, match="gradients of step 1 are not finite"):
            later[how](driven.args, driven.state, driven.control)


def test_gradients_that_are_not_finite_are_an_error_that_names_the_step(tmp_path: Path) -> None:
    program = adapted(build_model("llama"))
    backward(program.model, Blocks(4).ids)
    next(p for p in program.model.parameters() if p.grad is not None).grad[0, 0] = float("nan")
    criterion = LoRAPrune(program.traced, ImportanceOptions())
    callback = PruningCallback(
        program.model, program.traced, criterion, PruningPolicy(solver=HALF, schedule=EVERY_STEP)
    )
    state = TrainerState(max_steps=9, global_step=4)
    with pytest.raises(ModelError, match="gradients of step 5 are not finite"):
        callback.on_pre_optimizer_step(arguments(tmp_path), state, TrainerControl())


def test_a_trainer_that_clips_is_refused(tmp_path: Path) -> None:
    program = adapted(build_model("llama"))
    criterion = LoRAPrune(program.traced, ImportanceOptions())
    callback = PruningCallback(
        program.model, program.traced, criterion, PruningPolicy(solver=HALF, schedule=EVERY_STEP)
    )
    args = arguments(tmp_path, max_grad_norm=1.0, max_steps=2, dataloader_pin_memory=False)
    trainer = Trainer(model=program.model, args=args, train_dataset=Blocks(), callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    with pytest.raises(OptionError, match=r"clips at 1\.0.*max_grad_norm=0"):
        trainer.train()


def test_the_criterion_is_begun_with_the_training_and_ended_with_it(tmp_path: Path) -> None:
    driven = Driven(tmp_path, PruningPolicy(solver=HALF, schedule=EVERY_STEP), steps=2)
    assert (driven.criterion.begun, driven.criterion.ended) == (1, 0)
    driven.step()
    driven.callback.on_train_end(driven.args, driven.state, driven.control)
    assert (driven.criterion.begun, driven.criterion.ended) == (1, 1)


def test_closing_takes_masks_off_and_ends_the_criterion_and_may_be_done_twice(tmp_path: Path) -> None:
    program, ids = adapted(build_model("llama")), Blocks(2).ids
    plain = program.model(ids).logits
    policy = PruningPolicy(solver=HALF, schedule=Schedule(warmup=0, cooldown=0, every=1))
    driven = Driven(tmp_path, policy, steps=1, program=program)
    driven.step()
    driven.callback.close()
    driven.callback.close()
    assert driven.criterion.ended == 2
    assert torch.equal(program.model(ids).logits, plain)


class Scaler:
    def get_scale(self) -> float:
        return 64.0


class Optimizer:
    scaler = Scaler()


@pytest.mark.parametrize(("optimizer", "scale"), [(None, 1.0), (Optimizer(), 64.0)])
def test_the_criterion_is_told_the_scale_of_the_loss(tmp_path: Path, optimizer: object, scale: float) -> None:
    driven = Driven(tmp_path, PruningPolicy(solver=HALF, schedule=EVERY_STEP), steps=2)
    driven.callback.on_pre_optimizer_step(driven.args, driven.state, driven.control, optimizer=optimizer)
    assert driven.criterion.scale == scale


def test_a_negative_clipping_norm_is_refused() -> None:
    with pytest.raises(OptionError, match="max_grad_norm"):
        PruningPolicy(solver=HALF, schedule=EVERY_STEP, max_grad_norm=-1.0)


def test_the_state_is_restored_as_it_was_saved(tmp_path: Path) -> None:
    policy = PruningPolicy(solver=HALF, schedule=EVERY_STEP)
    driven, fresh = (Driven(tmp_path, policy, steps=10) for _ in range(2))
    for _ in range(6):
        driven.step()
        driven.criterion.reverse()
    driven.callback.state.skipped = 3
    driven.callback.save(tmp_path)
    fresh.callback.restore(tmp_path)
    for name, score in driven.criterion.scores.items():
        assert torch.equal(fresh.criterion.scores[name], score)
        assert torch.equal(fresh.callback.state.masks[name], driven.callback.state.masks[name])
    assert fresh.callback.state.events == driven.callback.state.events
    assert all(isinstance(event, Event) for event in fresh.callback.state.events)
    assert fresh.callback.state.skipped == 3


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    driven = Driven(tmp_path, PruningPolicy(solver=HALF, schedule=EVERY_STEP), steps=2)
    with pytest.raises(MissingFileError, match="not a checkpoint of a pruning run"):
        driven.callback.restore(tmp_path)


def test_a_checkpoint_of_a_run_with_other_options_is_refused(tmp_path: Path) -> None:
    Driven(tmp_path, PruningPolicy(solver=HALF, schedule=EVERY_STEP), steps=2).callback.save(tmp_path)
    other = Driven(tmp_path, PruningPolicy(solver=HALF, schedule=EVERY_STEP, revival=False), steps=2)
    with pytest.raises(OptionError, match="other options"):
        other.callback.restore(tmp_path)

"""Real training runs: the scores are right under all that a Trainer does, and nothing but A and B changes."""

from __future__ import annotations

import gc
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from workbench import (
    EVERY_STEP,
    Blocks,
    adapted,
    backward,
    build_model,
    first_step_scores,
    ranks,
    relative,
    saved_scores,
    scores_of,
    traced,
    tune,
)

from passes.budget import Solver
from passes.decide import ScorePass
from passes.errors import MissingFileError, PreconditionError
from passes.graph import full_masks
from passes.models import Adapter
from passes.options import ONE_SHOT, ImportanceOptions, Schedule, ScoreOptions, Target, TuneOptions
from passes.pipeline import Program, RunContext
from passes.tuning import TunePass, settled
from passes.tuning.checkpoints import latest_checkpoint, seal

PLAIN = ImportanceOptions(normalise=False, smoothing=0.0)


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    """Scores of one backward pass over all 8 blocks, without any Trainer."""
    program = adapted(build_model("llama"))
    backward(program.model, Blocks(8).ids)
    return scores_of(program, PLAIN)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 8},
        {"batch_size": 4, "gradient_accumulation": 2},
        {"batch_size": 1, "gradient_accumulation": 8},
        {"batch_size": 8, "max_grad_norm": 1e-4},
        {"batch_size": 8, "max_grad_norm": 0.0},
        {"batch_size": 2, "gradient_accumulation": 4, "max_grad_norm": 1e-4},
    ],
    ids=str,
)
def test_scores_do_not_depend_on_accumulation_or_clipping(
    tmp_path: Path, reference: dict[str, torch.Tensor], options: dict[str, object]
) -> None:
    scores = first_step_scores(tmp_path, importance=PLAIN, **options)
    for name, expected in reference.items():
        assert relative(scores[name], expected) < 1e-4


def test_scores_under_bf16_autocast_stay_close(tmp_path: Path, reference: dict[str, torch.Tensor]) -> None:
    scores = first_step_scores(tmp_path, importance=PLAIN, batch_size=8, bf16=True)
    exact = all(relative(scores[name], expected) < 1e-6 for name, expected in reference.items())
    assert not exact
    for name, expected in reference.items():
        assert float(scores[name].sum() / expected.sum()) == pytest.approx(1, abs=0.2)
        if len(expected) > 8:
            both = torch.stack([ranks(scores[name]), ranks(expected)])
            assert float(torch.corrcoef(both)[0, 1]) > 0.95


@pytest.mark.parametrize(
    "options",
    [{}, {"revival": False}, {"criterion": "magnitude"}, {"criterion": "flap"}, {"criterion": "mask-fisher"}],
    ids=str,
)
def test_a_resumed_run_ends_like_one_that_never_stopped(tmp_path: Path, options: dict[str, object]) -> None:
    """Dropout, data order, optimizer, learning rate, moving average, masks and events all go on."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    values = {"steps": 8, "save_every": 4, "schedule": EVERY_STEP, "batch_size": 5, **options}
    expected = tune(adapted(build_model("llama"), dropout=0.2), checkpoints=straight, **values)
    resumed.mkdir()
    shutil.copytree(straight / "checkpoint-4", resumed / "checkpoint-4")
    torch.manual_seed(999)
    actual = tune(adapted(build_model("llama"), dropout=0.2), checkpoints=resumed, resume=True, **values)
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in actual.masks.items())
    one, other = saved_scores(straight, 8), saved_scores(resumed, 8)
    assert one.keys() == other.keys() == expected.masks.keys()
    assert all(torch.equal(score, other[name]) for name, score in one.items())
    assert actual.history[-1].report.events == expected.history[-1].report.events
    states = Adapter.of(actual.model).state, Adapter.of(expected.model).state
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_masks_rank_by_the_saved_scores(tmp_path: Path) -> None:
    """The run's last event is at its last step, so its masks are the top units of the scores saved then."""
    program = tune(
        adapted(build_model("llama")),
        steps=4,
        schedule=Schedule(warmup=0, cooldown=0, every=1),
        checkpoints=tmp_path,
        save_every=4,
    )
    for name, score in saved_scores(tmp_path, 4).items():
        mask = program.masks[name]
        assert score[mask].min() >= score[~mask].max()


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("ratio", [0.1, 0.45])
def test_the_target_is_met_exactly_whatever_the_steps(steps: int, ratio: float) -> None:
    program = tune(adapted(build_model("llama")), steps=steps, ratio=ratio, schedule=Schedule())
    counts = {name: int(mask.sum()) for name, mask in program.masks.items()}
    assert counts == program.traced.uniform(Solver.of(Target(ratio=ratio), program.traced).uniform_counts)


def weight_sized(program: Program) -> list[torch.Tensor]:
    """All tensors alive that have the shape of a base weight and are none of the base parameters."""
    own = {p.data_ptr() for p in program.model.parameters()}
    shapes = {shape for shape in program.traced.shapes.values() if len(shape) == 2}
    # Exact types only: tracing in other tests leaves fake tensors with symbolic shapes behind.
    alive = (o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))
    return [t for t in alive if tuple(t.shape) in shapes and t.data_ptr() not in own]


def test_base_weights_are_untouched_and_no_tensor_of_their_size_is_kept() -> None:
    program = adapted(build_model("llama", intermediate_size=72))
    before = {name: p.clone() for name, p in program.model.named_parameters() if ".lora_" not in name}
    adapter = Adapter.of(program.model).state
    known = {id(t) for t in weight_sized(program)}
    kept: list[tuple[int, ...]] = []

    def look(stage: str, done: int, total: int) -> None:
        kept.extend(tuple(t.shape) for t in weight_sized(program) if id(t) not in known)

    options = TuneOptions(steps=3, batch_size=4, schedule=EVERY_STEP, small=False)
    pass_ = TunePass(Target(ratio=0.3), Blocks(), options)
    tuned = pass_(program, RunContext(progress=look)).program
    assert kept == []
    for name, parameter in tuned.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, before[name])
            assert not parameter.requires_grad
            assert parameter.grad is None
    after = Adapter.of(tuned.model).state
    assert all(not torch.equal(value, after[name]) for name, value in adapter.items())
    planted = torch.zeros(72, 32)
    assert any(t is planted for t in weight_sized(program))


def test_tuning_lowers_the_loss_under_the_masks() -> None:
    ids = torch.arange(12).repeat(8, 1)
    data = Blocks(8)
    data.ids = ids
    program = adapted(build_model("llama"))
    tuned = tune(program, data=data, steps=30, learning_rate=1e-2)
    losses = [loss for _, loss in tuned.history[-1].report.losses]
    assert losses[-1] < 0.5 * losses[0]


def test_the_report_tells_losses_rates_and_events() -> None:
    report = tune(adapted(build_model("llama")), steps=5, learning_rate=0.02).history[-1].report
    assert [step for step, _ in report.losses] == [1, 2, 3, 4, 5]
    cosine = [(step + 1, 0.01 * (1 + math.cos(math.pi * step / 5))) for step in range(5)]
    assert [step for step, _ in report.rates] == [step for step, _ in cosine]
    assert [rate for _, rate in report.rates] == pytest.approx([rate for _, rate in cosine])
    assert [event.step for event in report.events] == [step for step, _ in EVERY_STEP.events(5)]
    assert report.skipped_updates == 0


def test_the_same_seed_gives_the_same_run_and_leaves_torch_randomness_alone() -> None:
    programs = [adapted(build_model("llama"), dropout=0.1) for _ in range(3)]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tuned = [tune(program, seed=seed) for program, seed in zip(programs, (1, 1, 2), strict=True)]
    assert torch.equal(torch.rand(2), expected)
    first, same, other = (Adapter.of(program.model).state for program in tuned)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@torch.no_grad()
def test_tuning_works_although_the_caller_switched_gradients_off() -> None:
    program = adapted(build_model("llama"))
    before = Adapter.of(program.model).state
    after = Adapter.of(tune(program, steps=1).model).state
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_the_program_that_came_in_is_left_as_it_was() -> None:
    program = adapted(build_model("llama"))
    history, expected = program.history, program.expected
    tuned = tune(program, steps=1)
    assert program.masks is None
    assert (program.history, program.expected) == (history, expected)
    assert tuned.masks.keys() == full_masks(program.traced).keys()
    assert not tuned.model.training


def test_bf16_weights_are_tuned_in_fp32_adapters() -> None:
    program = tune(adapted(build_model("llama").bfloat16()), steps=2, bf16=True)
    dtypes = {".lora_" in name: parameter.dtype for name, parameter in program.model.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_the_configuration_is_left_alone() -> None:
    """It goes into the saved checkpoint; the Trainer likes to switch the cache off in it."""
    program = adapted(build_model("llama"))
    before = program.model.config.to_dict()
    assert tune(program, steps=1).model.config.to_dict() == before


def test_an_adapter_is_needed() -> None:
    with pytest.raises(PreconditionError, match="run TracePass and AttachPass first"):
        tune(traced(build_model("llama")))


def test_the_authors_code_lets_no_unit_come_back() -> None:
    options = settled(TuneOptions(criterion="loraprune-code"))
    assert (options.revival, options.importance) == (
        False,
        ImportanceOptions(form="abs", normalise=True, quadratic=True),
    )
    coded = tune(adapted(build_model("llama")), steps=12, learning_rate=0.05, criterion="loraprune-code")
    free = tune(adapted(build_model("llama")), steps=12, learning_rate=0.05, importance=options.importance)
    assert sum(event.revived for event in coded.history[-1].report.events) == 0
    assert sum(event.revived for event in free.history[-1].report.events) > 0
    assert coded.history[-1].options["revival"] is False


def test_the_latest_checkpoint_is_the_whole_one_with_the_most_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = TuneOptions(checkpoints=tmp_path, resume=True)
    with pytest.raises(MissingFileError, match="no whole checkpoint"):
        latest_checkpoint(options, tmp_path)
    for step in (9, 10, 100, 99):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "state").write_text("state")
        seal(tmp_path / f"checkpoint-{step}")
    assert latest_checkpoint(options, tmp_path) == tmp_path / "checkpoint-100"
    (tmp_path / "checkpoint-101").mkdir()  # killed while it was written
    (tmp_path / "checkpoint-100" / "state").write_text("stat")
    assert latest_checkpoint(options, tmp_path) == tmp_path / "checkpoint-99"
    assert [record.args[0].name for record in caplog.records] == ["checkpoint-101", "checkpoint-100"]
    assert latest_checkpoint(TuneOptions(checkpoints=tmp_path), tmp_path) is None
    assert latest_checkpoint(TuneOptions(), tmp_path) == tmp_path / "checkpoint-99"


def test_tune_leaves_the_callers_random_states_as_they_were() -> None:
    program = adapted(build_model("llama"))
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    tune(program, steps=1)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_a_one_shot_schedule_tunes_under_the_masks_that_are_there(tmp_path: Path) -> None:
    program = ScorePass(Target(ratio=0.3), Blocks(), ScoreOptions(criterion="taylor"))(adapted(build_model("llama")))
    scored = program.program
    base = {name: p.clone() for name, p in scored.model.named_parameters() if ".lora_" not in name}
    tuned = tune(scored, steps=3, criterion="taylor", schedule=ONE_SHOT, checkpoints=tmp_path, save_every=2)
    assert tuned.history[-1].report.events == ()
    assert all(torch.equal(mask, scored.masks[name]) for name, mask in tuned.masks.items())
    assert all(torch.equal(score, scored.scores[name]) for name, score in tuned.scores.items())
    parameters = dict(tuned.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in base.items())
    assert any(bool(p.any()) for name, p in parameters.items() if ".lora_B." in name)
    resumed = tune(
        ScorePass(Target(ratio=0.3), Blocks(), ScoreOptions(criterion="taylor"))(adapted(build_model("llama"))).program,
        steps=3,
        criterion="taylor",
        schedule=ONE_SHOT,
        checkpoints=tmp_path,
        resume=True,
    )
    assert all(torch.equal(mask, scored.masks[name]) for name, mask in resumed.masks.items())
    states = [Adapter.of(each.model).state for each in (tuned, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_one_shot_schedule_without_masks_is_refused() -> None:
    with pytest.raises(PreconditionError, match="run ScorePass before it"):
        tune(adapted(build_model("llama")), schedule=ONE_SHOT)

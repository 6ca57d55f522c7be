"""Snapshots of real training runs: complete, exact, and the same whether or not the run was interrupted."""

from __future__ import annotations

import copy
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workbench import EVERY_STEP, Blocks, adapted, build_model, randomise_adapter, traced
from zoo import build

from passes.budget import Solver
from passes.decide import DecidePass
from passes.errors import OptionError, PostconditionError, PreconditionError
from passes.graph import full_masks
from passes.models import Adapter, masked
from passes.options import ImportanceOptions, Schedule, SnapshotOptions, Target, TuneOptions
from passes.pipeline import Pipeline, Program, Snapshot
from passes.shrink import ShrinkPass
from passes.tuning import MergePass, RecallPass, TunePass

RATIOS = (0.1, 0.2, 0.35)


def run(program: Program, ratios: tuple[float, ...] = RATIOS, layout: str = "uniform", **options: object) -> Program:
    values = {"steps": 12, "batch_size": 4, "schedule": Schedule(warmup=0.1), **options}
    snapshots = SnapshotOptions(ratios=ratios, cooldown=2)
    target = Target(ratio=ratios[-1], layout=layout)
    return TunePass(target, Blocks(), TuneOptions(**values), snapshots=snapshots)(program).program


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def tuned(checkpoints: Path) -> Program:
    """A run with a Trainer checkpoint after every step."""
    return run(adapted(build_model("llama"), dropout=0.2), checkpoints=checkpoints, save_every=1)


def same(one: Snapshot, other: Snapshot) -> bool:
    pairs = [(one.masks, other.masks), (one.scores, other.scores), (one.adapter.state, other.adapter.state)]
    return (one.ratio, one.step) == (other.ratio, other.step) and all(
        a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items()) for a, b in pairs
    )


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_each_snapshot_meets_its_ratio_exactly(layout: str) -> None:
    program = run(adapted(build_model("llama")), layout=layout)
    graph = program.traced
    assert [snapshot.ratio for snapshot in program.snapshots] == list(RATIOS)
    for snapshot in program.snapshots:
        solver = Solver.of(Target(ratio=snapshot.ratio, layout=layout), graph)
        counts = {name: int(mask.sum()) for name, mask in snapshot.masks.items()}
        solver.check(counts)
        assert graph.parameters(counts) <= (1 - snapshot.ratio) * graph.parameters()
        if layout == "uniform":
            assert counts == graph.uniform(solver.uniform_counts)


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers that are not zero, in order: the same ones once the small model trains, in other places."""
    return tensor[tensor != 0]


def test_a_snapshot_is_what_the_trainer_had_at_that_step(tuned: Program, checkpoints: Path) -> None:
    steps = [snapshot.step for snapshot in tuned.snapshots]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12
    for snapshot in tuned.snapshots:
        trainers = load_file(checkpoints / f"checkpoint-{snapshot.step}" / "adapter_model.safetensors")
        assert trainers.keys() == snapshot.adapter.state.keys()
        pairs = [(numbers(value), numbers(snapshot.adapter.state[name])) for name, value in trainers.items()]
        assert all(torch.equal(*pair) for pair in pairs)
        assert all(pair[0].numel() for pair in pairs)
    first, second, _ = (snapshot.adapter.state for snapshot in tuned.snapshots)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def test_the_last_snapshot_is_how_the_run_ended(tuned: Program) -> None:
    last = Snapshot(RATIOS[-1], 12, tuned.masks, tuned.scores, Adapter.of(tuned.model))
    assert same(tuned.snapshots[-1], last)


def test_one_ratio_gives_the_single_run() -> None:
    options = TuneOptions(steps=8, batch_size=4, schedule=EVERY_STEP)
    single, family = (
        TunePass(Target(ratio=0.3), Blocks(), options, snapshots=snapshots)(adapted(build_model("llama"))).program
        for snapshots in (None, SnapshotOptions(ratios=(0.3,)))
    )
    assert single.snapshots == ()
    reports = [replace(each.history[-1].report, teacher_share=0.0) for each in (single, family)]
    assert reports[0] == reports[1]
    assert same(family.snapshots[0], Snapshot(0.3, 8, single.masks, single.scores, Adapter.of(single.model)))


def test_a_resumed_run_leaves_the_same_snapshots(tuned: Program, checkpoints: Path, tmp_path: Path) -> None:
    """Stopped right after the first snapshot, and once in the middle of the last ramp."""
    for stop in (tuned.snapshots[0].step, tuned.snapshots[1].step + 1):
        resumed = tmp_path / str(stop)
        resumed.mkdir()
        shutil.copytree(checkpoints / f"checkpoint-{stop}", resumed / f"checkpoint-{stop}")
        torch.manual_seed(999)
        program = adapted(build_model("llama"), dropout=0.2)
        actual = run(program, checkpoints=resumed, save_every=1, resume=True)
        assert len(actual.snapshots) == 3
        assert all(same(*pair) for pair in zip(actual.snapshots, tuned.snapshots, strict=True))
        assert actual.history[-1].report.events == tuned.history[-1].report.events
        assert actual.snapshots[0].adapter.config.to_dict() == tuned.snapshots[0].adapter.config.to_dict()


def test_a_checkpoint_holds_the_snapshots_until_then(tuned: Program, checkpoints: Path) -> None:
    for step in range(1, 13):
        found = {path.name for path in (checkpoints / f"checkpoint-{step}").glob("lpc_snapshot_*")}
        assert found == {f"lpc_snapshot_{each.ratio}.safetensors" for each in tuned.snapshots if each.step <= step}


def test_resuming_with_other_ratios_is_refused(checkpoints: Path, tuned: Program, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "checkpoint-5", tmp_path / "checkpoint-5")
    with pytest.raises(OptionError, match="other options"):
        run(adapted(build_model("llama")), ratios=(0.1, 0.35), checkpoints=tmp_path, resume=True)


def test_too_few_steps_are_told_before_training() -> None:
    with pytest.raises(OptionError, match=r"2 steps are too few for 3 snapshots.* take 10 steps"):
        run(adapted(build_model("llama")), steps=2)


@torch.no_grad()
def test_a_recalled_program_becomes_the_model_that_the_snapshot_masked(tuned: Program) -> None:
    """Reference: a fresh model into which peft itself loads the adapter, under the masks."""
    ids = Blocks(3, seed=9).ids
    before = {name: value.clone() for name, value in tuned.model.state_dict().items()}
    for snapshot in tuned.snapshots:
        reference = adapted(build_model("llama"))
        reference.model.load_state_dict(
            {name.replace(".weight", ".default.weight"): value for name, value in snapshot.adapter.state.items()},
            strict=False,
        )
        with masked(reference.model, reference.traced, snapshot.masks):
            expected = reference.model.eval()(ids).logits
        recalled = RecallPass(snapshot)(tuned).program
        with masked(recalled.model, recalled.traced, recalled.masks):
            assert torch.equal(recalled.model(ids).logits, expected)
        decide = DecidePass(Target(ratio=snapshot.ratio), "loraprune")
        compact = Pipeline([decide, MergePass(), ShrinkPass()])(recalled).program
        torch.testing.assert_close(compact.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert compact.plan.achieved_ratio >= snapshot.ratio
    assert all(torch.equal(value, before[name]) for name, value in tuned.model.state_dict().items())


def test_recall_needs_the_adapter(tuned: Program) -> None:
    with pytest.raises(PreconditionError, match="recall"):
        RecallPass(tuned.snapshots[0])(traced(build_model("llama")))


def test_an_adapter_that_does_not_come_back_whole_is_an_error(tuned: Program) -> None:
    snapshot = tuned.snapshots[0]
    state = dict(snapshot.adapter.state)
    name = next(iter(state))
    foreign = {**state, name.replace("layers.0", "layers.7"): state.pop(name)}
    broken = replace(snapshot, adapter=Adapter(copy.deepcopy(snapshot.adapter.config), foreign))
    with pytest.raises(PostconditionError, match=r"layers\.[07].* was not brought back"):
        RecallPass(broken)(tuned)


def test_snapshots_of_the_other_options_work_too() -> None:
    options = {"revival": False, "criterion": "magnitude", "importance": ImportanceOptions(smoothing=0.0)}
    program = run(adapted(build_model("llama")), **options)
    on = [{name: set(mask.nonzero().flatten().tolist()) for name, mask in s.masks.items()} for s in program.snapshots]
    assert all(after[name] <= before[name] for before, after in itertools.pairwise(on) for name in before)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe-mixed", "gpt2", "t5"])
def test_adapters_of_every_kind_come_back(name: str) -> None:
    """Stacked experts are wrapped as parameters, Conv1D the other way round."""
    program = adapted(build(name))
    masks, taken = full_masks(program.traced), Adapter.of(program.model)
    expected = program.respond()
    randomise_adapter(program.model, seed=6)
    recalled = RecallPass(Snapshot(0.1, 1, masks, {}, taken))(program).program
    assert recalled.respond(expected).compare("recall", expected, 0.0).holds
    assert not program.respond(expected).compare("changed", expected, 1e-3).holds

"""Logs of a run: a real event file is written and read back, record by record."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event as LoggedEvent
from workbench import Blocks, adapted, build_model

from passes.errors import OptionError
from passes.models import heldout_loss
from passes.options import Schedule, Target, TuneOptions, check_loggers
from passes.pipeline import Program, RunContext, Watched
from passes.tuning import TunePass

STEPS = 6


def events(folder: Path) -> Iterator[LoggedEvent]:
    """TFRecords: a length of 8 bytes, 4 of checksum, the record, 4 of checksum."""
    for file in folder.rglob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield LoggedEvent.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def tuned(run: RunContext, criterion: str = "loraprune", **options: object) -> Program:
    schedule = Schedule(warmup=0.0, cooldown=0.5, every=1)
    tune = TuneOptions(steps=STEPS, criterion=criterion, schedule=schedule, distill=None, batch_size=2, **options)
    return TunePass(Target(ratio=0.3), Blocks(8), tune)(adapted(build_model("llama")), run).program


def measured(model: object, batch_size: int) -> dict[str, float]:
    loss = heldout_loss(model, Blocks(4), batch_size)
    return {"loss": loss, "perplexity": math.exp(loss)}


def test_logs_hold_what_was_seen_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Watched] = []
    run = RunContext(heldout=measured, watch=seen.append)
    report = tuned(run, report_to=("tensorboard",), heldout_every=2).history[-1].report
    scalars: dict[str, dict[int, float]] = {}
    for event in events(tmp_path / "runs"):
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    assert [each.step for each in seen] == [2, 4, 6]
    assert [each.final for each in seen] == [False, True, True]
    assert 0 < seen[0].removed < seen[1].removed == seen[2].removed
    assert seen[2].removed >= 0.3
    perplexities = {each.step: each.measures["perplexity"] for each in seen}
    assert scalars["eval/heldout_perplexity"] == pytest.approx(perplexities, rel=1e-6)
    assert scalars["train/removed_share"][6] == pytest.approx(seen[2].removed, rel=1e-6)
    assert scalars["train/removed_share"].keys() == scalars["train/loss"].keys() == set(range(1, STEPS + 1))
    assert report.heldout == tuple((each.step, each.measures["loss"]) for each in seen)


@pytest.mark.parametrize("criterion", ["loraprune", "wanda"])  # the other one reads every input that it is shown
def test_looking_changes_nothing(criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain, watched = tuned(RunContext(), criterion), tuned(RunContext(heldout=measured), criterion, heldout_every=1)
    for key, scores in (plain.scores or {}).items():
        assert torch.equal(scores, (watched.scores or {})[key]), key
    pairs = zip(plain.model.named_parameters(), watched.model.named_parameters(), strict=True)
    assert all(torch.equal(first, second) for (_, first), (_, second) in pairs)
    assert not (tmp_path / "runs").exists()


def test_what_a_watch_raises_ends_the_run() -> None:
    def enough(seen: Watched) -> None:
        raise OptionError(f"enough at {seen.step}")

    with pytest.raises(OptionError, match="enough at 3"):
        tuned(RunContext(heldout=measured, watch=enough), heldout_every=3)


def test_log_without_its_package_is_refused_with_the_remedy() -> None:
    with pytest.raises(OptionError, match=r"report_to mlflow .* pip install mlflow"):
        check_loggers(("tensorboard", "mlflow"))
    with pytest.raises(OptionError, match="did you mean 'wandb'"):
        TuneOptions(report_to=("wandbb",))

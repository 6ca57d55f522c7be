"""How many copies of the weights are alive at each stage of a run (docs/memory.md), in bytes of live tensors."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer

import lpc
from passes.options import CompensateOptions, LoraOptions
from passes.pipeline import Pipeline, Program
from passes.shrink import ShrinkPass

RATIO = 0.5
DATA = [list(range(i, i + 100)) for i in range(20)]
SMALL = LoraOptions(rank=1)
SLACK = 0.12
"""Probe, masks, scores, adapter, data: what there is besides weights, in copies of this small model."""


def live_bytes() -> int:
    """The bytes of all storages that a tensor points to; what a trace of another test has left holds no memory."""
    gc.collect()
    real = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [each for each in real if not torch._is_functional_tensor(each)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide")
    wide().save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def wide() -> torch.nn.Module:
    """A model whose weights outweigh all else."""
    return build_model("llama", hidden_size=64, intermediate_size=1024)


def dense_bytes() -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in wide().parameters())


class CountingShrink(ShrinkPass):
    """Counts when the compact model is made and not yet verified."""

    counts: list[int]

    def ensures(self, before: Program, after: Program):  # type: ignore[no-untyped-def]
        self.counts.append(live_bytes())
        return super().ensures(before, after)


class Count:
    """Counts at the end of every pass, in copies of the dense weights beyond what was there at the start."""

    def __init__(self) -> None:
        self.copy, self.start = dense_bytes(), live_bytes()
        self.after: dict[str, float] = {}
        self.shrink = CountingShrink()
        object.__setattr__(self.shrink, "counts", [])

    def progress(self, stage: str, done: int, total: int) -> None:
        if done == total == 1 and stage != "measure":  # passes tell their own steps as well, under their names
            self.after[stage] = self.now()

    def counting(self, pipeline: Pipeline) -> Pipeline:
        return Pipeline(self.shrink if each.name == "shrink" else each for each in pipeline)

    def now(self) -> float:
        return (live_bytes() - self.start) / self.copy

    @property
    def within_shrink(self) -> float:
        return (self.shrink.counts[0] - self.start) / self.copy


def run(model: object, steps: int, count: Count, **options: object) -> lpc.Result:
    shared = lpc.RunOptions(batch_size=2, samples=4)
    given = {
        "run": shared,
        "steps": steps,
        "sequence_length": 16,
        "lora": SMALL,
        "progress": count.progress,
        "pipeline": count.counting,
    }
    return lpc.compress(model, DATA, RATIO, tokenizer=build_tokenizer(), **{**given, **options})  # type: ignore[arg-type]


def test_the_dense_weights_are_there_once_and_go_when_they_are_cut(folder: Path) -> None:
    recover = lpc.RecoverOptions(steps=1, distill=lpc.DistillOptions(), lora=SMALL)
    count = Count()
    result = run(folder, 0, count, compensate=False, recover=recover)
    compact = result.report.pruned.parameters / result.report.dense.parameters
    assert set(count.after) == {"score", "decide", "detach", "merge", "shrink", "recover"}
    for stage in ("score", "decide", "detach", "merge"):
        assert 1 < count.after[stage] < 1 + SLACK, stage
    assert compact < count.after["shrink"] < compact + SLACK
    assert 1 < count.within_shrink < 1 + compact + SLACK  # what is not cut is shared
    assert count.after["recover"] < compact + SLACK  # the teacher, loaded once more, is gone
    assert count.now() < compact + SLACK


def test_what_a_compensation_solved_is_there_twice_more_until_merging_and_once_until_saving() -> None:
    model, count = wide(), Count()  # a live model is the user's own: the run works on a copy
    result = run(model, 1, count, compensate=CompensateOptions(guard=False))
    done = result.program.compensation
    assert done is not None
    solved = sum(each.numel() * each.element_size() for each in done.weights.values()) / count.copy
    assert solved > 0.2
    for stage in ("compensate", "tune", "decide"):
        assert 1 + 2 * solved < count.after[stage] < 1 + 2 * solved + SLACK, stage
    compact = result.report.pruned.parameters / result.report.dense.parameters
    assert 1 + solved < count.after["merge"] < 1 + solved + SLACK
    assert compact + solved < count.now() < compact + solved + SLACK

"""How many copies of the weights are alive at each stage of a run (docs/memory.md), in bytes of live tensors."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer

import lpc
from exporters.hf import SavePass, checkpoint
from exporters.onnx import causal, export_onnx
from exporters.onnx.session import OnnxModel
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
    assert set(count.after) == {"load", "score", "decide", "detach", "merge", "shrink", "recover"}
    for stage in ("load", "score", "decide", "detach", "merge"):
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


def test_saving_and_exporting_hold_one_copy_more_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide().to(torch.bfloat16).eval()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    copy_bytes, start, seen = 2 * model.num_parameters(), live_bytes(), {}

    def watched(module: object, name: str) -> None:
        right = getattr(module, name)

        def call(*args: object, **more: object) -> object:
            gc.collect()
            sessions = [each for each in gc.get_objects() if type(each) is OnnxModel]
            seen[name] = (live_bytes() - start) / copy_bytes, len(sessions)
            return right(*args, **more)

        monkeypatch.setattr(module, name, call)

    watched(checkpoint, "first_different_tensor")
    for name in ("verify_onnx", "verify_greedy"):
        watched(causal, name)
    SavePass(tmp_path / "hf")(Program.start(model))
    export_onnx(model, build_tokenizer(), tmp_path / "onnx")
    assert 1 <= seen["first_different_tensor"][0] < 1 + SLACK  # the reloaded one
    assert 1 <= seen["verify_onnx"][0] < 1 + SLACK  # in fp32, the model itself is twice as large
    assert (seen["verify_onnx"][1], seen["verify_greedy"][1]) == (1, 0)
    after = dict(model.named_parameters())
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype is tensor.dtype for name, tensor in before.items()
    )
    assert (live_bytes() - start) / copy_bytes < SLACK

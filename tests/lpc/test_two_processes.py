"""One run of two processes: the same plan and weights on both, and those of one process; one of them writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, build_tokenizer
from two_ranks import two_ranks

import lpc
from passes.pipeline import Pass, PassResult, Pipeline, Program, RunContext

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

STORY = "The cat sat on the mat number {0}, and the dog ran {0} times round the tree. " * 6
TEXT = [STORY.format(i) for i in range(30)]
DEFAULT = {"steps": 3, "criterion": "auto"}
PROGRESSIVE = {"steps": 6, "criterion": "loraprune"}


def compressed(accumulation: int, tune: dict[str, Any], **more: Any) -> lpc.Result:
    options = lpc.TuneOptions(gradient_accumulation=accumulation, **tune)
    return lpc.compress(
        build_model("llama"), TEXT, 0.3, tokenizer=build_tokenizer(), sequence_length=32, samples=16, batch_size=2,
        device="cpu", tune=options, **more,
    )  # fmt: skip


def _weights(result: lpc.Result) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in result.model.state_dict().items()}


def _one_of_two(rank: int, out: Path, tune: dict[str, Any]) -> dict[str, Any]:
    told: list[str] = []
    result = compressed(1, tune, progress=lambda stage, *_: told.append(stage), run_folder=out / "run")
    result.save(out / "saved", export=["hf"])
    return {"plan": result.plan.to_json(), "weights": _weights(result), "told": len(told)}


@pytest.mark.parametrize("tune", [DEFAULT, PROGRESSIVE], ids=["default", "progressive"])
def test_two_processes_come_to_what_one_comes_to(tmp_path: Path, tune: dict[str, Any]) -> None:
    first, second = two_ranks(tmp_path, _one_of_two, tmp_path, tune)
    one = compressed(2, tune)  # two batches a step, as both of them together
    assert first["plan"] == second["plan"] == one.plan.to_json()
    assert first["weights"] == second["weights"]
    for name, expected in one.model.state_dict().items():
        assert torch.allclose(torch.tensor(first["weights"].pop(name)), expected, rtol=0, atol=1e-6)
    assert not first["weights"]
    assert (first["told"] > 0, second["told"]) == (True, 0)
    saved = lpc.load(tmp_path / "saved" / "hf")
    assert all(tensor.tolist() == second["weights"][n] for n, tensor in saved.state_dict().items())
    assert not [path for path in tmp_path.iterdir() if path.name not in ("0", "1", "run", "saved")]


class _Fails(Pass):
    """Fails on one rank, while the other goes on."""

    name = "fails"

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def call(self, program: Program, run: RunContext) -> PassResult:
        if self._rank:
            raise lpc.ModelError("out of memory on one of them")
        return PassResult(program, modified=False)


def _failing(rank: int, out: Path) -> None:
    def with_failure(passes: Pipeline) -> Pipeline:
        return passes.insert(_Fails(rank), before="score")

    compressed(1, DEFAULT, pipeline=with_failure)
    (out / "wrong").write_text("it went on")


def test_an_error_on_one_process_ends_both(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, _failing, tmp_path, codes=(2, 2))
    assert second == ["ModelError", "out of memory on one of them"]
    assert first[0] in ("PassError", "RuntimeError")
    assert not (tmp_path / "wrong").exists()


def test_the_command_under_torchrun_makes_the_plan_of_one_process(
    tmp_path: Path, tiny_model_folder: Path, text_file: Path
) -> None:
    words = f"lpc compress {tiny_model_folder} --data {text_file} --ratio 0.3 --steps 0 --samples 8 --batch-size 2"
    words += " --sequence-length 32 --no-onnx --device cpu"
    several = f"torch.distributed.run --standalone --nproc-per-node 2 -m {words} --out {tmp_path}/two"
    both = _ran(several)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("parameters removed") == 1
    one = _ran(f"{words} --out {tmp_path}/one")
    assert one.returncode == 0, one.stderr
    assert (tmp_path / "two" / "plan.json").read_bytes() == (tmp_path / "one" / "plan.json").read_bytes()
    again = _ran(several)
    assert again.stderr.count("lpc: OutputExistsError") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def _ran(words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", *words.split()]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)

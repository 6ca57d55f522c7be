"""One run of two processes: the same plan and weights on both, and those of one process; one of them writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from conftest import build_model, build_tokenizer
from two_ranks import two_ranks

import lpc
from lpc.options import CompressOptions
from lpc.pipelines import _choosing
from passes import ranks
from passes.errors import OptionError
from passes.options import Target, TraceOptions
from passes.pipeline import Pass, PassResult, Pipeline, Program, RunContext
from passes.trace import TracePass
from passes.tuning import settled, trainer

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


def _compensate(tune: dict[str, Any]) -> lpc.CompensateOptions | None:
    """Kept, whatever the loss of a model that is not trained says."""
    return lpc.CompensateOptions(guard=False, ridge=1.0) if tune is DEFAULT else None


def _one_of_two(rank: int, out: Path, tune: dict[str, Any]) -> dict[str, Any]:
    told: list[str] = []
    more = {"progress": lambda stage, *_: told.append(stage), "run_folder": out / "run"}
    result = compressed(1, tune, compensate=_compensate(tune), **more)
    result.save(out / "saved", export=["hf"])
    return {"plan": result.plan.to_json(), "weights": _weights(result), "told": len(told)}


@pytest.mark.parametrize(
    "tune", [pytest.param(DEFAULT, id="default"), pytest.param(PROGRESSIVE, id="progressive", marks=pytest.mark.matrix)]
)
def test_two_processes_come_to_what_one_comes_to(tmp_path: Path, tune: dict[str, Any]) -> None:
    first, second = two_ranks(tmp_path, _one_of_two, tmp_path, tune)
    one = compressed(2, tune, compensate=_compensate(tune))  # two batches a step, as both of them together
    assert first["plan"] == second["plan"] == one.plan.to_json()
    assert first["weights"] == second["weights"]
    for name, expected in one.model.state_dict().items():
        assert torch.allclose(torch.tensor(first["weights"].pop(name)), expected, rtol=0, atol=1e-6)
    assert not first["weights"]
    assert (first["told"] > 0, second["told"]) == (True, 0)
    saved = lpc.load(tmp_path / "saved" / "hf")
    assert all(tensor.tolist() == second["weights"][n] for n, tensor in saved.state_dict().items())
    assert not [path for path in tmp_path.iterdir() if path.name not in ("0", "1", "run", "saved")]


FSDP = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def _sharded(rank: int, tune: dict[str, Any]) -> dict[str, Any]:
    os.environ |= FSDP
    # accelerate shards on accelerators alone; the rest is the same
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    kinds: list[str] = []

    def watch(passes: Pipeline) -> Pipeline:
        return passes.insert(_Looks(kinds), after="tune")

    found = trainer.DistillTrainer.training_step

    def step(self: Any, *arguments: Any) -> Any:
        kinds.append(type(next(self.model.parameters())).__name__)
        return found(self, *arguments)

    trainer.DistillTrainer.training_step = step
    result = compressed(1, tune, compensate=False, pipeline=watch)
    return {"plan": result.plan.to_json(), "weights": _weights(result), "kinds": kinds}


class _Looks(Pass):
    """Notes what the parameters are."""

    name = "looks"

    def __init__(self, kinds: list[str]) -> None:
        self._kinds = kinds

    def call(self, program: Program, run: RunContext) -> PassResult:
        self._kinds += sorted({type(parameter).__name__ for parameter in program.model.parameters()})
        return PassResult(program, modified=False)


def test_sharded_training_comes_to_what_one_process_comes_to(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, _sharded, DEFAULT)
    one = compressed(2, {**DEFAULT, "small": False}, compensate=False)
    assert first["kinds"] == second["kinds"] == ["DTensor"] * 3 + ["Parameter"]
    assert first["plan"] == second["plan"] == one.plan.to_json()
    assert first["weights"] == second["weights"]
    # The sharded model forms its loss whole, one process by positions; Adam makes up to 3e-6 of that rounding.
    for name, expected in one.model.state_dict().items():
        assert torch.allclose(torch.tensor(first["weights"][name]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "tune", "message"),
    [
        (FSDP, PROGRESSIVE, "units go before tuning"),
        (FSDP, DEFAULT, "--no-compensate, or --distill 0"),
        ({**FSDP, "FSDP_VERSION": "1"}, DEFAULT, "fsdp_version 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, DEFAULT, "DeepSpeed was never tried"),
    ],
    ids=["progressive", "distilled", "fsdp1", "deepspeed"],
)
def test_what_was_never_tried_on_sharded_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, str], tune: dict[str, Any], message: str
) -> None:
    for name, value in {**engine, "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    if "FSDP_VERSION" not in engine or engine["FSDP_VERSION"] == "1":
        with pytest.raises(OptionError, match=message):
            ranks.join(torch.device("cpu"))
        return
    graph = TracePass(TraceOptions()).call(Program.start(build_model("llama")), RunContext()).program.traced
    asked = CompressOptions(target=Target(ratio=0.3), tune=settled(lpc.TuneOptions(**tune), graph))
    with pytest.raises(OptionError, match=message):
        _choosing([], asked, None, lpc.CompensateOptions() if tune is DEFAULT else None)


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


@pytest.mark.matrix
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

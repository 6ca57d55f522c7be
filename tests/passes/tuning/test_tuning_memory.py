"""Memory that is really not there: one error that says which option to change, and to what."""

from __future__ import annotations

import sys
from typing import Any

import psutil
import pytest
import torch
import zoo
from conftest import build_model
from transformers import LlamaForCausalLM
from workbench import Blocks, traced

from passes.decide import ScorePass
from passes.errors import LpcError, OptionError, OutOfMemoryError
from passes.models import memory_advice, ran_out, return_free_memory
from passes.options import LoraOptions, ScoreOptions, Target, TuneOptions
from passes.pipeline import Program, RunContext
from passes.tuning import AttachPass, MergePass, TunePass

TOO_MUCH = 2**60


class Hungry(LlamaForCausalLM):
    """Asks for more memory than any machine has, for more rows than it may have."""

    rows = 0

    def forward(self, input_ids: torch.Tensor | None = None, **inputs: Any) -> Any:  # type: ignore[override]
        if self.rows and input_ids is not None and len(input_ids) > self.rows:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return super().forward(input_ids, **inputs)


def hungry(rows: int) -> Program:
    """A program whose model has enough memory until it is ready."""
    model = Hungry(build_model("llama").config).eval()
    program = AttachPass(LoraOptions(rank=2))(traced(model)).program
    model.rows = rows
    return program


def tuned(program: Program, **options: Any) -> None:
    values = {"steps": 2, "criterion": "loraprune", **options}
    TunePass(Target(ratio=0.3), Blocks(), TuneOptions(**values))(program)


def test_tuning_says_what_makes_the_same_steps_and_what_keeps_less() -> None:
    program = hungry(3)
    with pytest.raises(OutOfMemoryError) as caught:
        tuned(program, batch_size=8, gradient_accumulation=2)
    said = str(caught.value)
    assert "pass 'tune' ran out of memory" in said
    assert "set batch_size=4 and gradient_accumulation=4" in said
    assert "or set gradient_checkpointing=True" in said
    assert isinstance(caught.value, LpcError)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_it_says_helps() -> None:
    tuned(hungry(4), batch_size=4, gradient_accumulation=2)


def test_what_is_done_already_is_not_said_again() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        tuned(hungry(1), batch_size=2, gradient_checkpointing=True)
    assert "batch_size=1" in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)


def test_other_passes_say_their_batch_size() -> None:
    run = RunContext(batch_size=8)
    with pytest.raises(OutOfMemoryError, match=r"pass 'score' ran out of memory .*: set batch_size=4 in place of 8"):
        ScorePass(Target(ratio=0.3), Blocks(), ScoreOptions(criterion="taylor"))(hungry(3), run)


def test_pythons_own_and_accelerators_count_and_other_errors_do_not() -> None:
    assert ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(RuntimeError, match="shape"), memory_advice("it", lambda: "less"):
        torch.ones(3).reshape(2, 2)
    with pytest.raises(OutOfMemoryError, match=r"it ran out of memory .*: less"), memory_advice("it", lambda: "less"):
        bytearray(TOO_MUCH)


def test_a_class_that_cannot_compute_activations_again_is_refused_before_work() -> None:
    program = AttachPass(LoraOptions(rank=2))(traced(zoo.build("llama"))).program
    type(program.model.get_base_model()).supports_gradient_checkpointing = False
    try:
        with pytest.raises(OptionError, match="has no gradient checkpointing"):
            tuned(program, gradient_checkpointing=True)
    finally:
        del type(program.model.get_base_model()).supports_gradient_checkpointing


def test_a_pass_without_batches_does_not_speak_of_them() -> None:
    assert "batch" not in MergePass().with_less_memory(RunContext(batch_size=8))
    assert "batch_size=4" in ScorePass(Target(ratio=0.3), Blocks()).with_less_memory(RunContext(batch_size=8))


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_what_was_freed_between_what_is_alive_goes_back_to_the_system() -> None:
    process, size = psutil.Process(), 2**18
    large = [torch.ones(size) for _ in range(8)]
    large.clear()  # from here on so large a block is not mapped by itself
    gone, alive = zip(*((torch.ones(size // 8), torch.ones(64)) for _ in range(1000)), strict=True)
    full = process.memory_info().rss
    del gone
    return_free_memory()
    assert process.memory_info().rss < full - 80 * 2**20
    assert len(alive) == 1000

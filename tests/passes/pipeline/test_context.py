"""The run context: what is shared reaches every pass, a pass's own options win, and nothing else is accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset
from workbench import Blocks, adapted, build_model, planned, random_kept, traced

from passes.compensation import CompensatePass
from passes.decide import ScorePass
from passes.errors import OptionError
from passes.models import sample_rows
from passes.options import (
    DTYPE_NAMES,
    CompensateOptions,
    LoraOptions,
    RecoverOptions,
    RunOptions,
    ScoreOptions,
    Target,
    TuneOptions,
)
from passes.pipeline import Pass, Program, RunContext, device_named, dtype_named
from passes.tuning import AttachPass, RecoverPass, TunePass
from passes.tuning.arguments import training_arguments

TARGET = Target(ratio=0.3)


@dataclass
class Seen:
    """A collate function that counts the sizes of the batches and keeps which rows there were."""

    sizes: Counter[int]
    rows: set[tuple[int, ...]]

    def __call__(self, items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.sizes[len(items)] += 1
        self.rows |= {tuple(item["input_ids"].tolist()) for item in items}
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def compact() -> Program:
    return traced(build_model("llama"))


def pruned() -> Program:
    program = traced(build_model("llama"))
    return planned(program, random_kept(program.traced, 2, 40, seed=3))


PASSES: dict[str, tuple[Callable[[], Program], Callable[[], Pass]]] = {
    "score": (lambda: adapted(build_model("llama")), lambda: ScorePass(TARGET, Blocks(), ScoreOptions())),
    "compensate": (pruned, lambda: CompensatePass(Blocks())),
    "tune": (lambda: adapted(build_model("llama")), lambda: TunePass(TARGET, Blocks(), TuneOptions(steps=2))),
    "recover": (
        compact,
        lambda: RecoverPass(
            Blocks(), Subset(Blocks(), range(6)), RecoverOptions(steps=1, every=1, lora=LoraOptions(rank=2))
        ),
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_runs_batch_size_and_collate_reach_every_pass_that_runs_batches(name: str) -> None:
    start, make = PASSES[name]
    seen = Seen(Counter(), set())
    make()(start(), RunContext(batch_size=3, samples=6, collate=seen))
    assert set(seen.sizes) == {3}


@pytest.mark.parametrize("name", ["score", "compensate"])
def test_the_runs_samples_and_seed_say_which_rows_are_looked_at(name: str) -> None:
    start, make = PASSES[name]
    seen, data = Seen(Counter(), set()), Blocks()
    done = make()(start(), RunContext(samples=5, seed=3, collate=seen))
    assert seen.rows == {tuple(data.ids[row].tolist()) for row in sample_rows(len(data), 5, 3)}
    told = done.program.history[-1].options
    assert (told["samples"], told["seed"], told["batch_size"]) == (5, 3, 8)


def test_a_passs_own_options_win_over_the_runs() -> None:
    seen = Seen(Counter(), set())
    options = CompensateOptions(samples=4, batch_size=2)
    done = CompensatePass(Blocks(), options)(pruned(), RunContext(samples=30, batch_size=8, collate=seen))
    assert set(seen.sizes) == {2}
    assert len(seen.rows) == 4
    assert done.program.history[-1].options["batch_size"] == 2


def test_the_runs_seed_is_that_of_the_adapter() -> None:
    def start(seed: int, own: int | None = None) -> torch.Tensor:
        program = AttachPass(LoraOptions(rank=2), own)(traced(build_model("llama")), RunContext(seed=seed)).program
        return next(p for name, p in program.model.named_parameters() if ".lora_A." in name).detach()

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    assert torch.equal(start(1, own=2), start(2))


def test_the_runs_folder_takes_the_checkpoints(tmp_path: Path) -> None:
    options = TuneOptions(steps=2, batch_size=4, save_every=1)
    TunePass(TARGET, Blocks(), options)(adapted(build_model("llama")), RunContext(checkpoints=tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-2"}


def test_a_narrowed_context_keeps_what_the_options_leave_open() -> None:
    run = RunContext(seed=5, batch_size=3)
    assert run.narrowed(ScoreOptions(samples=7)) == replace(run, samples=7)
    assert run.told({"seed": None, "samples": 1, "ridge": None}) == {"seed": 5, "samples": 1, "ridge": None}


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"samples": 0}, {"device": "cuda:99"}, {"device": "abacus"}, {"dtype": "int8"}],
    ids=str,
)
def test_what_no_run_can_have_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        RunContext(**wrong)  # type: ignore[arg-type]


def test_devices_and_dtypes_have_names() -> None:
    assert device_named("cpu") == torch.device("cpu")
    assert device_named("auto").type in ("cpu", "cuda", "mps")
    assert dtype_named("auto") is None
    for name in (*DTYPE_NAMES, *DTYPE_NAMES.values()):
        assert isinstance(dtype_named(name), torch.dtype), name
    assert {dtype_named(name) for name in ("bf16", "bfloat16")} == {torch.bfloat16}


def test_a_context_is_made_of_the_runs_options() -> None:
    options = RunOptions(seed=3, batch_size=2, samples=5, dtype=torch.float16)
    run = RunContext.of(options)
    assert {name: getattr(run, name) for name in vars(options)} == {
        **vars(options),
        "device": str(device_named("auto")),
    }
    with pytest.raises(OptionError, match="'cuda:99' is not there"):
        RunContext.of(RunOptions(device="cuda:99"))


def test_training_leaves_the_model_where_it_is(tmp_path: Path) -> None:
    model = adapted(build_model("llama")).model
    made = training_arguments(TuneOptions(), RunContext(batch_size=3, seed=5), tmp_path, model)
    assert made.device == next(model.parameters()).device
    assert made.place_model_on_device is False
    assert made.n_gpu == 0
    assert (made.per_device_train_batch_size, made.seed, made.use_cpu) == (3, 5, True)

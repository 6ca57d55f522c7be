from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments
from workbench import Blocks, adapted, build_model

from passes.errors import OptionError
from passes.tuning.rates import RESTART, RatedTrainer, stage_rates


def test_each_stage_goes_down_the_whole_curve() -> None:
    rates = stage_rates("cosine", [10, 30])
    first = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    second = [RESTART * (1 + math.cos(math.pi * step / 30)) / 2 for step in range(30)]
    assert rates == pytest.approx([*first, *second], abs=1e-9)


def test_any_curve_that_can_be_planned_is_taken() -> None:
    assert stage_rates("linear", [2, 4]) == pytest.approx([1, 0.5, 0.7, 0.525, 0.35, 0.175])
    assert stage_rates("constant", [2, 1]) == pytest.approx([1, 1, 0.7])
    with pytest.raises(OptionError, match="depends on the loss"):
        stage_rates("reduce_lr_on_plateau", [3])


def test_the_trainer_steps_at_these_rates(tmp_path) -> None:
    seen: list[float] = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
            seen.append(optimizer.param_groups[0]["lr"])

    model = adapted(build_model("llama")).model
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-3, report_to="none", disable_tqdm=True,
        per_device_train_batch_size=2, save_strategy="no", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    factors = [1.0, 0.5, 0.7, 0.2]
    RatedTrainer(factors, model=model, args=arguments, train_dataset=Blocks(8), callbacks=[Look()]).train()
    assert seen == pytest.approx([1e-3 * factor for factor in factors])

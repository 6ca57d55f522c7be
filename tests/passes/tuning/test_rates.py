from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments
from workbench import Blocks, adapted, build_model

from passes.errors import OptionError
from passes.tuning.arguments import PlacedArguments
from passes.tuning.rates import RESTART, RatedTrainer, muon, stage_rates


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


def test_muon_moves_matrices_as_wholes_by_steps_of_adams_size(tmp_path) -> None:
    """The singular values of a step are about alike, whatever the gradient's; its entries' size is 0.2 of the rate."""
    model = adapted(build_model("llama")).model
    arguments = PlacedArguments(
        output_dir=str(tmp_path), max_steps=1, learning_rate=1e-2, report_to="none", disable_tqdm=True, by="muon",
        per_device_train_batch_size=2, save_strategy="no", use_cpu=True, lr_scheduler_type="constant",
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    RatedTrainer(model=model, args=arguments, train_dataset=Blocks(8)).train()
    moved = [p.detach() - before[name] for name, p in model.named_parameters() if p.requires_grad]
    for step in moved:
        values = torch.linalg.svdvals(step)
        values = values[values > 1e-3 * values[0]]
        assert values[-1] > 0.4 * values[0]
        unit = 0.2 * 1e-2 * math.sqrt(max(step.shape))
        assert 0.6 * unit < float(values.mean()) < 1.3 * unit


def test_muon_leaves_what_has_no_gradient_and_takes_matrices_alone() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 4))
    before, optimizer = weight.detach().clone(), muon([weight], 0.1)
    weight.grad = torch.randn(6, 4)
    weight.grad[2], weight.grad[:, 1] = 0, 0
    optimizer.step()
    moved = (weight.detach() - before) != 0
    assert not moved[2].any()
    assert not moved[:, 1].any()
    assert moved.any()
    with pytest.raises(OptionError, match=r"matrices, not a weight of the shape \(4,\): choose adamw"):
        muon([torch.nn.Parameter(torch.randn(4))], 0.1)

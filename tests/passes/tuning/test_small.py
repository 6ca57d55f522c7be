"""The small model under tuning against the masked one: what it computes, its gradients, its steps, and the way back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel
from workbench import (
    EVERY_STEP,
    Blocks,
    build_model,
    planned,
    random_kept,
    random_units,
    randomise_adapter,
    relative,
    traced,
    tune,
)

from passes.decide import DecidePass, ScorePass
from passes.errors import PostconditionError
from passes.models import ADAPTER_FILE, Adapter, lora_weights, masked
from passes.options import ONE_SHOT, DistillOptions, LoraOptions, Schedule, ScoreOptions, Target
from passes.pipeline import Program
from passes.shrink import ShrinkPass
from passes.tuning import AttachPass, MergePass
from passes.tuning.merge import merge
from passes.tuning.recall import wear
from passes.tuning.small import SmallModel, can_be_small

FAMILIES = ["llama", "gpt2", "gpt_neox", "phi3", "mixtral", "qwen3_moe", "bert", "falcon-mqa", "t5", "vit"]


def ready(name: str, dtype: torch.dtype = torch.float32) -> Program:
    """A program under random masks of every width, whose model wears a random adapter."""
    program = traced(zoo.build(name).to(dtype))
    graph = program.traced
    counts = {w.name: max((c for c in w.counts if 0 < c <= w.size * 5 // 8), default=w.size) for w in graph.widths}
    program = planned(program, random_units(graph, counts, seed=3))
    program = AttachPass(LoraOptions(rank=3, alpha=5))(program).program
    assert isinstance(program.model, PeftModel)
    randomise_adapter(program.model)
    return program


def response(model: PreTrainedModel | PeftModel, program: Program) -> torch.Tensor:
    inputs = program.probe.on(torch.device("cpu"), torch.float32)
    real = program.probe.real
    logits = model(**inputs).logits
    return logits if real is None else logits[real]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_small_model_computes_and_learns_what_the_masked_one_does(name: str) -> None:
    program = ready(name)
    model, masks = program.model, program.masks
    assert isinstance(model, PeftModel)
    assert masks is not None
    assert can_be_small(program.traced, masks)
    small = SmallModel(model, program.traced, masks)
    assert sum(p.numel() for p in small.model.parameters()) < sum(p.numel() for p in model.parameters())
    wanted = torch.randn(response(small.model, program).shape, generator=torch.Generator().manual_seed(2))
    (response(small.model, program) * wanted).sum().backward()
    with masked(model, program.traced, masks):
        assert relative(response(small.model, program), response(model, program)) < 1e-5
        (response(model, program) * wanted).sum().backward()
    for old, new in small._pairs():
        assert old.grad is not None
        assert new.grad is not None
        assert relative(new.grad, small._left(new, old.grad)) < 1e-4
        assert old.grad.abs().sum().item() == pytest.approx(new.grad.abs().sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_optimizer_goes_on_and_the_adapter_comes_back_as_if_the_masked_one_had_been_trained(name: str) -> None:
    program = ready(name)
    reference = ready(name)
    graph, masks = program.traced, program.masks
    assert masks is not None
    optimizers = [torch.optim.AdamW([p for p in each.model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
                  for each in (program, reference)]  # fmt: skip

    def step(model: PreTrainedModel | PeftModel, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        response(model, program).square().mean().backward()
        optimizer.step()

    for each, optimizer in zip((program, reference), optimizers, strict=True):
        with masked(each.model, graph, masks):
            for _ in range(3):
                step(each.model, optimizer)
    assert isinstance(program.model, PeftModel)
    small = SmallModel(program.model, graph, masks)
    small.follow(optimizers[0])
    before = [p.clone() for p in program.model.parameters()]
    for _ in range(3):
        step(small.model, optimizers[0])
    assert all(map(torch.equal, before, program.model.parameters()))
    small.give_back()
    with masked(reference.model, graph, masks):
        for _ in range(3):
            step(reference.model, optimizers[1])
        with masked(program.model, graph, masks):
            assert relative(response(program.model, program), response(reference.model, reference)) < 1e-4
            assert relative(response(program.model, program), response(small.model, program)) < 1e-5
    for path, projection in lora_weights(program.model).items():
        zeros = sum(int((factor == 0).sum()) for factor in (projection.left, projection.right))
        assert bool(zeros) == any(not bool(masks[each.name].all()) for each, _ in graph.slices_of[path])


def test_bf16_weights_are_shared_where_nothing_is_cut() -> None:
    program = ready("llama", torch.bfloat16)
    model = program.model
    assert isinstance(model, PeftModel)
    assert program.masks is not None
    small = SmallModel(model, program.traced, program.masks).model.get_base_model()
    assert small.lm_head.weight.data_ptr() == model.get_base_model().lm_head.weight.data_ptr()
    assert small.dtype == torch.bfloat16
    assert {p.dtype for n, p in small.named_parameters() if ".lora_" in n} == {torch.float32}


def test_an_adapter_that_is_not_what_is_left_is_found() -> None:
    program = ready("llama")
    assert isinstance(program.model, PeftModel)
    assert program.masks is not None
    small = SmallModel(program.model, program.traced, program.masks)
    small.check()
    layer = small.model.get_base_model().model.layers[1].mlp.down_proj
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(layer.lora_A["default"].weight.flip(1))
    with pytest.raises(PostconditionError, match=r"layers\.1\.mlp\.down_proj\.weight is not what is left"):
        small.check()


def test_nothing_masked_and_norms_over_what_is_cut_stay_with_the_masked_way() -> None:
    whole = traced(build_model("llama"))
    kept = random_kept(whole.traced, 4, whole.traced.width("mlp_channels").size, seed=1)
    assert not can_be_small(whole.traced, planned(whole, kept).masks or {})
    olmo = ready("olmo2")
    assert not can_be_small(olmo.traced, olmo.masks or {})


def scored() -> Program:
    program = AttachPass(LoraOptions(rank=4))(traced(build_model("llama"))).program
    return ScorePass(Target(ratio=0.3), Blocks(), ScoreOptions(criterion="taylor", samples=8))(program).program


@pytest.mark.parametrize("distill", [None, DistillOptions()])
@pytest.mark.parametrize("schedule", [ONE_SHOT, EVERY_STEP])
def test_a_run_ends_with_the_masked_ones_plan_loss_and_response(
    schedule: Schedule, distill: DistillOptions | None
) -> None:
    runs = []
    for small in (True, False):
        program = tune(scored(), schedule=schedule, steps=8, small=small, distill=distill, learning_rate=1e-3)
        runs.append(program)
    one, other = runs
    assert one.masks is not None
    assert other.masks is not None
    assert all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())
    assert not all(bool(mask.all()) for mask in one.masks.values())
    assert relative(one.respond().outputs["logits"], other.respond().outputs["logits"]) < 1e-3
    reports = [each.history[-1].report for each in runs]
    losses = [[loss for _, loss in report.losses] for report in reports]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert reports[0].events == reports[1].events


@pytest.mark.parametrize("schedule", [ONE_SHOT, EVERY_STEP])
def test_what_is_trained_is_the_small_model_and_its_checkpoints_are_small(schedule: Schedule, tmp_path: Path) -> None:
    tuned = tune(scored(), schedule=schedule, steps=8, checkpoints=tmp_path, save_every=1)
    sizes = [
        sum(value.numel() for value in load_file(tmp_path / f"checkpoint-{step}" / ADAPTER_FILE).values())
        for step in range(1, 9)
    ]
    whole = sum(value.numel() for value in Adapter.of(tuned.model).state.values())
    assert sizes[-1] < whole
    assert sizes[0] == (sizes[-1] if schedule.one_shot else whole)
    assert set(sizes) == {sizes[0], sizes[-1]}


@pytest.mark.parametrize("schedule", [ONE_SHOT, EVERY_STEP])
@pytest.mark.parametrize("step", [2, 6, 8])
def test_a_resumed_run_ends_with_the_same_bits(schedule: Schedule, step: int, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    values = {"schedule": schedule, "steps": 8, "save_every": 2, "distill": DistillOptions()}
    whole = tune(scored(), checkpoints=straight, **values)
    resumed.mkdir()
    shutil.copytree(straight / f"checkpoint-{step}", resumed / f"checkpoint-{step}")
    again = tune(scored(), checkpoints=resumed, resume=True, **values)
    states = [Adapter.of(each.model).state for each in (whole, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_merged_and_cut_the_dense_result_is_the_small_models_own() -> None:
    """What ``lpc apply`` replays: source, adapter and plan, bit for bit."""
    program = tune(scored(), schedule=ONE_SHOT, steps=4)
    assert program.masks is not None
    adapter = Adapter.of(program.model)
    small = SmallModel(program.model, program.traced, program.masks).model
    merged = merge(small)[0]
    program = DecidePass(Target(ratio=0.3), "taylor")(program).program
    compact = ShrinkPass()(MergePass()(program).program).program
    assert all(torch.equal(value, compact.model.state_dict()[name]) for name, value in merged.state_dict().items())
    again = AttachPass(LoraOptions(rank=4))(traced(build_model("llama"))).program
    assert isinstance(again.model, PeftModel)
    wear(again.model, adapter)
    again = ShrinkPass()(MergePass()(replace(again, masks=program.masks, plan=program.plan)).program).program
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in merged.state_dict().items())


@pytest.mark.parametrize("schedule", [ONE_SHOT, EVERY_STEP])
def test_activations_computed_again_give_the_same_run(schedule: Schedule) -> None:
    values = {"schedule": schedule, "steps": 6, "distill": DistillOptions()}
    runs = [tune(scored(), gradient_checkpointing=again, **values) for again in (False, True)]
    states = [Adapter.of(each.model).state for each in runs]
    assert all(relative(value, states[1][name]) < 1e-4 for name, value in states[0].items())
    modules = [*runs[1].model.modules()]
    assert not any(getattr(module, "gradient_checkpointing", False) for module in modules)

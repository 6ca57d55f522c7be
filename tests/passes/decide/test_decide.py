from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from workbench import adapted, build_model, plan_of, planned, random_kept, relative, shapes_by_hand, traced

from passes.budget import Solver
from passes.decide import DecidePass, ReplayPass
from passes.errors import PlanError, PreconditionError
from passes.graph import Plan, full_masks
from passes.models import fingerprint
from passes.options import Target
from passes.pipeline import Program
from passes.tuning import AttachPass


def test_the_plan_says_what_the_masks_keep_and_what_it_was_made_for() -> None:
    target = Target(ratio=0.3)
    program = adapted(build_model("llama"))
    counts = Solver.of(target, program.traced).uniform_counts
    groups, channels = counts["kv_groups"], counts["mlp_channels"]
    kept = random_kept(program.traced, groups, channels, seed=2)
    masked = replace(planned(program, kept), plan=None)
    plan = DecidePass(target, "loraprune", {"steps": 9})(masked).program.plan
    assert dict(plan.kept) == kept
    assert plan.source == fingerprint(build_model("llama"))
    assert (plan.family, plan.budget, plan.criterion, plan.options) == (
        "llama",
        {"parameters": 0.7},
        "loraprune",
        {"steps": 9},
    )
    config = build_model("llama").config
    assert plan.source_parameters == shapes_by_hand(config, 4, 64)
    assert plan.target_parameters == shapes_by_hand(config, groups, channels)
    assert plan.achieved_ratio >= 0.3


@pytest.mark.parametrize("criterion", ["loraprune", "random"])
def test_the_plan_names_the_dimensions_that_no_adapter_scored(criterion: str) -> None:
    covering = get_peft_model(build_model("llama"), LoraConfig(target_modules=["q_proj", "v_proj"]))
    program, target = AttachPass()(traced(covering)).program, Target(ratio=0.3)
    counts = Solver.of(target, program.traced).uniform_counts
    kept = random_kept(program.traced, counts["kv_groups"], counts["mlp_channels"], seed=2)
    plan = DecidePass(target, criterion)(replace(planned(program, kept), plan=None)).program.plan
    named = {f"layers.{layer}.mlp_channels": "gradient" for layer in range(2)} if criterion == "loraprune" else {}
    assert dict(plan.scored_by) == named
    assert Plan.from_json(plan.to_json()) == plan


def test_masks_that_miss_the_target_are_an_error() -> None:
    program = traced(build_model("llama"))
    with pytest.raises(PlanError, match="do not meet the target"):
        DecidePass(Target(ratio=0.3), "random")(replace(program, masks=full_masks(program.traced)))


def test_replay_sets_the_masks_and_expects_their_response() -> None:
    program = traced(build_model("llama"))
    plan = plan_of(program, random_kept(program.traced, 2, 24, seed=2))
    replayed = ReplayPass(plan)(program).program
    reference = planned(program, dict(plan.kept))
    assert replayed.plan == plan
    assert relative(replayed.expected.outputs["logits"], reference.expected.outputs["logits"]) == 0
    assert all(torch.equal(mask, reference.masks[name]) for name, mask in replayed.masks.items())


def test_a_plan_for_another_model_is_refused_with_both_fingerprints() -> None:
    program, other = traced(build_model("llama")), traced(build_model("llama", seed=1))
    plan = plan_of(other, random_kept(other.traced, 2, 24, seed=2))
    names = f"{fingerprint(other.model)[:12]}.*{fingerprint(program.model)[:12]}"
    with pytest.raises(PlanError, match=names):
        ReplayPass(plan)(program)


def test_both_need_what_comes_before_them() -> None:
    bare = Program.start(build_model("llama"))
    with pytest.raises(PreconditionError, match="'decide' needs masks"):
        DecidePass(Target(ratio=0.3), "random")(bare)
    program = traced(build_model("llama"))
    with pytest.raises(PreconditionError, match="'replay' needs a traced program"):
        ReplayPass(plan_of(program, random_kept(program.traced, 2, 24, seed=2)))(bare)

"""Compensation against least squares on activations gathered by hand from whole forward passes of separate copies."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import zoo
from by_hand import (
    DATA,
    EXACT,
    PLAIN,
    Padded,
    compensated,
    gathered,
    prepared,
    report_of,
    solve_by_hand,
)
from torch import nn
from workbench import adapted, build_model, planned, random_kept, random_units, relative, traced

from passes.compensation import CompensatePass
from passes.compensation.layer_by_layer import LayerByLayer
from passes.compensation.layer_stack import Block
from passes.errors import ModelError, OptionError, PostconditionError, PreconditionError
from passes.graph import full_masks
from passes.models import masked
from passes.options import CompensateOptions, TraceOptions
from passes.pipeline import Compensation, Program, Solved
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, MergePass


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_and_biases_are_those_of_lstsq_in_order_of_depth(family: str) -> None:
    program, dense, places, axis = prepared(family)
    expected = solve_by_hand(dense, places, axis)
    result = compensated(program)
    assert [solved.projection for solved in report_of(result).projections] == [path for path, _ in places]
    for path, kept in places:
        actual, wanted = (m.get_submodule(path) for m in (result.program.model, expected))
        index = (slice(None), kept) if axis == 1 else (kept,)
        assert relative(actual.weight[index], wanted.weight[index]) < 1e-4
        if axis == 0:
            assert relative(actual.bias, wanted.bias) < 1e-4


def test_with_residual_the_target_makes_good_what_the_stream_lacks() -> None:
    program, dense, places, _ = prepared("llama")
    expected = solve_by_hand(dense, places, 1, residual=True)
    result = compensated(program, replace(EXACT, residual=True))
    assert report_of(result).residual == tuple(sorted(path for path, _ in places))
    for path, kept in places:
        actual, wanted = (m.get_submodule(path).weight[:, kept] for m in (result.program.model, expected))
        assert relative(actual, wanted) < 1e-4


ADDED = {
    "gpt2": ["attn.c_proj", "mlp.c_proj"],
    "gpt_neox": ["attention.dense", "mlp.dense_4h_to_h"],  # both beside each other
    "granite": [],  # times a factor
    "gemma3_text": [],  # through a norm
    "opt-post-norm": [],  # a norm over the sum
    "mixtral": [],  # attention's goes through experts that are not silenced
    "bert": [],
}


@pytest.mark.parametrize("name", ADDED)
def test_residual_is_for_outputs_that_are_added_as_they_are(name: str) -> None:
    program = TracePass(TraceOptions(custom_code=True))(Program.start(zoo.build(name))).program
    kept = random_units(program.traced, {width.name: max(1, width.size // 2) for width in program.traced.widths}, 4)
    report = report_of(compensated(planned(program, kept), replace(PLAIN, residual=True)))
    assert sorted({path.split(".", 3)[-1] for path in report.residual}) == ADDED[name]
    assert all(solved.after <= solved.before for solved in report.projections)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_kept_inputs_of_consuming_projections_and_their_biases_change(family: str) -> None:
    program, dense, places, axis = prepared(family)
    kept = dict(places)
    model = compensated(program).program.model
    for name, value in dense.state_dict().items():
        path, _, leaf = name.rpartition(".")
        actual = model.state_dict()[name]
        if path in kept and leaf == "weight":
            gone = torch.tensor(sorted(set(range(value.shape[axis])) - set(kept[path])))
            assert torch.equal(actual.index_select(axis, gone), value.index_select(axis, gone))
        elif path not in kept:
            assert torch.equal(actual, value), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_errors_told_are_those_of_whole_forward_passes(family: str) -> None:
    program, dense, places, _ = prepared(family)
    result = compensated(program, replace(PLAIN, batch_size=7))
    model, graph, masks = result.program.model, program.traced, result.program.masks
    for solved, (path, _) in zip(report_of(result).projections, places, strict=True):
        with masked(model, graph, masks):
            _, actual = gathered(model, path)
        _, target = gathered(dense, path)
        assert solved.after == pytest.approx(float((target - actual).norm() / target.norm()), rel=1e-4)
        assert solved.after < 0.9 * solved.before
        assert solved.changed
    first, (path, _) = report_of(result).projections[0], places[0]
    with masked(dense, graph, masks):
        _, removed = gathered(dense, path)
    _, target = gathered(dense, path)
    assert first.before == pytest.approx(float((target - removed).norm() / target.norm()), rel=1e-4)
    assert report_of(result).tokens == int(DATA.mask.sum())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_masked_equals_shrunk_after_it(family: str) -> None:
    program, _, _, _ = prepared(family)
    result = compensated(program, PLAIN)
    assert ShrinkPass()(result.program).program.history[-1].parity[0].holds


@pytest.mark.parametrize("samples", [1, 24])
@pytest.mark.parametrize("ridge", [0.0, 1e-2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_never_rises(samples: int, ridge: float, dtype: torch.dtype) -> None:
    program = traced(build_model("llama").to(dtype))
    program = planned(program, random_kept(program.traced, 2, 24, seed=1))
    report = report_of(compensated(program, replace(PLAIN, samples=samples, ridge=ridge)))
    assert all(solved.after <= solved.before for solved in report.projections)
    assert any(solved.after < 0.95 * solved.before for solved in report.projections)


def test_a_risen_error_is_an_error_that_names_the_projection() -> None:
    program, _, _, _ = prepared("llama")
    worse = Solved(projection="model.layers.1.mlp.down_proj", before=0.1, after=0.11, ridge=0.0, changed=True)
    after = replace(program, compensation=Compensation((worse,), {}))
    with pytest.raises(PostconditionError, match=r"layers\.1\.mlp\.down_proj worse"):
        CompensatePass(DATA).ensures(program, after)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "phi", "gpt_neox", "gemma3_text", "olmo2", "mixtral", "bert", "falcon-mqa"]
)
def test_one_layer_at_a_time_gives_what_whole_forward_passes_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    custom = TracePass(TraceOptions(custom_code=True))
    program = custom(Program.start(zoo.build(name))).program
    counts = {width.name: max(1, width.size // 2) for width in program.traced.widths}
    kept = random_units(program.traced, counts, seed=4)
    streamed = compensated(replace(program, masks=planned(program, kept).masks), PLAIN)
    monkeypatch.setattr(LayerByLayer, "try_on", lambda *_, **__: None)
    again = replace(custom(Program.start(zoo.build(name))).program, masks=streamed.program.masks)
    whole = compensated(again, PLAIN)
    assert (report_of(streamed).layer_by_layer, report_of(whole).layer_by_layer) == (True, False)
    expected = whole.program.model.state_dict()
    for key, value in streamed.program.model.state_dict().items():
        assert relative(value, expected[key]) < 1e-5, key


def test_an_encoder_decoder_is_solved_by_whole_passes_without_its_padding() -> None:
    case, model = zoo.ZOO["t5"], zoo.build("t5")
    batch = zoo.inputs(model, case)
    batch |= zoo.labels(case, batch)
    batch["labels"][0, 4:] = -100
    items = [{name: value[row] for name, value in batch.items()} for row in range(3)]
    program = traced(model)
    kept = random_units(program.traced, {width.name: width.size // 2 for width in program.traced.widths}, seed=4)
    report = report_of(CompensatePass(items, PLAIN)(planned(program, kept)))  # type: ignore[arg-type]
    assert not report.layer_by_layer
    assert len(report.projections) == 2 * 2 + 2 * 3
    assert report.tokens == int(batch["attention_mask"].sum())
    assert all(solved.after < solved.before for solved in report.projections)


def test_stacked_experts_are_left_as_they_are_and_told() -> None:
    program = traced(zoo.build("mixtral"))
    before = {name: value.clone() for name, value in program.model.state_dict().items() if "experts" in name}
    kept = random_units(program.traced, {width.name: width.size // 2 for width in program.traced.widths}, seed=4)
    result = compensated(planned(program, kept))
    skipped = report_of(result).skipped
    assert list(skipped) == [f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)]
    assert all("experts" in why for why in skipped.values())
    assert all(torch.equal(result.program.model.state_dict()[name], value) for name, value in before.items())


def test_with_an_adapter_on_the_target_is_the_base_and_merging_gives_the_same() -> None:
    """W0 moves by the step, so W0 + sBA is what was solved for."""
    program = adapted(build_model("llama"))
    kept = random_kept(program.traced, 2, 24, seed=3)
    base = copy.deepcopy(build_model("llama"))
    result = compensated(planned(program, kept))
    merged = MergePass()(result.program).program.model
    for solved in report_of(result).projections:
        _, target = gathered(base, solved.projection)
        with masked(merged, program.traced, result.program.masks):
            _, actual = gathered(merged, solved.projection)
        assert solved.after == pytest.approx(float((target - actual).norm() / target.norm()), rel=1e-4)


def test_a_new_adapter_changes_nothing_and_is_not_run() -> None:
    bare, worn = traced(build_model("llama").bfloat16()), AttachPass()(traced(build_model("llama").bfloat16())).program
    kept = random_kept(bare.traced, 2, 24, seed=3)
    ran: list[str] = []
    layer = worn.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.lora_A").default
    found = planned(worn, kept)
    layer.register_forward_hook(lambda *_: ran.append("A"))
    weights, expected = (compensated(each).program.compensation.weights for each in (found, planned(bare, kept)))
    assert len(ran) == 1  # the framework looks what the model answers after the pass
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], each) for name, each in expected.items())


def test_originals_are_kept_on_demand_and_undo_it_bit_for_bit() -> None:
    program, dense, _, _ = prepared("gpt2")
    done = compensated(program, keep_originals=True).program
    assert done.compensation is not None
    moved = {name: value.clone() for name, value in done.model.state_dict().items()}
    with done.compensation.undone(done.model):
        assert all(torch.equal(value, dense.state_dict()[name]) for name, value in done.model.state_dict().items())
    assert all(torch.equal(value, moved[name]) for name, value in done.model.state_dict().items())
    program, _, _, _ = prepared("gpt2")
    assert not compensated(program).program.compensation.originals


def test_the_model_comes_back_without_hooks_and_in_the_mode_it_had() -> None:
    program, _, _, _ = prepared("llama")
    program.model.train()

    def hooks() -> list[int]:
        return [h for m in program.model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]

    before = hooks()
    model = compensated(program).program.model
    assert model.training
    assert hooks() == before


def test_nothing_is_solved_where_nothing_is_removed() -> None:
    program = traced(build_model("llama"))
    result = compensated(replace(program, masks=full_masks(program.traced)))
    assert not result.modified
    assert report_of(result).projections == ()


def test_the_plan_says_that_it_was_compensated() -> None:
    program, _, _, _ = prepared("llama")
    plan = compensated(program, replace(PLAIN, samples=3)).program.plan
    assert plan is not None
    assert plan.options["compensate"]["samples"] == 3


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    weights = []
    for seed in (0, 0, 1):
        program, _, places, _ = prepared("llama")
        model = compensated(program, replace(PLAIN, samples=4, seed=seed)).program.model
        weights.append(model.get_submodule(places[0][0]).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_masks_are_needed_and_twice_is_refused() -> None:
    program, _, _, _ = prepared("llama")
    with pytest.raises(PreconditionError, match="needs masks"):
        compensated(replace(program, masks=None))
    with pytest.raises(PreconditionError, match="already"):
        compensated(compensated(program).program)


def test_activations_that_are_not_finite_are_an_error_that_names_the_projection() -> None:
    program, _, _, _ = prepared("llama")
    with torch.no_grad():
        program.model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1e30)
        program.model.get_parameter("model.layers.1.mlp.gate_proj.weight").mul_(1e30)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj.*not finite"):
        compensated(program)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"batch_size": 0}, {"ridge": -0.1}, {"ridge": 2.0}], ids=str)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        CompensateOptions(**wrong)


def test_the_sample_goes_through_each_layer_no_more_than_is_needed() -> None:
    program, _, _, _ = prepared("llama")
    tokens: dict[str, int] = {"self_attn.q_proj": 0, "mlp.down_proj": 0}
    for name, module in program.model.named_modules():
        leaf = ".".join(name.split(".")[-2:])
        if leaf in tokens:

            def count(_: object, inputs: tuple[torch.Tensor, ...], leaf: str = leaf) -> None:
                tokens[leaf] += inputs[0].shape[:-1].numel()

            module.register_forward_pre_hook(count)
    data = Padded(96)
    CompensatePass(data, CompensateOptions(batch_size=8, samples=len(data)))(program)
    once = len(data) * 12 * program.model.config.num_hidden_layers
    # the dense side, the pruned one, the guard's first loss; and a few rows for the proofs
    assert tokens["self_attn.q_proj"] <= 3.2 * once
    # here each new weight is tried on the first batch, and what it changes is added where the layer is left
    assert tokens["mlp.down_proj"] <= 4.3 * once


def test_a_part_of_a_layer_stands_for_its_projection_only_if_it_gives_the_same() -> None:
    class Part(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.leaf, self.factor = nn.Linear(3, 3), factor

        def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.factor * self.leaf(values), None

    values = torch.ones(2, 3)
    for factor, proven in ((1.0, True), (2.0, False)):
        part = Part(factor)
        block = Block.found(part, part.leaf, lambda part=part: part(values)[0] + values)
        assert (block is not None) is proven
        if block is not None:
            with block.giving(torch.zeros(2, 3)):
                assert torch.equal(part(values)[0], torch.zeros(2, 3))
            assert torch.equal(part(values)[0], part.leaf(values))
        noisy = Block.found(part, part.leaf, lambda part=part: part(values)[0] + torch.rand(2, 3))
        assert noisy is None

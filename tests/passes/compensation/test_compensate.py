"""Compensation against least squares on activations gathered by hand from whole forward passes of separate copies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import zoo
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from workbench import adapted, build_model, planned, random_kept, random_units, relative, traced, unit_indices

from passes.compensation import CompensatePass
from passes.compensation.compensate import CompensateReport
from passes.compensation.guard import compared
from passes.compensation.layer_by_layer import LayerByLayer
from passes.compensation.layer_stack import Block
from passes.compensation.streams import Sides
from passes.errors import ModelError, OptionError, PostconditionError, PreconditionError
from passes.graph import full_masks
from passes.models import MaskedModel, masked
from passes.options import CompensateOptions, TraceOptions
from passes.pipeline import Compensation, PassResult, Program, Solved
from passes.ranks import Share
from passes.shrink import ShrinkPass
from passes.trace import TracePass, trace
from passes.tuning import AttachPass, MergePass


class Padded(Dataset[dict[str, torch.Tensor]]):
    """Rows of 12 random tokens, of which every other one is padded on the left."""

    def __init__(self, count: int = 24) -> None:
        self.ids = torch.randint(0, 256, (count, 12), generator=torch.Generator().manual_seed(2))
        self.mask = torch.ones_like(self.ids)
        self.mask[::2, :5] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": self.ids[index]}


DATA = Padded()
PLAIN = CompensateOptions(residual=False, guard=False)  # the loss of a random model on random labels says nothing
EXACT = replace(PLAIN, ridge=0.0, batch_size=5)


def compensated(program: Program, options: CompensateOptions = EXACT, **arguments: bool) -> PassResult:
    return CompensatePass(DATA, options, **arguments)(program)


def report_of(result: PassResult) -> CompensateReport:
    assert isinstance(result.report, CompensateReport)
    return result.report


@torch.no_grad()
def gathered(model: PreTrainedModel, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a module reads and gives on all real tokens, in one whole forward pass; fp64."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, i, o: found.extend((i[0], o)))
    model(input_ids=DATA.ids, attention_mask=DATA.mask)
    handle.remove()
    inputs, outputs = (tensor[DATA.mask.bool()].double() for tensor in found)
    return inputs, outputs


def stream_at(model: PreTrainedModel, path: str) -> torch.Tensor:
    """The residual stream that a Llama adds the projection's output to: what the norm before its block reads."""
    layer, leaf = path.rsplit(".", 2)[0], path.rpartition(".")[2]
    norm = "input_layernorm" if leaf == "o_proj" else "post_attention_layernorm"
    return gathered(model, f"{layer}.{norm}")[0]


def solve_by_hand(
    dense: PreTrainedModel, places: Sequence[tuple[str, list[int]]], axis: int, *, residual: bool = False
) -> PreTrainedModel:
    """A copy of ``dense`` without the inputs that are not kept, each place solved by lstsq, in the order given."""
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        for path, kept in places:
            weight = pruned.get_submodule(path).weight
            gone = torch.tensor(sorted(set(range(weight.shape[axis])) - set(kept)))
            weight.index_fill_(axis, gone, 0.0)
    for path, kept in places:
        inputs, _ = gathered(pruned, path)
        _, target = gathered(dense, path)
        if residual:
            target = target + stream_at(dense, path) - stream_at(pruned, path)
        module, inputs = pruned.get_submodule(path), inputs[:, kept]
        bias = getattr(module, "bias", None)
        with torch.no_grad():
            if bias is not None:
                inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
            solution = torch.linalg.lstsq(inputs, target).solution.float()
            if bias is not None:
                bias.copy_(solution[-1])
                solution = solution[:-1]
            module.weight[(slice(None), kept) if axis == 1 else (kept,)] = solution.T if axis == 1 else solution
    return pruned


def llama_places(program: Program, kept: dict[str, tuple[int, ...]]) -> list[tuple[str, list[int]]]:
    places = []
    for index in range(program.model.config.num_hidden_layers):
        for name, kind in (("self_attn.o_proj", "kv_groups"), ("mlp.down_proj", "mlp_channels")):
            units = kept[f"layers.{index}.{kind}"]
            leaf = name.rpartition(".")[2]
            columns = [i for unit in units for i in unit_indices(program.model.config, leaf, unit)]
            places.append((f"model.layers.{index}.{name}", columns))
    return places


def gpt2_places(program: Program, kept: dict[str, tuple[int, ...]]) -> list[tuple[str, list[int]]]:
    places = []
    for index in range(2):
        heads, channels = (kept[f"layers.{index}.{kind}"] for kind in ("kv_groups", "mlp_channels"))
        places.append((f"transformer.h.{index}.attn.c_proj", [4 * head + i for head in heads for i in range(4)]))
        places.append((f"transformer.h.{index}.mlp.c_proj", list(channels)))
    return places


def prepared(family: str) -> tuple[Program, PreTrainedModel, list[tuple[str, list[int]]], int]:
    """A program under masks, its dense twin, the consuming projections with their kept inputs, and the input axis."""
    model = build_model("llama") if family == "llama" else zoo.build("gpt2")
    dense, program = copy.deepcopy(model), TracePass(TraceOptions(custom_code=True))(Program.start(model)).program
    kept = random_units(program.traced, {"kv_groups": 2 if family == "llama" else 4, "mlp_channels": 24}, seed=3)
    places = (llama_places if family == "llama" else gpt2_places)(program, kept)
    return planned(program, kept), dense, places, 1 if family == "llama" else 0


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


def test_all_is_taken_back_if_the_loss_rises(caplog: pytest.LogCaptureFixture) -> None:
    """The labels are what the masked model says itself: any change makes its loss rise."""
    program, dense, _, _ = prepared("llama")
    data = Padded()
    with masked(program.model, program.traced, program.masks), torch.no_grad():
        for _ in range(12):
            answers = program.model(input_ids=data.ids, attention_mask=data.mask).logits.argmax(-1)
            data.ids[:, 1:] = answers[:, :-1]
    result = CompensatePass(data)(program)
    report = report_of(result)
    assert report.undone
    assert report.loss_after > report.loss_before
    assert "taken back" in caplog.text
    assert not result.modified
    assert result.program.compensation is None
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in program.model.state_dict().items())


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


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3_text", "bert", "falcon-mqa", "t5"])
def test_the_loss_after_is_the_model_s_own_of_whole_forward_passes(name: str) -> None:
    program = TracePass(TraceOptions(custom_code=True))(Program.start(zoo.build(name))).program
    kept = random_units(program.traced, {width.name: max(1, width.size // 2) for width in program.traced.widths}, 4)
    program = planned(program, kept)
    data = Labelled(name)
    result = CompensatePass(data, CompensateOptions(batch_size=2, ridge=0.1))(program)
    report = report_of(result)
    assert report.layer_by_layer == (name != "t5")
    batch = {key: torch.stack([row[key] for row in data.rows]) for key in data.rows[0]}
    with torch.no_grad(), masked(program.model, program.traced, program.masks):
        now = float(program.model(**batch).loss)
    assert (report.loss_before if report.undone else report.loss_after) == pytest.approx(now, rel=1e-4)


class Labelled(Dataset[dict[str, torch.Tensor]]):
    """The three rows of a case of the zoo, without padding, so that each has as many labels."""

    def __init__(self, name: str) -> None:
        batch = zoo.inputs(name, zoo.ZOO[name])
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 256, 7)
        batch = {**batch, **zoo.labels(zoo.ZOO[name], batch)}
        self.rows = [{key: value[row] for key, value in batch.items()} for row in range(3)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


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


def test_the_guard_looks_at_no_more_batches_than_it_needs() -> None:
    seen = []

    def outputs() -> Iterator[dict[str, float]]:
        for number in range(16):
            seen.append(number)
            yield {"loss": 1.0 + 0.001 * number}

    model = traced(build_model("llama")).model
    rows = [{"input_ids": DATA.ids[:3], "labels": DATA.ids[:3]}] * 16
    with torch.no_grad():
        found = compared(Sides(model, MaskedModel(model, trace(model.config)), {}), Share.of(rows), outputs())
    assert seen == [0, 1, 2, 3]
    assert found.rows == 12
    assert found.after == pytest.approx(1.0015)
    with torch.no_grad():
        assert found.before == pytest.approx(float(model(**rows[0]).loss), rel=1e-5)


def test_the_guard_looks_at_all_batches_where_the_answer_is_not_clear() -> None:
    model = traced(build_model("llama")).model
    rows = [{"input_ids": DATA.ids[:3], "labels": DATA.ids[:3]}] * 16
    with torch.no_grad():
        now = float(model(**rows[0]).loss)
        losses = ({"loss": now + (0.1 if number % 2 else -0.1)} for number in range(16))
        found = compared(Sides(model, MaskedModel(model, trace(model.config)), {}), Share.of(rows), losses)
    assert found.rows == 48


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

"""Scores without training: the pass is the criterion observed by hand, on a sample that the seed fixes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo
from handmade import relative
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import LlamaModel
from workbench import Blocks, build_model, randomise_adapter, traced

from passes.budget import Solver
from passes.criteria import CRITERIA, Needs, make_criterion
from passes.decide import DecidePass, ScorePass
from passes.errors import DataError, ModelError, OptionError, PassError, PreconditionError
from passes.models import Pooling, Task, batches, count_parameters, embeds, masked, pieces, sample_rows
from passes.options import ImportanceOptions, ScoreOptions, Target
from passes.pipeline import Pipeline, Program, RunContext
from passes.shrink import ShrinkPass
from passes.tuning import AttachPass, DetachPass, MergePass

TARGET = Target(ratio=0.3, balance="equal")
"""What is measured of other shares is in test_balance.py."""
ONCE = ImportanceOptions(smoothing=0.0)


def program_for(criterion: str) -> Program:
    program = traced(build_model("llama"))
    return AttachPass()(program).program if CRITERIA[criterion].needs is Needs.ADAPTER else program


def score(program: Program, data: Dataset[dict[str, torch.Tensor]] | None = None, **options: object) -> Program:
    values = {"samples": 12, "batch_size": 5, **options}
    return ScorePass(TARGET, Blocks() if data is None else data, ScoreOptions(**values))(program).program


class Recording(Blocks):
    """Blocks that remember which of them were read."""

    def __init__(self, count: int = 32) -> None:
        super().__init__(count)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("name", CRITERIA)
def test_the_scores_are_those_of_the_criterion_observed_by_hand(name: str) -> None:
    """By hand, all rows are one batch; only Fisher's expectation is over batches."""
    size = 4 if name == "fisher" else 12
    program = program_for(name)
    graph, model = program.traced, program_for(name).model
    criterion = make_criterion(name, graph, ONCE, 3)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))[:12].sort().values
    ids = Blocks().ids[order]
    criterion.begin(model)
    for start in range(0, 12, size):
        rows = ids[start : start + size]
        loss = model(input_ids=rows, labels=rows).loss * size / 12
        if loss.requires_grad:
            loss.backward()
    assert criterion.observe(model)
    found = score(program, criterion=name, seed=3, batch_size=4 if name == "fisher" else 5).scores
    assert found.keys() == {d.name for d in graph.dimensions}
    for key, expected in criterion.scores.items():
        assert relative(found[key], expected) < 1e-5
        assert expected.any()


@pytest.mark.parametrize("name", CRITERIA)
def test_the_program_ends_with_the_masks_of_the_solver_and_can_be_shrunk(name: str) -> None:
    program = program_for(name)
    scored = score(program, criterion=name)
    masks = Solver.of(TARGET, program.traced).masks(scored.scores)
    assert all(torch.equal(mask, scored.masks[key]) for key, mask in masks.items())
    after = Pipeline([DecidePass(TARGET, name), DetachPass(), MergePass(), ShrinkPass()])(scored).program
    assert count_parameters(after.model) <= 0.7 * count_parameters(build_model("llama"))
    assert after.plan.criterion == name
    assert after.plan.scored_by == {}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_model_comes_back_as_it_was(name: str) -> None:
    program = program_for(name)
    model = program.model.train()
    modes = [module.training for module in model.modules()]
    asked = [parameter.requires_grad for parameter in model.parameters()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    scored = score(program, criterion=name)
    assert scored.model is model
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["loraprune", "taylor", "wanda"])
def test_the_same_seed_gives_the_same_scores_and_leaves_torch_randomness_alone(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    programs = [program_for(name) for _ in range(3)]
    torch.manual_seed(3)
    found = [
        score(program, criterion=name, seed=seed).scores for program, seed in zip(programs, (1, 1, 2), strict=True)
    ]
    assert torch.equal(torch.rand(2), expected)
    for key, first in found[0].items():
        assert torch.equal(first, found[1][key])
        assert not torch.equal(first, found[2][key])


def test_dropout_is_off_while_scoring() -> None:
    program = traced(zoo.build("gpt2", attn_pdrop=0.5, resid_pdrop=0.5))
    program.model.train()
    data, options = Blocks(), ScoreOptions(criterion="taylor", samples=8)
    found = [ScorePass(Target(ratio=0.1), data, options)(program).program.scores for _ in range(2)]
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_only_the_sampled_rows_are_read_each_once() -> None:
    data = Recording()
    scored = score(traced(build_model("llama")), data, criterion="taylor", samples=7, batch_size=3, seed=4)
    assert tuple(data.read) == sample_rows(32, 7, 4)
    report = scored.history[-1].report
    assert (report.rows, report.batches) == (7, 3)
    ids = data.ids[list(sample_rows(32, 7, 4))]
    with torch.no_grad():
        assert report.loss == pytest.approx(float(build_model("llama")(input_ids=ids, labels=ids).loss), rel=1e-5)


class Prompted(Blocks):
    """Rows whose labels begin later and later."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(index)
        labels = row["labels"].clone()
        labels[: index + 2] = -100
        return {**row, "labels": labels}


@pytest.mark.parametrize("criterion", ["loraprune", "taylor", "mask-fisher"])
def test_each_label_has_the_same_weight_whatever_the_batches(criterion: str) -> None:
    one, some = (
        score(program_for(criterion), Prompted(8), criterion=criterion, samples=8, batch_size=size) for size in (8, 3)
    )
    assert one.history[-1].report.loss == pytest.approx(some.history[-1].report.loss, rel=1e-5)
    assert one.scores is not None
    assert some.scores is not None
    assert all(relative(each, some.scores[name]) < 1e-4 for name, each in one.scores.items())


def test_all_rows_are_taken_where_there_are_fewer_than_asked_for() -> None:
    data = Recording(5)
    score(traced(build_model("llama")), data, criterion="wanda", samples=128)
    assert data.read == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["magnitude", "magnitude-l1", "random"])
def test_a_criterion_of_the_weights_alone_reads_no_data(name: str) -> None:
    data = Recording()
    scored = score(traced(build_model("llama")), data, criterion=name)
    assert data.read == []
    assert scored.history[-1].report.loss is None


def test_the_model_is_scored_under_the_masks_that_are_on() -> None:
    program = traced(build_model("llama"))
    graph = program.traced
    masks = {d.name: torch.arange(d.size) % 2 == 0 for d in graph.dimensions}
    found = score(replace(program, masks=masks), criterion="taylor").scores
    criterion = make_criterion("taylor", graph, ONCE, 0)
    ids = Blocks().ids[list(sample_rows(32, 12, 0))]
    model = build_model("llama")
    with masked(model, graph, masks):
        criterion.begin(model)
        model(input_ids=ids, labels=ids).loss.backward()
        assert criterion.observe(model)
    assert all(relative(found[key], expected) < 1e-5 for key, expected in criterion.scores.items())


@torch.no_grad()
def test_scoring_works_although_the_caller_switched_gradients_off() -> None:
    assert score(traced(build_model("llama")), criterion="mask-fisher").scores["layers.0.kv_groups"].any()


def test_the_step_zero_projection_is_what_loraprune_sees() -> None:
    """B = 0, so the gradient is s · ∇W · AᵀA: a random projection of the true one."""
    program = program_for("loraprune")
    options = ImportanceOptions(normalise=False)
    found = score(program, criterion="loraprune", samples=32, batch_size=32, importance=options).scores
    twin = build_model("llama")
    ids = Blocks().ids
    twin(input_ids=ids, labels=ids).loss.backward()
    expected = torch.zeros(64)
    for name, axis in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
        weight = twin.get_parameter(f"model.layers.1.mlp.{name}.weight")
        layer = program.model.get_base_model().model.layers[1].mlp.get_submodule(name)
        a = layer.lora_A["default"].weight
        expected += ((layer.scaling["default"] * weight.grad @ a.T @ a) * weight).detach().square().sum(axis)
    assert relative(found["layers.1.mlp_channels"], expected) < 1e-5


def test_detaching_leaves_the_model_that_was_attached_to() -> None:
    program = program_for("loraprune")
    bare = DetachPass()(program).program.model
    assert not isinstance(bare, PeftModel)
    assert all(torch.equal(value, bare.state_dict()[key]) for key, value in build_model("llama").state_dict().items())
    plain = traced(build_model("llama"))
    assert DetachPass()(plain).program.model is plain.model


def test_what_the_pass_needs_is_said() -> None:
    with pytest.raises(PreconditionError, match="run TracePass first"):
        score(Program.start(build_model("llama")), criterion="taylor")
    with pytest.raises(PreconditionError, match="'loraprune' reads the gradients of an adapter: run AttachPass"):
        score(traced(build_model("llama")))
    with pytest.raises(DataError, match="no row"):
        score(traced(build_model("llama")), Recording(0), criterion="wanda")


def test_a_failure_takes_the_hooks_off_again() -> None:
    program = traced(build_model("llama"))
    with pytest.raises(PassError, match="pass 'score' failed"):
        score(program, [{"input_ids": torch.tensor([[[1]]])}] * 3, criterion="flap")
    assert not any(module._forward_pre_hooks for module in program.model.modules())


def test_scores_that_are_not_finite_are_an_error() -> None:
    program = traced(build_model("llama"))
    with torch.no_grad():
        program.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"'fisher' are not finite"):
        score(program, criterion="fisher")


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"batch_size": 0}, {"statistics_bytes": 0}, {"criterion": "nonsense"}], ids=str
)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=str(next(iter(wrong)))):
        ScoreOptions(**wrong)


def test_a_sample_is_ascending_without_repetition_and_the_same_every_time() -> None:
    sample = sample_rows(1000, 100, 7)
    assert list(sample) == sorted(set(sample))
    assert len(sample) == 100
    assert sample == sample_rows(1000, 100, 7) != sample_rows(1000, 100, 8)
    assert sample_rows(3, 100, 7) == (0, 1, 2)


def test_batches_are_collated_in_order_and_the_last_may_be_smaller() -> None:
    rows = [{"x": torch.tensor([value])} for value in range(7)]
    found = list(batches(rows, (1, 2, 5), 2, None, torch.device("cpu")))
    assert [batch["x"].tolist() for batch in found] == [[[1], [2]], [[5]]]
    own = list(batches(rows, (3,), 2, lambda items: {"x": items[0]["x"] * 2}, torch.device("cpu")))
    assert own[0]["x"].tolist() == [6]


@pytest.mark.parametrize("name", ["obs", "wanda", "flap", "taylor", "loraprune"])
def test_how_many_tokens_are_looked_at_at_a_time_changes_no_score(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert CRITERIA[name].additive
    whole = score(program_for(name), criterion=name, batch_size=6).scores
    monkeypatch.setattr("passes.decide.score.HOST_TOKENS", 40)
    for key, expected in whole.items():
        assert relative(score(program_for(name), criterion=name, batch_size=6).scores[key], expected) < 1e-4


@pytest.mark.parametrize(("name", "times"), [("obs", 1), ("loraprune", 4)])
def test_a_new_adapter_is_run_only_by_a_criterion_that_reads_it(name: str, times: int) -> None:
    """Once it is run by the framework, which looks what the model answers after the pass."""
    bare, worn = traced(build_model("llama").bfloat16()), AttachPass()(traced(build_model("llama").bfloat16())).program
    ran: list[str] = []
    layer = worn.model.get_submodule("base_model.model.model.layers.1.mlp.up_proj.lora_A")
    layer.default.register_forward_hook(lambda *_: ran.append("A"))
    found = score(worn, criterion=name, batch_size=4)
    assert len(ran) == times
    assert all(parameter.requires_grad == (".lora_" in name) for name, parameter in worn.model.named_parameters())
    if name == "obs":
        assert all(
            torch.equal(found.scores[key], each)
            for key, each in score(bare, criterion=name, batch_size=4).scores.items()
        )
        randomise_adapter(worn.model)
        score(worn, criterion=name, batch_size=4)
        assert len(ran) == 1 + 4


@pytest.mark.parametrize("room", [None, 1])
def test_the_ranking_behind_the_rows_is_told_as_well(room: int | None) -> None:
    told: list[tuple[int, int]] = []
    run = RunContext(progress=lambda stage, done, total: told.append((done, total)))
    options = ScoreOptions(criterion="obs", samples=4, batch_size=2, statistics_bytes=room)
    ScorePass(TARGET, Blocks(), options)(traced(build_model("llama")), run)
    portions = 4 if room else 1
    assert {total for _, total in told} == {4 * portions + 4}
    assert [done for done, _ in told[-2:]] == [told[-1][1] - (1 if room else 4), told[-1][1]]
    assert told == sorted(told)


def test_pieces_are_whole_rows_and_each_has_labels() -> None:
    ids = torch.arange(40).view(5, 8)
    batch = {"input_ids": ids, "labels": ids}
    found = pieces(batch, Task.CAUSAL_LM, 17)
    assert [len(piece["labels"]) for piece in found] == [2, 2, 1]
    assert torch.equal(torch.cat([piece["input_ids"] for piece in found]), ids)
    assert len(pieces(batch, Task.CAUSAL_LM, 3)) == 5
    without = {"input_ids": ids, "labels": ids.index_fill(0, torch.tensor([4]), -100)}
    assert pieces(without, Task.CAUSAL_LM, 17) == [without]
    vectors = {"input_ids": ids, "labels": torch.zeros(5, 4)}
    assert pieces(vectors, Task.FEATURE_EXTRACTION, 17) == [vectors]


@pytest.mark.parametrize("criterion", ["taylor", "obs"])
def test_an_embedding_model_is_ranked_though_its_loss_is_least_at_its_own_vectors(criterion: str) -> None:
    model = LlamaModel(zoo.ZOO["llama"].config()).eval()
    embeds(model, Pooling())
    ids = torch.randint(2, 256, (12, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        vectors = Pooling()(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    rows = [
        dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True))
        for row in zip(ids, mask, vectors, strict=True)
    ]
    scored = score(traced(model), rows, criterion=criterion)  # type: ignore[arg-type]
    assert scored.scores is not None
    assert all(float(scores.max()) > 1e-12 for scores in scored.scores.values())

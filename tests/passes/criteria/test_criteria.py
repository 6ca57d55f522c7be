from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import zoo
from handmade import (
    RANK,
    SCALING,
    backward,
    by_loops,
    exact,
    graph_of,
    materialised,
    randomise,
    relative,
    weights_of,
    worn,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch import distributed
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from passes.criteria import CRITERIA, LoRAPrune, make_criterion, mean_over_ranks
from passes.criteria.importance import importance_sums, unit_scores
from passes.errors import OptionError
from passes.graph import Dimension, PruningGraph
from passes.models import projections
from passes.options import ImportanceOptions

ATTENTION_ONLY = ("q_proj", "v_proj")
OPTIONS = ImportanceOptions()


def partly_worn(name: str) -> tuple[PeftModel, PruningGraph]:
    """A user's adapter, on queries and values alone."""
    base = zoo.build(name)
    graph = graph_of(name, base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=list(ATTENTION_ONLY), r=RANK, lora_alpha=RANK * SCALING)
    model = get_peft_model(base, config).eval()
    randomise(model)
    return model, graph


def covered(graph: PruningGraph) -> set[str]:
    return {name for name in weights_of(graph) if name.split(".")[-2] in ATTENTION_ONLY}


def summed(dimension: Dimension, twin: PreTrainedModel, *, normalise: bool) -> torch.Tensor:
    """(∇W ⊙ W)² of the true gradient, summed by plain loops."""
    total = torch.zeros(dimension.size, dtype=torch.float64)
    for part in dimension.weights:
        weight = twin.get_parameter(part.parameter)
        vector = by_loops((weight.grad * weight.detach()) ** 2, part, dimension.size).double()
        total += vector / vector.norm() if normalise else vector
    return total


def adapter_scores(model: PeftModel, graph: PruningGraph, options: ImportanceOptions) -> dict[str, torch.Tensor]:
    sums_of = partial(importance_sums, options=options)
    return unit_scores(graph, dict(projections(model, graph)), sums_of, normalise=options.normalise)


def test_loraprune_averages_from_zero_and_can_be_observed_again() -> None:
    model, graph = worn("llama")
    options = ImportanceOptions(smoothing=0.9)
    criterion = LoRAPrune(graph, options)
    expected = {d.name: torch.zeros(d.size) for d in graph.dimensions}
    for seed in (1, 2):
        backward(model, "llama", seed)
        for name, scores in adapter_scores(model, graph, options).items():
            expected[name] = 0.9 * expected[name] + 0.1 * scores
        assert criterion.observe(model)
    for name, score in criterion.scores.items():
        assert relative(score, expected[name]) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loraprune_leaves_its_average_alone_when_a_gradient_is_not_finite(value: float) -> None:
    model, graph = worn("llama")
    criterion = LoRAPrune(graph, OPTIONS)
    backward(model, "llama")
    assert criterion.observe(model)
    before = {name: score.clone() for name, score in criterion.scores.items()}
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    layer.lora_A["default"].weight.grad[0, 0] = value
    assert not criterion.observe(model)
    assert all(torch.equal(score, before[name]) for name, score in criterion.scores.items())


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_what_no_adapter_covers_is_scored_by_the_true_gradient(name: str, normalise: bool) -> None:
    model, graph = partly_worn(name)
    twin = materialised(exact(model), exact(zoo.build(name)), covered(graph))
    options = ImportanceOptions(normalise=normalise, smoothing=0.0)
    criterion = LoRAPrune(graph, options)
    criterion.begin(model)
    backward(model, name)
    backward(twin, name)
    by_adapter = adapter_scores(model, graph, options)
    assert criterion.observe(model, loss_scale=1.0)
    for dimension in graph.dimensions:
        attention = dimension.name.endswith("kv_groups")
        expected = by_adapter[dimension.name] if attention else summed(dimension, twin, normalise=normalise)
        assert relative(criterion.scores[dimension.name], expected) < 1e-5


def test_no_gradient_is_asked_of_weights_whose_dimension_an_adapter_covers_in_part() -> None:
    model, graph = partly_worn("llama")
    LoRAPrune(graph, OPTIONS).begin(model)
    asked = {name for name, parameter in model.named_parameters() if parameter.requires_grad and ".lora_" not in name}
    assert {name.split(".")[-2] for name in asked} == {"gate_proj", "up_proj", "down_proj"}


def test_gradients_that_no_scaler_knows_are_unscaled() -> None:
    found = []
    for scale in (1.0, 1024.0):
        model, graph = partly_worn("llama")
        criterion = LoRAPrune(graph, ImportanceOptions(normalise=False))
        criterion.begin(model)
        case = zoo.ZOO["llama"]
        batch = zoo.inputs("llama", case)
        (scale * model(**batch, **zoo.labels(case, batch)).loss).backward()
        assert criterion.observe(model, loss_scale=scale)
        found.append(criterion.scores["layers.0.mlp_channels"])
    assert relative(found[1], found[0]) < 1e-5


def test_observing_frees_the_gradients_and_the_end_leaves_everything_as_it_was() -> None:
    model, graph = partly_worn("llama")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    criterion = LoRAPrune(graph, OPTIONS)
    criterion.begin(model)
    backward(model, "llama")
    weight = model.get_base_model().model.layers[0].mlp.up_proj.weight
    assert weight.grad is not None
    assert criterion.observe(model)
    assert weight.grad is None
    backward(model, "llama")
    for _ in range(2):
        criterion.end(model)
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
        assert all(p.grad is None for name, p in model.named_parameters() if ".lora_" not in name)


def test_a_gradient_that_is_not_finite_where_no_adapter_is_leaves_the_average_alone() -> None:
    model, graph = partly_worn("llama")
    criterion = LoRAPrune(graph, OPTIONS)
    criterion.begin(model)
    backward(model, "llama")
    model.get_base_model().model.layers[1].mlp.up_proj.weight.grad[0, 0] = float("inf")
    assert not criterion.observe(model)
    assert not any(score.any() for score in criterion.scores.values())


def test_observing_without_having_begun_is_an_error_where_no_adapter_is() -> None:
    model, graph = partly_worn("llama")
    backward(model, "llama")
    with pytest.raises(RuntimeError, match=r"layers\.0\.mlp_channels wears no adapter: call begin"):
        LoRAPrune(graph, OPTIONS).observe(model)


class Watch(TrainerCallback):
    """Calls a criterion as the tuning callback does, and clips after it."""

    def __init__(self, criterion: LoRAPrune, model: PeftModel) -> None:
        self.criterion, self.model = criterion, model
        self.sizes: list[int] = []

    def on_train_begin(self, args, state, control, **_):
        self.criterion.begin(self.model)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
        assert self.criterion.observe(self.model)
        self.sizes.append(sum(len(group["params"]) for group in optimizer.param_groups))
        left = [name for name, p in self.model.named_parameters() if p.grad is not None and ".lora_" not in name]
        assert left == []

    def on_train_end(self, args, state, control, **_):
        self.criterion.end(self.model)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_the_trainer_never_moves_weights_that_are_scored_by_their_gradient(name: str, tmp_path: Path) -> None:
    model, graph = partly_worn(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    watch = Watch(LoRAPrune(graph, OPTIONS), model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        learning_rate=0.01,
        weight_decay=0.1,
        use_cpu=True,
        save_strategy="steps",
        save_steps=2,
        disable_tqdm=True,
        report_to="none",
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.arange(96).view(8, 12)]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    adapters = [key for key in before if ".lora_" in key]
    assert watch.sizes == [len(adapters)] * 2
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in adapters)
    assert not any(p.requires_grad for key, p in model.named_parameters() if ".lora_" not in key)
    assert all((score > 0).all() for score in watch.criterion.scores.values())
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert len(saved["state"]) == len(adapters)


def _rank(rank: int, folder: str, results: multiprocessing.SimpleQueue) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results.put(mean_over_ranks(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist())
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_all_ranks_see_the_mean_gradient(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(rank, str(tmp_path), results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get(), results.get()] == [[1.5, 15.0], [1.5, 15.0]]


@pytest.mark.parametrize(
    ("make", "name"), [(worn, "llama"), (worn, "gpt2"), (worn, "mixtral"), (partly_worn, "mixtral")]
)
def test_magnitude_is_the_squared_norm_of_the_merged_weights(
    make: Callable[[str], tuple[PeftModel, PruningGraph]], name: str
) -> None:
    model, graph = make(name)
    twin = materialised(model, zoo.build(name), weights_of(graph) if make is worn else covered(graph))
    criterion = make_criterion("magnitude", graph, OPTIONS, 0)
    assert criterion.observe(model)
    for dimension in graph.dimensions:
        expected = torch.zeros(dimension.size)
        for part in dimension.weights:
            expected += by_loops(twin.get_parameter(part.parameter).detach() ** 2, part, dimension.size)
        assert relative(criterion.scores[dimension.name], expected) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_magnitude_l1_is_the_sum_of_the_absolute_merged_weights(name: str) -> None:
    model, graph = worn(name)
    twin = materialised(model, zoo.build(name), weights_of(graph))
    criterion = make_criterion("magnitude-l1", graph, OPTIONS, 0)
    assert criterion.observe(model)
    for dimension in graph.dimensions:
        expected = torch.zeros(dimension.size)
        for part in dimension.weights:
            expected += by_loops(twin.get_parameter(part.parameter).detach().abs(), part, dimension.size)
        assert relative(criterion.scores[dimension.name], expected) < 1e-5


def test_the_authors_code_is_a_preset_of_the_same_class() -> None:
    model, graph = worn("llama")
    coded = ImportanceOptions(form="abs", normalise=True, quadratic=True, smoothing=0.5)
    criterion = make_criterion("loraprune-code", graph, ImportanceOptions(normalise=False, smoothing=0.5), 0)
    assert type(criterion) is LoRAPrune
    backward(model, "llama")
    assert criterion.observe(model)
    for name, score in adapter_scores(model, graph, coded).items():
        assert relative(criterion.scores[name], 0.5 * score) < 1e-6
    assert not CRITERIA["loraprune-code"].revival
    assert CRITERIA["loraprune"].revival


def test_measuring_magnitudes_changes_no_weight() -> None:
    model, graph = worn("mixtral")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_criterion("magnitude", graph, OPTIONS, 0).observe(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_random_depends_on_the_seed_alone() -> None:
    graph = graph_of("mixtral", zoo.build("mixtral"))
    one, same, other = (make_criterion("random", graph, OPTIONS, seed).scores for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_can_be_begun_observed_and_ended(name: str) -> None:
    model, graph = worn("gpt2")
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    criterion = make_criterion(name, graph, OPTIONS, 0)
    criterion.begin(model)
    backward(model, "gpt2")
    assert criterion.observe(model)
    criterion.end(model)
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert {d.name: (d.size,) for d in graph.dimensions} == {key: s.shape for key, s in criterion.scores.items()}


def test_an_unknown_criterion_is_refused_with_the_known_ones() -> None:
    graph = graph_of("llama", zoo.build("llama"))
    with pytest.raises(OptionError, match=r"'nonsense'.*loraprune, loraprune-code, taylor, .*magnitude, .*random"):
        make_criterion("nonsense", graph, OPTIONS, 0)

"""What the tests of ``passes`` share: programs at a given stage, data, training runs, and plain-loop references."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from conftest import build_model
from peft import PeftModel
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from passes.budget import Solver
from passes.criteria.importance import importance_sums, unit_scores
from passes.graph import Plan, PruningGraph
from passes.models import fingerprint, projections
from passes.models.adapter import lora_layers
from passes.options import Budget, ImportanceOptions, LoraOptions, Schedule, Target, TuneOptions
from passes.pipeline import Program
from passes.trace import TracePass
from passes.tuning import AttachPass, TunePass
from passes.tuning.callback import STATE_FILE

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY_STEP = Schedule(warmup=0.1, cooldown=0.4, every=1)

__all__ = ["EVERY_STEP", "PROJECTIONS", "build_model"]


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Random token blocks of one length, as the tuning pass takes them."""

    def __init__(self, count: int = 32, length: int = 12, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 256, (count, length), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def traced(model: PreTrainedModel | PeftModel) -> Program:
    return TracePass()(Program.start(model)).program


def randomise_adapter(model: PeftModel, seed: int = 5) -> None:
    """Makes A and B random, so that no term of any formula is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def adapted(model: PreTrainedModel, *, rank: int = 4, alpha: float = 12, dropout: float = 0.0) -> Program:
    """A traced program whose model wears a random adapter, expecting what it computes now."""
    program = AttachPass(LoraOptions(rank=rank, alpha=alpha, dropout=dropout))(traced(model)).program
    randomise_adapter(program.model)
    return program.expecting_itself()


def tune(program: Program, *, ratio: float = 0.3, data: Blocks | None = None, **options: object) -> Program:
    values = {"steps": 4, "batch_size": 4, "schedule": EVERY_STEP, "distill": None, **options}
    return TunePass(Target(ratio=ratio), data or Blocks(), TuneOptions(**values))(program).program


def saved_scores(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The moving averages in the Trainer checkpoint after ``step`` steps, by dimension."""
    state = load_file(folder / f"checkpoint-{step}" / STATE_FILE)
    return {name.removeprefix("score."): value for name, value in state.items() if name.startswith("score.")}


def first_step_scores(folder: Path, *, model: PreTrainedModel | None = None, **options: object):
    """The scores after one optimizer step on the first 8 blocks, from a random adapter."""
    program = adapted(model or build_model("llama"))
    tune(program, data=Blocks(8), steps=1, checkpoints=folder, save_every=1, **options)
    return saved_scores(folder, 1)


def uniform(groups: int, channels: int) -> dict[str, int]:
    """The counts a width of a model that has KV groups and MLP channels."""
    return {"kv_groups": groups, "mlp_channels": channels}


def solver_for(graph: PruningGraph, counts: Mapping[str, int]) -> Solver:
    """A solver of the uniform layout whose result is these counts a width, an equal share of all."""
    budget = Budget(parameters=graph.parameters(graph.uniform(counts)))
    solver = Solver.of(Target(budget=budget), graph)
    assert solver.uniform_counts == counts
    return solver


def random_units(graph: PruningGraph, counts: Mapping[str, int], seed: int) -> dict[str, tuple[int, ...]]:
    """Random units of every dimension, as many as the counts a width say (absent: all)."""
    generator = random.Random(seed)
    sizes = graph.uniform(counts)
    return {d.name: tuple(sorted(generator.sample(range(d.size), sizes[d.name]))) for d in graph.dimensions}


def random_kept(graph: PruningGraph, groups: int, channels: int, seed: int) -> dict[str, tuple[int, ...]]:
    """The same, of a model that has KV groups and MLP channels."""
    return random_units(graph, uniform(groups, channels), seed)


def plan_of(program: Program, kept: dict[str, tuple[int, ...]]) -> Plan:
    graph = program.traced
    parameters = graph.parameters({name: len(units) for name, units in kept.items()})
    return Plan(
        source=fingerprint(program.model),
        family=graph.family,
        budget={"parameters": 0.5},
        source_parameters=graph.parameters(),
        target_parameters=parameters,
        kept=kept,
    )


def planned(program: Program, kept: dict[str, tuple[int, ...]]) -> Program:
    """The program under the plan's masks, ready to be shrunk."""
    plan = plan_of(program, kept)
    return replace(program, plan=plan, masks=plan.masks(program.traced)).expecting_itself()


def shapes_by_hand(config: PreTrainedConfig, groups: int, channels: int) -> int:
    """The parameter count of a model without any bias, written out from the architecture."""
    width = config.num_attention_heads // config.num_key_value_heads
    attention = config.hidden_size * config.head_dim * groups * (2 * width + 2)
    mlp = 3 * config.hidden_size * channels
    norms = 2 * config.hidden_size
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return embeddings + config.num_hidden_layers * (attention + mlp + norms) + config.hidden_size


def unit_indices(config: PreTrainedConfig, projection: str, unit: int) -> list[int]:
    """The rows of a producing (columns of a consuming) projection that belong to a unit, written out."""
    if projection in ("gate_proj", "up_proj", "down_proj"):
        return [unit]
    per_group = config.num_attention_heads // config.num_key_value_heads if projection in ("q_proj", "o_proj") else 1
    heads = range(unit * per_group, (unit + 1) * per_group)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def silence_by_hand(model: PreTrainedModel, kept: dict[str, tuple[int, ...]]) -> PreTrainedModel:
    """A copy whose removed units cannot be heard: their columns of o_proj and down_proj are zero."""
    silenced, config = copy.deepcopy(model), model.config
    with torch.no_grad():
        for index, layer in enumerate(silenced.model.layers):
            for name, linear in (("o_proj", layer.self_attn.o_proj), ("down_proj", layer.mlp.down_proj)):
                kind = "kv_groups" if name == "o_proj" else "mlp_channels"
                size = config.num_key_value_heads if name == "o_proj" else config.intermediate_size
                for unit in set(range(size)) - set(kept[f"layers.{index}.{kind}"]):
                    linear.weight[:, unit_indices(config, name, unit)] = 0
    return silenced


def dense_twin(model: PeftModel, pristine: PreTrainedModel) -> PreTrainedModel:
    """A dense copy of ``pristine`` with W = W0 + sBA materialised by hand, whose weights require gradients."""
    twin = copy.deepcopy(pristine).to(next(model.parameters()).dtype)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            twin.get_submodule(name).weight += layer.scaling["default"] * (b @ a)
    return twin.requires_grad_(True)


def scores_of(program: Program, options: ImportanceOptions) -> dict[str, torch.Tensor]:
    """Unit scores a dimension of the last backward pass, without any Trainer or moving average."""
    weights = dict(projections(program.model, program.traced))
    sums_of = partial(importance_sums, options=options)
    return unit_scores(program.traced, weights, sums_of, normalise=options.normalise)


def backward(model: PreTrainedModel | PeftModel, ids: torch.Tensor) -> None:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max())


def ranks(values: Sequence[float] | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values).argsort().argsort().double()

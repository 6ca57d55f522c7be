"""The hidden size while adapters train: masks, what wears LoRA, and scores."""

from __future__ import annotations

import pytest
import torch
import zoo
from hiding import LOUD, hidden_by_hand, units
from peft import get_peft_model
from shrinking import dense, graph_of, masks_of, outputs
from workbench import Blocks, randomise_adapter, relative, tune

from passes.criteria import Magnitude
from passes.criteria.importance import importance_sums, unit_scores
from passes.decide import DecidePass
from passes.models import ADAPTER, DenseWeight, count_parameters, lora_config, masked, scored_by
from passes.models.adapter import lora_layers
from passes.options import ImportanceOptions, LoraOptions, Target, TraceOptions
from passes.pipeline import Program
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, MergePass


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "mixtral"])
def test_masks_hold_under_adapters(name: str) -> None:
    model, graph = zoo.build(name, **LOUD), graph_of(name, hidden=True, **LOUD)
    wearing = get_peft_model(model, lora_config(LoraOptions(rank=4, alpha=8), graph, model))
    randomise_adapter(wearing)
    kept = units(graph, 16, 4)
    with masked(wearing, graph, masks_of(graph, kept)):
        actual = outputs(wearing, name)
    merged = wearing.merge_and_unload()
    assert relative(actual, outputs(hidden_by_hand(name, merged, kept), name)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen3_moe-mixed"])
def test_nothing_more_wears_an_adapter(name: str) -> None:
    model, options = dense(name), LoraOptions(rank=4, alpha=8)
    with_it, without = (lora_config(options, graph_of(name, hidden=hidden), model) for hidden in (True, False))
    assert with_it.target_modules == without.target_modules
    assert with_it.target_parameters == without.target_parameters
    assert not any("embed" in target or "lm_head" in target for target in with_it.target_modules)


def test_hidden_channels_are_scored_through_the_adapters() -> None:
    program = AttachPass(LoraOptions(rank=4, alpha=8))(
        TracePass(TraceOptions(hidden=True))(Program.start(zoo.build("llama"))).program
    ).program
    assert scored_by(program.model, program.traced)["hidden"] == ADAPTER
    assert all("proj" in name for name in lora_layers(program.model))


@pytest.mark.parametrize("tied", [True, False])
def test_scores_sum_over_all_that_reads_and_writes(tied: bool) -> None:
    """(∇W ⊙ W)² over the rows and columns of every weight, written out; a tied embedding counts once."""
    model = zoo.build("llama", tie_word_embeddings=tied)
    graph = graph_of("llama", hidden=True, tie_word_embeddings=tied)
    model(**zoo.inputs(model, zoo.ZOO["llama"]), labels=torch.ones(3, 12, dtype=torch.int64)).loss.backward()
    weights = {n: DenseWeight(p.detach(), p.grad) for n, p in model.named_parameters() if p.dim() == 2}
    options = ImportanceOptions()
    actual = unit_scores(graph, weights, lambda weight: importance_sums(weight, options))["hidden"]
    expected = torch.zeros(32)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected += (parameter * parameter.grad).square().sum(1 if writes else 0).detach()
    assert relative(actual, expected) < 1e-5


def test_magnitude_is_that_of_all_weights() -> None:
    program = AttachPass(LoraOptions(rank=4, alpha=8))(
        TracePass(TraceOptions(hidden=True))(Program.start(zoo.build("qwen3_moe"))).program
    ).program
    criterion = Magnitude(program.traced)
    criterion.observe(program.model)
    expected = torch.zeros(32)
    for name, parameter in dense("qwen3_moe").named_parameters():
        if parameter.dim() > 1:
            writes = name.endswith(("o_proj.weight", "down_proj"))
            axes = [a for a in range(parameter.dim()) if a != parameter.dim() - (2 if writes else 1)]
            expected += parameter.square().sum(axes).detach()
    assert relative(criterion.scores["hidden"], expected) < 1e-5


def test_a_run_from_source_to_compact_model() -> None:
    program = TracePass(TraceOptions(hidden=True))(Program.start(zoo.build("gemma"))).program
    program = AttachPass(LoraOptions(rank=4, alpha=8))(program).program
    program = tune(program.expecting_itself(), ratio=0.4, data=Blocks(8), steps=2)
    program = DecidePass(Target(ratio=0.4), "loraprune")(program).program
    program = ShrinkPass()(MergePass()(program).program).program
    assert program.plan is not None
    assert len(program.plan.kept["hidden"]) == program.model.config.hidden_size < 32
    assert count_parameters(program.model) == program.plan.target_parameters
    assert program.plan.scored_by == {}

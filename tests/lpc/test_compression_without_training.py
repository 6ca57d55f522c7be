"""``steps=0``: calibration only, with every criterion, and never on what is held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import lpc
from exporters.files import sha256
from lpc.data import RowFormat, open_rows, split_heldout, split_rows
from passes.criteria import CRITERIA, Random
from passes.models import sample_rows

TEXT = lpc.DataOptions(sequence_length=16)
RUN = lpc.RunOptions(samples=10)
DATA = [[(7 * i + j) % 250 for j in range(100)] for i in range(20)]
SEEN: list[torch.Tensor] = []


class Spy(Random):
    """A criterion that keeps the inputs of every forward pass that it is to score."""

    def begin(self, model):  # type: ignore[no-untyped-def]
        self._handle = model.register_forward_pre_hook(
            lambda _, __, inputs: SEEN.append(inputs["input_ids"].clone()), with_kwargs=True
        )

    def end(self, model):  # type: ignore[no-untyped-def]
        self._handle.remove()


@pytest.fixture
def spy() -> Iterator[str]:
    SEEN.clear()
    with CRITERIA.restored():
        lpc.register_criterion("spy", lambda graph, options, seed: Spy(graph, seed), needs="activations")
        yield "spy"


@pytest.mark.parametrize("criterion", ["loraprune", "taylor", "flap", "obs", "magnitude"])
def test_what_stays_is_the_source_and_the_plan_replays_it_without_an_adapter(
    criterion: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    result = lpc.compress(
        tiny_model_folder, data=DATA, ratio=0.3, steps=0, criterion=criterion, run=RUN, data_options=TEXT
    )
    dense = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    for projection in ("gate_proj", "up_proj"):
        name = f"model.layers.1.mlp.{projection}.weight"
        kept = list(result.plan.kept["layers.1.mlp_channels"])
        assert torch.equal(result.model.get_parameter(name), dense.get_parameter(name)[kept])
    result.save(tmp_path / "out", export=["hf"])
    assert not (tmp_path / "out" / "adapter").exists()
    again = lpc.apply(tmp_path / "out" / "plan.json", tiny_model_folder)
    again.save(tmp_path / "again", export=["hf"])
    assert sha256(tmp_path / "again/hf/model.safetensors") == sha256(tmp_path / "out/hf/model.safetensors")
    plan = result.plan
    assert (plan.criterion, plan.options["steps"], plan.options["samples"]) == (criterion, 0, 10)
    names = [record["name"] for record in json.loads((tmp_path / "out" / "lpc.json").read_text())["passes"]]
    assert ("attach" in names) == (criterion == "loraprune")
    assert "score" in names
    assert "tune" not in names


def test_the_report_has_the_model_with_the_units_gone(tiny_llama: PreTrainedModel) -> None:
    result = lpc.compress(
        tiny_llama, data=DATA, ratio=0.3, steps=0, criterion="wanda", run=RUN, data_options=TEXT, compensate=False
    )
    perplexity = result.report.heldout.measures["perplexity"]
    assert perplexity.removed == pytest.approx(perplexity.pruned, rel=1e-4)
    assert perplexity.dense != perplexity.pruned


def test_it_is_the_same_again_with_the_same_seed(tiny_llama: PreTrainedModel) -> None:
    found = [
        lpc.compress(
            tiny_llama, data=DATA, ratio=0.3, steps=0, criterion="fisher", run=RUN, data_options=TEXT, seed=seed
        )
        for seed in (1, 1, 2)
    ]
    scores = [result.program.scores for result in found]
    assert found[0].plan == found[1].plan
    assert all(torch.equal(score, scores[1][name]) for name, score in scores[0].items())
    assert not any(torch.equal(score, scores[2][name]) for name, score in scores[0].items())


def test_an_adapter_that_came_with_the_model_is_merged(tiny_llama: PreTrainedModel) -> None:
    brought = get_peft_model(tiny_llama, LoraConfig(r=3, target_modules=["up_proj"], init_lora_weights=False))
    result = lpc.compress(brought, data=DATA, ratio=0.3, steps=0, criterion="taylor", run=RUN, data_options=TEXT)
    name = "model.layers.1.mlp.up_proj"
    layer = brought.get_base_model().get_submodule(name)
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    kept = list(result.plan.kept["layers.1.mlp_channels"])
    assert torch.allclose(result.model.get_submodule(name).weight, merged[kept], atol=1e-6)
    assert result.program.adapter is not None


def test_held_out_text_is_never_scored(spy: str, tiny_llama: PreTrainedModel) -> None:
    """All blocks are different, so a block that was scored can be told from one that is held out."""
    stream = torch.randint(0, 250, (64 * 16,), generator=torch.Generator().manual_seed(2))
    text = lpc.DataOptions(sequence_length=16, heldout_fraction=0.25)
    lpc.compress(tiny_llama, data=[stream.tolist()], ratio=0.3, steps=0, criterion=spy, data_options=text, samples=1000)
    train, heldout = split_heldout(stream.view(64, 16), 0.25)
    scored = {tuple(row) for batch in SEEN for row in batch.tolist()}
    assert scored == {tuple(row) for row in train.tolist()}
    assert not scored & {tuple(row) for row in heldout.tolist()}


def test_held_out_rows_are_never_scored(spy: str) -> None:
    model = zoo.build("bert-sequence-classification")
    rows = [{"input_ids": [2 + i, 5, 7, 9], "labels": i % 5} for i in range(40)]
    text = lpc.DataOptions(heldout_fraction=0.25)
    lpc.compress(model, data=rows, ratio=0.15, steps=0, criterion=spy, data_options=text, samples=1000)
    train, heldout = split_rows(open_rows(rows, RowFormat.of(type(model), model.config)), 0.25)
    scored = {int(row[0]) - 2 for batch in SEEN for row in batch}
    assert scored == set(train.indices)
    assert not scored & set(heldout.indices)
    assert len(heldout) == 10


def test_the_sample_is_the_one_that_the_seed_says(spy: str, tiny_llama: PreTrainedModel) -> None:
    stream = torch.randint(0, 250, (64 * 16,), generator=torch.Generator().manual_seed(2))
    lpc.compress(
        tiny_llama, data=[stream.tolist()], ratio=0.3, steps=0, criterion=spy, run=RUN, data_options=TEXT, seed=5
    )
    train, _ = split_heldout(stream.view(64, 16), TEXT.heldout_fraction)
    assert torch.equal(torch.cat(SEEN), train[list(sample_rows(len(train), 10, 5))])


def test_a_criterion_of_an_unknown_name_is_refused(tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(lpc.OptionError, match="unknown criterion 'nonsense': choose one of loraprune"):
        lpc.compress(tiny_llama, data=DATA, ratio=0.3, steps=0, criterion="nonsense")


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(lpc.OptionError, match="samples must be at least 1"):
        lpc.RunOptions(samples=0)


def test_the_criterion_of_a_tuned_run_is_the_one_asked_for(tiny_llama: PreTrainedModel) -> None:
    tune = lpc.TuneOptions(steps=2, batch_size=2)
    result = lpc.compress(
        tiny_llama, data=DATA, ratio=0.3, criterion="loraprune-code", tune=tune, run=RUN, data_options=TEXT
    )
    assert result.plan.criterion == "loraprune-code"
    assert result.plan.options["revival"] is False
    assert (result.plan.options["importance"]["form"], result.plan.options["importance"]["quadratic"]) == ("abs", True)

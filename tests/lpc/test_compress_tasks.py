"""compress, save and measure models of every task, with rows as data."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
import zoo
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

import lpc
from lpc.material import prepare
from lpc.options import DataOptions
from lpc.source import load_source

TUNE = lpc.TuneOptions(steps=2, batch_size=4, schedule=lpc.Schedule(every=1))
DATA = lpc.DataOptions(heldout_fraction=0.25)
MEASURES = {
    "bert": {"loss", "accuracy", "perplexity"},
    "bert-sequence-classification": {"loss", "accuracy"},
    "llama-sequence-classification": {"loss", "accuracy"},
    "bert-token-classification": {"loss", "accuracy"},
    "bert-question-answering": {"loss", "accuracy"},
    "vit": {"loss", "accuracy"},
    "t5": {"loss", "perplexity"},
    "bart": {"loss", "perplexity"},
    "qwen2": {"loss", "perplexity"},
}


def rows_for(name: str, count: int = 24) -> list[dict[str, torch.Tensor]]:
    """Random rows of different lengths; a prompt of two tokens has no labels."""
    task, generator = zoo.ZOO[name].task, torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        length = 6 + index % 4
        row = {"input_ids": torch.randint(2, 256, (length,), generator=generator)}
        if task == "image-classification":
            row = {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": torch.tensor(index % 5)}
        elif task == "sequence-classification":
            row["labels"] = torch.tensor(index % 5)
        elif task == "question-answering":
            row |= {"start_positions": torch.tensor(index % 3), "end_positions": torch.tensor(3)}
        else:
            high = 5 if task == "token-classification" else 256
            row["labels"] = torch.randint(0, high, (length,), generator=generator)
            row["labels"][:2] = -100
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", MEASURES)
def test_every_task_is_compressed_on_rows_and_measured_on_others(name: str) -> None:
    model = zoo.build(name)
    result = lpc.compress(model, rows_for(name), 0.15, tune=TUNE, data_options=DATA)
    assert sum(p.numel() for p in result.model.parameters()) <= 0.85 * sum(p.numel() for p in model.parameters())
    assert type(result.model).__module__.startswith("transformers.models.")
    assert type(result.model).__name__.removeprefix("Mistral") in type(model).__name__
    heldout = result.report.heldout
    assert heldout is not None
    assert (heldout.rows, heldout.context_length) == (6, None)
    assert set(heldout.measures) == MEASURES[name]
    assert all(measure.removed is not None for measure in heldout.measures.values())


def test_the_measures_are_those_of_the_held_out_rows() -> None:
    name = "bert-sequence-classification"
    model, rows = zoo.build(name), rows_for(name)
    material = prepare(load_source(model), rows, DATA)
    train = [tuple(row["input_ids"].tolist()) for row in (material.train[i] for i in range(len(material.train)))]
    heldout = [row for row in rows if tuple(row["input_ids"].tolist()) not in train]
    assert (len(train), len(heldout)) == (18, 6)
    result = lpc.compress(model, rows, 0.15, tune=TUNE, data_options=DATA)
    assert result.report.heldout is not None
    found, untuned = result.report.heldout.measures, lpc.apply(result.plan, model)
    expected = {"dense": model, "removed": untuned.model, "pruned": result.model}
    for stage, each in expected.items():
        quality = lpc.quality(each, heldout)
        assert getattr(found["loss"], stage) == pytest.approx(quality.loss, rel=1e-4), stage
        assert getattr(found["accuracy"], stage) == quality.accuracy, stage


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("bert-sequence-classification", AutoModelForSequenceClassification),
        ("vit", AutoModelForImageClassification),
    ],
)
def test_a_saved_result_loads_as_stock_and_scores_the_same_through_onnx(name: str, auto: type, tmp_path: Path) -> None:
    rows = rows_for(name)
    result = lpc.compress(zoo.build(name), rows, 0.15, tune=TUNE, data_options=DATA)
    report = result.save(tmp_path / "out")
    loaded = auto.from_pretrained(tmp_path / "out" / "hf").eval()
    in_torch, in_onnx = lpc.quality(result.model, rows), lpc.quality(tmp_path / "out" / "onnx", rows)
    assert lpc.quality(loaded, rows) == lpc.quality(tmp_path / "out" / "hf", rows) == in_torch
    assert in_onnx.loss == pytest.approx(in_torch.loss, rel=1e-4)
    assert in_onnx.accuracy == in_torch.accuracy
    values = json.loads((tmp_path / "out" / "lpc.json").read_text())
    assert values["heldout"]["measures"]["accuracy"]["pruned"] == report.heldout.measures["accuracy"].pruned
    assert "| accuracy |" in (tmp_path / "out" / "report.md").read_text()


def test_a_seq2seq_result_is_saved_and_scored(tmp_path: Path) -> None:
    rows = rows_for("t5")
    result = lpc.compress(zoo.build("t5"), rows, 0.15, tune=TUNE, data_options=DATA)
    result.save(tmp_path / "out", export=["hf"])
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out" / "hf").eval()
    assert lpc.quality(loaded, rows) == lpc.quality(result.model, rows)


def test_the_graphs_of_an_encoder_decoder_are_not_scored(tmp_path: Path) -> None:
    zoo.build("t5").save_pretrained(tmp_path)
    (tmp_path / "encoder_model.onnx").write_bytes(b"")
    with pytest.raises(lpc.UnsupportedModelError, match="encoder-decoder"):
        lpc.quality(tmp_path, rows_for("t5"))


def test_the_image_processor_lies_in_both_folders(tmp_path: Path) -> None:
    zoo.build("vit").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    result = lpc.compress(tmp_path / "model", rows_for("vit"), 0.15, tune=TUNE, data_options=DATA)
    result.save(tmp_path / "out")
    for folder in ("hf", "onnx"):
        assert (tmp_path / "out" / folder / "preprocessor_config.json").read_text() == '{"image_mean": [0.5]}'


def test_an_adapter_of_the_users_own_goes_on_with_any_task() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        zoo.build("bert-sequence-classification"), LoraConfig(r=2, target_modules=["query", "value"])
    )
    result = lpc.compress(model, rows_for("bert-sequence-classification"), 0.15, tune=TUNE, data_options=DATA)
    assert result.report.heldout is not None
    assert result.report.heldout.measures["accuracy"].removed is None


class MineForSequenceClassification(BertForSequenceClassification):
    """A user's own class, which transformers does not know."""


def test_a_class_of_the_users_own_is_compressed_and_saved(tmp_path: Path) -> None:
    model = MineForSequenceClassification(zoo.ZOO["bert-sequence-classification"].config())
    rows = rows_for("bert-sequence-classification")
    result = lpc.compress(model, rows, 0.15, tune=TUNE, data_options=DATA)
    result.save(tmp_path / "out", export=["hf"])
    loaded = MineForSequenceClassification.from_pretrained(tmp_path / "out" / "hf").eval()
    assert lpc.quality(loaded, rows) == lpc.quality(result.model, rows)
    with pytest.raises(lpc.UnsupportedModelError, match="MineForSequenceClassification"):
        lpc.quality(tmp_path / "out" / "hf", rows)


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("bert-sequence-classification", {"custom_code": True}, "kv_groups"),
        ("llama-sequence-classification", {"query_heads": True}, "query_heads"),
    ],
)
def test_a_plan_for_other_heads_is_replayed(name: str, options: dict[str, bool], width: str, tmp_path: Path) -> None:
    model, rows = zoo.build(name), rows_for(name)
    result = lpc.compress(model, rows, 0.25, tune=TUNE, data_options=DATA, trace=lpc.TraceOptions(**options))
    assert result.report.widths[width].most < result.report.widths[width].dense
    result.save(tmp_path / "out", export=["hf"])
    assert lpc.quality(tmp_path / "out" / "hf", rows) == lpc.quality(result.model, rows)
    replayed = lpc.apply(tmp_path / "out" / "plan.json", model, adapter=tmp_path / "out" / "adapter").model
    for key, value in result.model.state_dict().items():
        assert torch.equal(replayed.state_dict()[key], value), key


def test_a_plan_of_a_vision_model_is_replayed_from_its_adapter(tmp_path: Path) -> None:
    model = zoo.build("vit")
    result = lpc.compress(model, rows_for("vit"), ratio=0.2, tune=TUNE, data_options=DATA)
    result.save(tmp_path / "out", export=["hf"])
    again = lpc.apply(tmp_path / "out" / "plan.json", model, adapter=tmp_path / "out" / "adapter")
    for name, value in result.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), value), name


def test_rows_and_text_options_do_not_mix() -> None:
    with pytest.raises(lpc.OptionError, match="sequence_length is for text"):
        lpc.compress(zoo.build("vit"), rows_for("vit"), 0.15, data_options=lpc.DataOptions(sequence_length=32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"input_ids": [5, 6]}], "has no labels"),
        ([{"input_ids": [5, 6], "labels": 1, "idx": 0}], "has idx, which BertForSequenceClassification does not take"),
        ([{"input_ids": [5, 6], "labels": 1}], "one row cannot be split"),
        ([[5, 6, 7]], "is a list, not a dict"),
        (datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}), "the data set has text"),
        (["a text"], "no such file"),
    ],
)
def test_data_that_are_no_rows_of_the_model_are_refused(data: object, message: str) -> None:
    with pytest.raises((lpc.DataError, lpc.MissingFileError), match=message):
        lpc.compress(zoo.build("bert-sequence-classification"), data, 0.15, tune=TUNE)


def test_impossible_options_are_refused() -> None:
    for name in ("heldout_rows", "heldout_sequences"):
        with pytest.raises(lpc.OptionError, match=f"{name} must be at least 1"):
            DataOptions(**{name: 0})

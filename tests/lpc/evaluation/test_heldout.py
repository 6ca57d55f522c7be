"""Scores against sums written out by hand, in torch and through onnxruntime."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from torch.nn.functional import cross_entropy

from exporters.onnx import export_onnx
from exporters.options import OnnxOptions
from lpc.evaluation import quality
from passes.errors import DataError, MissingFileError, ModelError, OptionError, UnsupportedModelError

LENGTHS = (7, 3, 5, 6, 4)


def _rows(name: str, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Five rows of different lengths (images: five images) with random labels, some of them ignored."""
    task, generator = zoo.ZOO[name].task, torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(2 if high > 5 else 0, high, shape, generator=generator)

    if task == "image-classification":
        return [{"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": draw(5)} for _ in LENGTHS]
    rows = []
    for length in LENGTHS:
        row = {"input_ids": draw(256, length)}
        if task == "sequence-classification":
            row["labels"] = draw(5)
        elif task == "question-answering":
            row |= {"start_positions": draw(2), "end_positions": 1 + draw(2)}
        else:
            row["labels"] = draw(5 if task == "token-classification" else 256, length)
            row["labels"][1] = -100
        rows.append(row)
    return rows


TASKS = ["bert-sequence-classification", "llama-sequence-classification", "vit", "bert-token-classification", "bert"]


@torch.no_grad()
def _by_hand(model: torch.nn.Module, rows: list[dict[str, torch.Tensor]]) -> tuple[list[float], list[bool]]:
    """Loss and hit of every label, row by row without padding."""
    losses, hits = [], []
    for row in rows:
        labels = row["labels"].view(-1)
        output = model(**{name: value[None] for name, value in row.items() if name != "labels"})
        logits = output.logits.view(-1, output.logits.shape[-1])
        for logit, label in zip(logits, labels, strict=True):
            if int(label) != -100:
                losses.append(float(cross_entropy(logit, label)))
                hits.append(int(logit.argmax()) == int(label))
    return losses, hits


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_loss_and_accuracy_are_means_over_labels_whatever_the_batch(name: str, batch_size: int) -> None:
    model, rows = zoo.build(name), _rows(name)
    losses, hits = _by_hand(model, rows)
    found = quality(model, rows, batch_size=batch_size)
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found.accuracy == pytest.approx(sum(hits) / len(hits))
    assert (found.rows, found.labels) == (5, len(losses))
    assert (found.perplexity is None) == (name != "bert")


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_answer_is_right_if_both_ends_are(batch_size: int) -> None:
    model, rows = zoo.build("bert-question-answering"), _rows("bert-question-answering")
    ends, losses = [], []
    for row in rows:
        output = model(input_ids=row["input_ids"][None])
        ends.append((int(output.start_logits.argmax()), int(output.end_logits.argmax())))
        start = cross_entropy(output.start_logits, row["start_positions"][None])
        losses.append(float(start + cross_entropy(output.end_logits, row["end_positions"][None])) / 2)
    assert quality(model, rows, batch_size=batch_size).loss == pytest.approx(sum(losses) / 5, rel=1e-4)
    right = [{**row, "start_positions": a, "end_positions": b} for row, (a, b) in zip(rows, ends, strict=True)]
    assert quality(model, right, batch_size=batch_size).accuracy == 1
    right[0]["start_positions"] = (ends[0][0] + 1) % LENGTHS[0]
    right[1]["end_positions"] = (ends[1][1] + 1) % LENGTHS[1]
    assert quality(model, right, batch_size=batch_size).accuracy == pytest.approx(3 / 5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2", "t5", "bart"])
def test_language_models_have_a_perplexity_and_no_accuracy(name: str) -> None:
    model, rows = zoo.build(name), _rows(name)
    total, labels = 0.0, 0
    for row in rows:
        logits = model(**{key: value[None] for key, value in row.items()}).logits[0]
        wanted = row["labels"]
        if name == "qwen2":
            logits, wanted = logits[:-1], wanted[1:]
        total += float(cross_entropy(logits, wanted, reduction="sum"))
        labels += int((wanted != -100).sum())
    found = quality(model, rows, batch_size=2)
    assert found.loss == pytest.approx(total / labels, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(total / labels), rel=1e-3)
    assert found.accuracy is None
    assert found.labels == labels
    assert set(found.measures) == {"loss", "perplexity"}


def test_a_regression_has_a_loss_only() -> None:
    model = zoo.build("bert-sequence-classification", num_labels=1)
    rows = [{"input_ids": row["input_ids"], "labels": float(i)} for i, row in enumerate(_rows("bert"))]
    with torch.no_grad():
        errors = [float(model(input_ids=row["input_ids"][None]).logits) - row["labels"] for row in rows]
    found = quality(model, rows)
    assert found.loss == pytest.approx(sum(error**2 for error in errors) / 5, rel=1e-4)
    assert set(found.measures) == {"loss"}


def test_a_model_comes_back_as_it_was() -> None:
    model = zoo.build("bert-sequence-classification").train()
    first = quality(model, _rows("bert-sequence-classification"))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert quality(model.eval(), _rows("bert-sequence-classification")) == first


class Graph(torch.nn.Module):
    """A model with positional inputs and a tuple of outputs, for torch.onnx.export."""

    def __init__(self, model: torch.nn.Module, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, values, strict=True)))
        return tuple(output[name] for name in self.outputs)


def _export(name: str, folder: Path) -> torch.nn.Module:
    model, task = zoo.build(name), zoo.ZOO[name].task
    batch = zoo.inputs(name, zoo.ZOO[name])
    names = list(batch)
    outputs = ["start_logits", "end_logits"] if task == "question-answering" else ["logits"]
    axes = {0: "batch", 1: "tokens"} if "input_ids" in batch else {0: "batch"}
    folder.mkdir()
    torch.onnx.export(
        Graph(model, names, outputs),
        tuple(batch.values()),
        str(folder / "model.onnx"),
        input_names=names,
        output_names=outputs,
        dynamic_axes=dict.fromkeys(names, axes),
        dynamo=False,
    )
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize(
    "name", ["bert-sequence-classification", "vit", "bert-token-classification", "bert", "bert-question-answering"]
)
def test_an_onnx_folder_scores_as_its_model(name: str, tmp_path: Path) -> None:
    model = _export(name, tmp_path / "onnx")
    rows = _rows(name)
    expected, found = quality(model, rows, batch_size=2), quality(tmp_path / "onnx", rows, batch_size=2)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.accuracy == expected.accuracy
    assert (found.rows, found.labels) == (expected.rows, expected.labels)


def test_a_checkpoint_scores_as_its_model(tmp_path: Path) -> None:
    model = zoo.build("bert-sequence-classification")
    model.save_pretrained(tmp_path)
    rows = _rows("bert-sequence-classification")
    assert quality(str(tmp_path), rows) == quality(model, rows)


def test_a_decoder_s_graph_with_a_cache_scores_as_its_model(tmp_path: Path) -> None:
    model = build_model("llama")
    export_onnx(model, build_tokenizer(), tmp_path, OnnxOptions(greedy_prompts=0))
    ids = torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": each, "labels": each} for each in ids]
    expected, found = quality(model, rows), quality(tmp_path, rows, batch_size=2)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert (found.labels, found.perplexity) == (expected.labels, pytest.approx(expected.perplexity, rel=1e-4))


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    model = zoo.build("bert-token-classification")
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        quality(model, _rows("bert-token-classification"), batch_size=0)
    with pytest.raises(DataError, match="no row has a label other than -100"):
        quality(model, [{"input_ids": [5, 6], "labels": [-100, -100]}])
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        quality(tmp_path, [])
    model.config.architectures = ["BertForTokenClassification"]
    model.config.save_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="onnxruntime cannot load"):
        quality(tmp_path, _rows("bert-token-classification"))
    model.config.architectures = ["BertForNextSentencePrediction"]
    model.config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="BertForNextSentencePrediction has no task"):
        quality(tmp_path, _rows("bert-token-classification"))

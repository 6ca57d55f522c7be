"""Loss, accuracy and perplexity of a model on rows: a live model, a checkpoint, or an ONNX folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from exporters.hf import reload
from lpc.data import IGNORED, Collator, Row, RowFormat, Rows, RowsLike, open_rows
from lpc.evaluation.perplexity import BATCH_SIZE, exp
from lpc.evaluation.quality import Quality
from lpc.evaluation.similarity import Texts, embedded, similarity_quality
from lpc.source import load_config, read_pooling
from passes.errors import DataError, MissingFileError, ModelError, UnsupportedModelError
from passes.models import (
    SENTENCE_EMBEDDING,
    Pooling,
    Task,
    TokenHead,
    base_model,
    evaluation_mode,
    label_losses,
    model_class,
    task_of,
    vendor,
)
from passes.options import RunOptions

__all__ = ["embedding_quality", "quality", "quality_of"]

Outputs: TypeAlias = "Mapping[str, torch.Tensor]"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a model makes of a batch: the mean loss of its labels, and how many are right; None where none can be."""

    loss: float
    right: int | None


def quality(
    model: PreTrainedModel | PeftModel | str | Path, rows: RowsLike, *, batch_size: int = BATCH_SIZE
) -> Quality:
    """How good a model is on rows with its inputs and labels.

    ``model`` is live, a checkpoint folder (``OUT/hf``) or an ONNX folder (``OUT/onnx``, run by onnxruntime on the CPU).
    A live model comes back as it was. Raises OptionError, MissingFileError, DataError, ModelError, and
    UnsupportedModelError for an ONNX folder whose graph needs more than the rows' inputs.
    """
    RunOptions(batch_size=batch_size)
    if isinstance(model, str | Path):
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise MissingFileError(
                f"there is no config.json in {folder}: name OUT/hf or OUT/onnx, or another such folder"
            )
        if (folder / "model.onnx").is_file():
            return _quality_onnx(folder, rows, batch_size)
        if any(folder.glob("*.onnx")):
            raise UnsupportedModelError(
                f"{folder} holds the graphs of an encoder-decoder, which lpc.quality does not run: name OUT/hf instead"
            )
        model = reload(folder)
    base = base_model(model)
    return quality_of(model, open_rows(rows, RowFormat.of(type(base), base.config)), batch_size=batch_size)


def quality_of(model: PreTrainedModel | PeftModel, rows: Rows, *, batch_size: int = BATCH_SIZE) -> Quality:
    """How good a live model is, which comes back in its modes. Raises DataError if no row has a label, ModelError."""
    base = base_model(model)
    if rows.format.task is Task.FEATURE_EXTRACTION:
        return embedding_quality(model, rows, batch_size)
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    collate, head = Collator.of(base.config, task_of(base), parameter.dtype), TokenHead.of(base)

    def run(batch: Row) -> Judged:
        inputs = {name: value.to(parameter.device) for name, value in batch.items()}
        if head is not None:
            losses, right = label_losses(model, inputs, inputs.pop("labels"), head)
            hits = int(right.sum()) if rows.format.task is Task.MASKED_LM else None
            return Judged(loss=float(losses.cpu().double().mean()), right=hits)
        output = model(**inputs)
        outputs = {name: value.cpu() for name, value in output.items() if name.endswith("logits")}
        if rows.format.task is Task.QUESTION_ANSWERING:
            return _off_padding(outputs, base.config, batch)
        return Judged(loss=float(output.loss), right=_right(rows.format.task, outputs, batch))

    with evaluation_mode(model), torch.no_grad():
        return _total(run, _batches(rows, collate, batch_size), rows.format, len(rows))


def embedding_quality(model: PreTrainedModel | PeftModel, rows: Texts, batch_size: int) -> Quality:
    """How well a live model's vectors keep what the rows' ``labels`` say of likeness."""
    rows = [rows[index] for index in range(len(rows))]
    wanted = torch.stack([row["labels"] for row in rows])
    return similarity_quality(torch.cat(list(embedded(model, rows, batch_size))), wanted)


def _quality_onnx(folder: Path, data: RowsLike, batch_size: int) -> Quality:
    import onnxruntime

    config = load_config(folder)
    kind = model_class(config)
    task, rows = task_of(kind), open_rows(data, RowFormat.of(kind, config))
    try:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base class
        raise ModelError(f"onnxruntime cannot load {folder / 'model.onnx'}: {error}") from error
    inputs, names = [each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]

    caches = {each.name: each for each in session.get_inputs() if each.name.startswith("past_key_values")}

    def answers(batch: Row) -> dict[str, torch.Tensor]:
        batch = {**_past_of(caches, len(batch["input_ids"])), **_places(batch)} if caches else batch
        if "token_type_ids" in inputs and "token_type_ids" not in batch:  # the model itself takes zeros then
            batch = {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}
        _check_inputs(folder, inputs, batch)
        found = session.run(None, {name: batch[name].numpy() for name in inputs})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    def run(batch: Row) -> Judged:
        outputs = answers(batch)
        if task is Task.QUESTION_ANSWERING:
            return _off_padding(outputs, config, batch)
        return Judged(loss=float(_loss(task, config, outputs, batch)), right=_right(task, outputs, batch))

    collate = Collator.of(config, task, _image_dtype(session))
    if task is Task.FEATURE_EXTRACTION:
        return _vectors_onnx(folder, answers, [*_batches(rows, collate, batch_size)])
    return _total(run, _batches(rows, collate, batch_size), rows.format, len(rows))


def _vectors_onnx(folder: Path, answers: Callable[[Row], Mapping[str, torch.Tensor]], batches: list[Row]) -> Quality:
    """The quality of a graph's vectors, pooled inside it or else as the files beside it say."""
    pooling, found = read_pooling(folder) or Pooling(), list[torch.Tensor]()
    for batch in batches:
        outputs = answers(batch)
        inside = outputs.get(SENTENCE_EMBEDDING)
        pooled = pooling(outputs["last_hidden_state"], batch["attention_mask"]) if inside is None else inside.float()
        found.append(pooled)
    return similarity_quality(torch.cat(found), torch.cat([batch["labels"] for batch in batches]))


def _past_of(caches: Mapping[str, Any], batch: int) -> Row:
    """A decoder's caches of length zero."""
    from exporters.onnx import torch_type

    return {
        name: torch.zeros(batch, each.shape[1], 0, each.shape[3], dtype=torch_type(each.type))
        for name, each in caches.items()
    }


def _places(batch: Row) -> Row:
    """A batch of texts with the mask and the positions that a decoder's graph takes."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return {**batch, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


def _image_dtype(session: Any) -> torch.dtype:
    from exporters.onnx import torch_type

    types = {each.name: each.type for each in session.get_inputs()}
    return torch_type(types["pixel_values"]) if "pixel_values" in types else torch.float32


def _check_inputs(folder: Path, wanted: Iterable[str], batch: Row) -> None:
    missing = [name for name in wanted if name not in batch]
    if missing:
        raise DataError(f"the graph in {folder} wants {', '.join(missing)}, which the rows do not have")


def _off_padding(outputs: Outputs, config: PreTrainedConfig, batch: Row) -> Judged:
    """The answer without the logits of padding, with which the model's own loss grows."""
    padding = batch["attention_mask"] == 0
    found = {name: value.float().masked_fill(padding, -torch.inf) for name, value in outputs.items()}
    loss = float(_loss(Task.QUESTION_ANSWERING, config, found, batch))
    return Judged(loss=loss, right=_right(Task.QUESTION_ANSWERING, found, batch))


def _loss(task: Task, config: PreTrainedConfig, outputs: Outputs, batch: Row) -> torch.Tensor:
    """The loss that transformers' own model computes from these outputs."""
    if task is Task.QUESTION_ANSWERING:
        ends = (batch["start_positions"], batch["end_positions"])
        value = vendor.loss_named("ForQuestionAnswering")(outputs["start_logits"], outputs["end_logits"], *ends)
    elif task in (Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
        value = vendor.loss_named("ForSequenceClassification")(batch["labels"], outputs["logits"].float(), config)
    elif task is Task.CAUSAL_LM:
        logits, labels = outputs["logits"][:, :-1].float(), batch["labels"][:, 1:]
        value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    elif task is Task.TOKEN_CLASSIFICATION:
        value = vendor.loss_named("ForTokenClassification")(outputs["logits"], batch["labels"], config)
    else:
        value = vendor.loss_named("ForMaskedLM")(outputs["logits"], batch["labels"], outputs["logits"].shape[-1])
    return value


def _batches(rows: Rows, collate: Collator, size: int) -> Iterable[Row]:
    for start in range(0, len(rows), size):
        yield collate([rows[index] for index in range(start, min(start + size, len(rows)))])


@dataclass
class _Sums:
    loss: float = 0.0
    labels: int = 0
    right: int = 0
    has_classes: bool = field(default=True)


def _total(run: Callable[[Row], Judged], batches: Iterable[Row], row_format: RowFormat, rows: int) -> Quality:
    sums, task = _Sums(), row_format.task
    for batch in batches:
        labels = _labels(task, batch)
        if labels == 0:
            continue
        answer = run(batch)
        sums.loss += answer.loss * labels
        sums.labels += labels
        sums.has_classes &= answer.right is not None
        sums.right += answer.right or 0
    if sums.labels == 0:
        raise DataError("no row has a label other than -100")
    loss = sums.loss / sums.labels
    return Quality(
        loss=loss,
        accuracy=sums.right / sums.labels if sums.has_classes else None,
        perplexity=exp(loss) if task in (Task.CAUSAL_LM, Task.MASKED_LM, Task.SEQ2SEQ_LM) else None,
        rows=rows,
        labels=sums.labels,
    )


def _labels(task: Task, batch: Row) -> int:
    """How many labels the loss of a batch is the mean of."""
    if task is Task.QUESTION_ANSWERING:
        return len(batch["start_positions"])
    labels = batch["labels"]
    if task is Task.CAUSAL_LM:
        labels = labels[:, 1:]
    if task in (Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
        return len(labels)
    return int((labels != IGNORED).sum())


def _right(task: Task, outputs: Outputs, batch: Row) -> int | None:
    """How many labels of a batch are predicted; None where labels are no classes, or are a whole language's."""
    if task in (Task.CAUSAL_LM, Task.SEQ2SEQ_LM):
        return None
    if task is Task.QUESTION_ANSWERING:
        found = [outputs[f"{end}_logits"].argmax(-1) == batch[f"{end}_positions"].view(-1) for end in ("start", "end")]
        return int((found[0] & found[1]).sum())
    logits, labels = outputs["logits"], batch["labels"]
    if logits.shape[-1] == 1 or labels.is_floating_point():
        return None
    if task in (Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
        return int((logits.argmax(-1) == labels.view(-1)).sum()) if labels.numel() == len(logits) else None
    return int(((logits.argmax(-1) == labels) & (labels != IGNORED)).sum())

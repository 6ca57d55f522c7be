from __future__ import annotations

import pytest
import torch
import zoo

from lpc.data import Collator
from passes.errors import DataError, ModelError
from passes.models import Task


def tensors(**values: object) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_sequences_are_padded_on_the_right_each_with_its_own_value() -> None:
    batch = Collator(pad=9)(
        [
            tensors(input_ids=[1, 2, 3], token_type_ids=[1, 1, 1], labels=[4, 5, 6], decoder_input_ids=[7]),
            tensors(input_ids=[1], token_type_ids=[1], labels=[4], decoder_input_ids=[7, 8]),
        ]
    )
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3], [1, 9, 9]],
        "token_type_ids": [[1, 1, 1], [1, 0, 0]],
        "labels": [[4, 5, 6], [4, -100, -100]],
        "decoder_input_ids": [[7, 9], [7, 8]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }


def test_a_mask_that_is_there_stays_and_single_labels_are_stacked() -> None:
    rows = [
        tensors(input_ids=[1, 2], attention_mask=[0, 1], labels=3),
        tensors(input_ids=[1], attention_mask=[1], labels=4),
    ]
    batch = Collator(pad=None)(rows)
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 0]]
    assert batch["input_ids"].tolist() == [[1, 2], [1, 0]]
    assert batch["labels"].tolist() == [3, 4]


def test_images_are_stacked_in_the_models_dtype_and_labels_keep_theirs() -> None:
    rows = [{"pixel_values": torch.ones(3, 4, 4), "labels": torch.tensor([0.5, 1.0])}] * 2
    batch = Collator(None, torch.bfloat16)(rows)
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((2, 3, 4, 4), torch.bfloat16)
    assert batch["labels"].dtype == torch.float32
    assert "attention_mask" not in batch


def test_rows_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(DataError, match="all must have the same"):
        Collator(0)([tensors(input_ids=[1], labels=1), tensors(input_ids=[1])])
    with pytest.raises(DataError, match="pixel_values has different shapes"):
        Collator(0)([{"pixel_values": torch.ones(3, size, size)} for size in (4, 5)])


def test_a_classifier_without_a_padding_token_is_refused_and_others_are_not() -> None:
    config = zoo.ZOO["llama-sequence-classification"].config(pad_token_id=None)
    with pytest.raises(ModelError, match=r"llama classifier has no pad_token_id.*set model\.config\.pad_token_id"):
        Collator.of(config, Task.SEQUENCE_CLASSIFICATION)
    assert Collator.of(config, Task.CAUSAL_LM).pad is None
    assert Collator.of(zoo.ZOO["roberta"].config(), Task.MASKED_LM).pad == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert-token-classification", "llama-sequence-classification", "t5", "qwen2"])
def test_the_loss_of_a_padded_batch_is_that_of_the_bare_rows(name: str) -> None:
    model, task = zoo.build(name), Task(zoo.ZOO[name].task)
    rows = [tensors(input_ids=list(range(2, 2 + length)), labels=list(range(length))) for length in (5, 3)]
    if task is Task.SEQUENCE_CLASSIFICATION:
        rows = [{**row, "labels": torch.tensor(i)} for i, row in enumerate(rows)]
    elif task is Task.TOKEN_CLASSIFICATION:
        rows = [{**row, "labels": row["labels"] % 5} for row in rows]
    losses = [float(model(**{k: v[None] for k, v in row.items()}).loss) for row in rows]
    weights = {Task.SEQUENCE_CLASSIFICATION: (1, 1), Task.CAUSAL_LM: (4, 2)}.get(task, (5, 3))
    mean = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
    collate = Collator.of(model.config, task)
    assert float(model(**collate(rows)).loss) == pytest.approx(mean, rel=1e-4)

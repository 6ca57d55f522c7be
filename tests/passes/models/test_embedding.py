from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch.utils.data import default_collate
from transformers import PreTrainedModel

from passes.models import (
    Drawing,
    Pooling,
    PoolingMode,
    SentenceFiles,
    Task,
    drawn_around,
    embedding_loss,
    embeds,
    pooling_of,
    takes,
    task_of,
)

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])


def bert(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return hf.BertModel(hf.BertConfig(**{**SMALL, **changes})).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("mode", "places"),
    [
        (PoolingMode.MEAN, [[0, 1, 2, 3], [0, 1], [2, 3]]),
        (PoolingMode.CLS, [[0], [0], [2]]),
        (PoolingMode.LAST, [[3], [1], [3]]),
    ],
    ids=lambda value: str(value) if isinstance(value, PoolingMode) else "",
)
def test_pooling_reads_the_places_of_its_mode(mode: PoolingMode, places: list[list[int]], dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.stack([row[chosen].float().mean(0) for row, chosen in zip(hidden, places, strict=True)])
    torch.testing.assert_close(Pooling(mode=mode)(hidden, MASK), expected)
    unit = Pooling(mode=mode, normalise=True)(hidden, MASK)
    torch.testing.assert_close(unit, expected / expected.norm(dim=1, keepdim=True))


def test_the_loss_is_the_cosine_distance_and_the_mean_square_of_what_similarities_lack() -> None:
    found, wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 3.0], [0.0, 1.0]])
    half = 0.5**0.5
    expected = ((1 - half) + 0) / 2 + ((0 - half) ** 2 * 2) / 2
    assert float(embedding_loss(found, wanted)) == pytest.approx(expected)
    assert float(embedding_loss(wanted, wanted)) == pytest.approx(0, abs=1e-6)


def test_of_other_widths_the_similarities_alone_are_compared() -> None:
    wide = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    turned = torch.cat([wide, torch.zeros(4, 2)], 1)
    assert float(embedding_loss(turned, wide)) == pytest.approx(0, abs=1e-6)
    assert float(embedding_loss(turned.abs(), wide)) > 0.01


def test_only_labels_drawn_around_the_vectors_have_a_gradient_at_the_dense_model() -> None:
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for labels, least, most in (
        (vectors, 0.0, 1e-6),
        (drawn_around(vectors, torch.Generator().manual_seed(1)), 1e-3, 1.0),
    ):
        own = vectors.clone().requires_grad_(True)
        embedding_loss(own, labels).backward()
        assert own.grad is not None
        assert least <= float(own.grad.norm()) <= most


def test_a_batch_has_the_same_labels_drawn_each_time_and_no_other_tokens() -> None:
    rows = [{"input_ids": torch.tensor([1, 2, n]), "labels": torch.ones(4)} for n in range(2)]
    drawing = Drawing(default_collate)
    one, other, plain = drawing(rows), drawing(rows), default_collate(rows)
    assert torch.equal(one["labels"], other["labels"])
    assert torch.equal(one["input_ids"], plain["input_ids"])
    assert 0 < float((one["labels"] - plain["labels"]).norm()) < 1


@pytest.mark.parametrize("mode", PoolingMode)
def test_an_embedding_model_is_the_stock_one_with_a_loss(mode: PoolingMode) -> None:
    model, pooling = bert(), Pooling(mode=mode)
    ids, stock = torch.randint(0, 64, MASK.shape), copy.deepcopy(model)
    embeds(model, pooling)
    assert isinstance(model, hf.BertModel)
    assert type(model).__name__ == "BertModel"
    assert takes(model, "labels")
    assert takes(model, "token_type_ids")
    assert task_of(model) is Task.FEATURE_EXTRACTION
    assert pooling_of(copy.deepcopy(model)) == pooling
    with torch.no_grad():
        expected = stock(input_ids=ids, attention_mask=MASK)
        assert torch.equal(model(input_ids=ids, attention_mask=MASK)[0], expected[0])
        vectors = pooling(expected.last_hidden_state, MASK)
        found = model(input_ids=ids, attention_mask=MASK, labels=vectors.flip(0))
    assert float(found.loss) == pytest.approx(float(embedding_loss(vectors, vectors.flip(0))))
    assert torch.equal(found["sentence_embedding"], vectors)


def test_files_are_written_beside_the_weights_with_the_width_put_right(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    said = b'{"word_embedding_dimension": 384, "pooling_mode_mean_tokens": true}'
    files = SentenceFiles(
        files=(("1_Pooling/config.json", said), ("notes.txt", b"kept")), pooling="1_Pooling/config.json"
    )
    model = bert()
    embeds(model, Pooling(), files)
    model.save_pretrained(folder)
    assert (folder / "notes.txt").read_bytes() == b"kept"
    assert '"word_embedding_dimension": 16' in (folder / "1_Pooling" / "config.json").read_text()
    assert hf.AutoModel.from_pretrained(folder).config.architectures == ["BertModel"]

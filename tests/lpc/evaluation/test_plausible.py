"""A warning says what is wrong where the loss of the model as given cannot be right."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from test_frame import by_bytes
from transformers import PreTrainedModel

import lpc
from lpc.data.text import token_sequences
from lpc.evaluation import warn_of_loss, warn_of_text
from lpc.material import prepare
from lpc.source import load_source

TEXT = "The cat sat on the mat and the dog ran round the tree. " * 40


class NeedsBos(torch.nn.Module):
    """Knows every next token of a sequence that begins with ``bos``, or of one that does not; else it guesses."""

    def __init__(self, model: PreTrainedModel, bos: int, *, wants: bool) -> None:
        super().__init__()
        self.config, self._bos, self._wants = model.config, bos, wants
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: object) -> object:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        right = (input_ids[:, :1] == self._bos) == self._wants
        ahead = torch.nn.functional.one_hot(input_ids[:, 1:], self.config.vocab_size).float()
        logits[:, :-1] = 20 * ahead * right[..., None]
        return type("Output", (), {"logits": logits})()


@pytest.mark.parametrize(
    ("template", "wants", "message"),
    [
        (None, True, "with <s> in front"),
        ("<s> $A", False, "without <s> in front"),
        (None, False, None),
        ("<s> $A", True, None),
    ],
)
def test_text_begun_otherwise_than_the_model_knows_is_warned_of(
    template: str | None, wants: bool, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = by_bytes(template)
    model = NeedsBos(build_model("llama"), tokenizer.bos_token_id, wants=wants)
    blocks = token_sequences([TEXT], tokenizer, sequence_length=32).tensor
    warn_of_text(model, tokenizer, blocks, loss=1.0)
    assert [message in record.message for record in caplog.records] == ([True] if message else [])
    if message:
        assert f"perplexity {model.config.vocab_size} on held-out text" in caplog.text
        assert "and 1 with" in caplog.text


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (math.log(272) + 0.01, "worse than a guess among its 272 tokens"),
        (math.log(272) - 0.01, None),
        (math.nan, "hold NaN or infinite numbers"),
        (math.inf, "hold NaN or infinite numbers"),
    ],
)
def test_a_loss_worse_than_guessing_is_warned_of(
    loss: float, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_loss(loss, 272)
    assert [message in record.message for record in caplog.records] == ([True] if message else [])


def test_compress_warns_of_a_model_that_was_never_trained(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        small = {"steps": 0, "sequence_length": 16, "samples": 4}
        lpc.compress(build_model("llama"), [TEXT], 0.2, tokenizer=build_tokenizer(), **small)  # type: ignore[arg-type]
    assert caplog.text.count("worse than a guess among its 272 tokens") == 1


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_before_the_data_are_opened() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<x{index}>" for index in range(16)])
    for data in (["a"], "absent.txt", [{"input_ids": [1, 2], "labels": [1, 2]}]):
        with pytest.raises(lpc.TokenizerError, match=r"the model has 272 tokens and the tokenizer 1 beyond .*'<x15>'"):
            lpc.compress(build_model("llama"), data, 0.2, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["bert-sequence-classification", "qwen2", "t5"])
def test_one_added_pad_token_is_refused_for_any_model_until_its_embedding_has_a_row_for_it(name: str) -> None:
    tokenizer, model = build_tokenizer(), zoo.build(name)
    tokenizer.add_tokens([f"<x{index}>" for index in range(15)])
    rows = [{"input_ids": [1, 2, 3], "labels": 1 if "classification" in name else [1, 2, 3]}] * 4
    prepare(load_source(model, tokenizer), rows, lpc.DataOptions())
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(lpc.TokenizerError, match=r"the tokenizer 1 beyond .*'<pad>', 272"):
        prepare(load_source(model, tokenizer), rows, lpc.DataOptions())
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    prepare(load_source(model, tokenizer), rows, lpc.DataOptions())


def test_short_blocks_are_measured_without_a_second_beginning(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model("llama")
    warn_of_text(model, build_tokenizer(), torch.ones(2, 2, dtype=torch.int64), loss=1.0)
    warn_of_text(model, None, torch.ones(2, 8, dtype=torch.int64), loss=1.0)
    assert not caplog.records

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from lpc.evaluation import token_perplexity
from lpc.evaluation.perplexity import exp
from passes.errors import DataError, OptionError


def test_perplexity_equals_a_direct_computation(tiny_llama: PreTrainedModel) -> None:
    blocks = torch.randint(0, 257, (5, 12), generator=torch.Generator().manual_seed(0))
    found = token_perplexity(tiny_llama, blocks, batch_size=2)
    total = 0.0
    with torch.no_grad():
        for block in blocks:
            for position in range(1, 12):
                logits = tiny_llama(input_ids=block[None, :position]).logits[0, -1].double()
                total -= float(logits.log_softmax(-1)[block[position]])
    assert (found.tokens, found.context_length) == (55, 12)
    assert found.value == pytest.approx(math.exp(total / 55), rel=1e-5)


def test_tokens_without_a_label_are_not_counted(tiny_llama: PreTrainedModel) -> None:
    blocks = torch.randint(0, 257, (3, 8), generator=torch.Generator().manual_seed(0))
    labels = blocks.clone()
    labels[0, :4] = labels[2, 5] = -100
    with torch.no_grad():
        losses = -tiny_llama(input_ids=blocks).logits[:, :-1].log_softmax(-1).gather(-1, blocks[:, 1:, None])[..., 0]
    expected = losses[labels[:, 1:] != -100].double().mean()
    found = token_perplexity(tiny_llama, blocks, batch_size=2, labels=labels)
    assert (found.tokens, found.context_length) == (21 - 4, 8)
    assert found.value == pytest.approx(float(expected.exp()), rel=1e-5)
    with pytest.raises(DataError, match="all labels are -100"):
        token_perplexity(tiny_llama, blocks, labels=torch.full_like(blocks, -100))


def test_model_comes_back_in_its_modes(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.train()
    tiny_llama.model.norm.eval()
    before = [module.training for module in tiny_llama.modules()]
    token_perplexity(tiny_llama, torch.ones(1, 4, dtype=torch.int64))
    assert [module.training for module in tiny_llama.modules()] == before
    assert all(parameter.grad is None for parameter in tiny_llama.parameters())


def test_nan_in_the_weights_gives_nan(tiny_llama: PreTrainedModel) -> None:
    with torch.no_grad():
        tiny_llama.model.norm.weight[0] = math.nan
    assert math.isnan(token_perplexity(tiny_llama, torch.ones(1, 4, dtype=torch.int64)).value)


def test_impossible_blocks_raise(tiny_llama: PreTrainedModel) -> None:
    for shape in ((0, 4), (2, 1), (4,)):
        with pytest.raises(DataError, match="blocks"):
            token_perplexity(tiny_llama, torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        token_perplexity(tiny_llama, torch.zeros(2, 4, dtype=torch.int64), batch_size=0)


def test_exp_is_infinite_where_it_overflows() -> None:
    assert exp(1000.0) == math.inf
    assert exp(1.5) == math.exp(1.5)

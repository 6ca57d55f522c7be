from __future__ import annotations

import pytest
import torch
from conftest import build_model, build_tokenizer
from transformers import GenerationConfig

from lpc.data import BlockDataset
from lpc.evaluation import completions
from lpc.evaluation.completing import BEGINNING, NEW_TOKENS, prompts_in


def blocks(count: int, length: int = 64) -> torch.Tensor:
    return torch.arange(count * length).remainder(250).view(count, length)


def generated(model: torch.nn.Module, ids: list[int], end: int) -> list[int]:
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=256, eos_token_id=end)
    inputs = torch.tensor([ids])
    told = model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config)  # type: ignore[operator]
    return list(told[0, len(ids) :].tolist())


@pytest.mark.parametrize("place", [None, 3])
def test_completions_are_those_of_greedy_generate_each_to_its_own_end(place: int | None) -> None:
    model, tokenizer, text = build_model("llama"), build_tokenizer(), "The cat sat on the mat. " * 8
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]).view(4, -1)
    rows = BlockDataset(torch.stack([ids[0], ids[1].roll(1), ids[2].flip(0)]))
    prompts = list(prompts_in(rows))
    if place is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(generated(model, prompts[0], 256)[place])
    found = completions(model, tokenizer, rows)
    assert found[0][0] == "The cat sat on the mat. "
    for prompt, (_, said) in zip(prompts, found, strict=True):
        whole, end = generated(model, prompt, tokenizer.eos_token_id), tokenizer.eos_token_id
        assert said == tokenizer.decode(whole[:-1] if whole[-1] == end else whole, skip_special_tokens=True)


def test_model_comes_back_as_it_was_and_others_say_nothing() -> None:
    model = build_model("llama").train()
    assert completions(model, None, BlockDataset(blocks(2))) == ()
    completions(model, build_tokenizer(), BlockDataset(blocks(2)))
    assert all(module.training for module in model.modules())


def test_prompts_are_what_stands_before_the_labels_or_the_beginning() -> None:
    rows = blocks(9)
    assert list(prompts_in(BlockDataset(rows))) == [rows[place, :BEGINNING].tolist() for place in (0, 4, 8)]
    labels = rows.clone()
    labels[:, :5] = -100
    assert [len(prompt) for prompt in prompts_in(BlockDataset(rows, labels))] == [5, 5, 5]
    assert [len(prompt) for prompt in prompts_in(BlockDataset(blocks(1, 8)))] == [4]
    assert list(prompts_in(BlockDataset(blocks(2), torch.full((2, 64), -100)))) == []

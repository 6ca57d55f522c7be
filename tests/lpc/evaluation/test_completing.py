from __future__ import annotations

import logging

import pytest
import torch
from conftest import build_model, build_tokenizer
from transformers import GenerationConfig

from lpc.data import BlockDataset, chat_prompts
from lpc.evaluation import completions, prompts_in
from lpc.evaluation.completing import BEGINNING, NEW_TOKENS

CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"


def blocks(count: int, length: int = 64) -> torch.Tensor:
    return torch.arange(count * length).remainder(250).view(count, length)


def test_completions_are_those_of_greedy_generate() -> None:
    model, tokenizer, texts = build_model("llama"), build_tokenizer(), ["ABC", "The cat"]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    found = completions(model, tokenizer, prompts)
    assert [prompt for prompt, _ in found] == texts
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=256, eos_token_id=256)
    for ids, (_, text) in zip(prompts, found, strict=True):
        inputs = torch.tensor([ids])
        told = model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
        assert text == tokenizer.decode(told[0, len(ids) :], skip_special_tokens=True)


def test_model_comes_back_as_it_was_and_others_say_nothing() -> None:
    model = build_model("llama").train()
    assert completions(model, None, [[65]]) == ()
    completions(model, build_tokenizer(), [[65]])
    assert all(module.training for module in model.modules())


def test_prompts_are_what_stands_before_the_labels_or_the_beginning() -> None:
    rows = blocks(9)
    assert list(prompts_in(BlockDataset(rows))) == [rows[place, :BEGINNING].tolist() for place in (0, 4, 8)]
    labels = rows.clone()
    labels[:, :5] = -100
    assert [len(prompt) for prompt in prompts_in(BlockDataset(rows, labels))] == [5, 5, 5]
    assert [len(prompt) for prompt in prompts_in(BlockDataset(blocks(1, 8)))] == [4]
    assert list(prompts_in(BlockDataset(blocks(2), torch.full((2, 64), -100)))) == []


def test_chat_models_are_asked_questions_and_a_template_that_refuses_them_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = build_tokenizer()
    assert chat_prompts(tokenizer) == []
    tokenizer.chat_template = CHATML
    texts = [tokenizer.decode(ids) for ids in chat_prompts(tokenizer)]
    assert texts[0] == "<user>Name three colours of the rainbow.<me>"
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with caplog.at_level(logging.INFO):
        assert chat_prompts(tokenizer) == []
    assert "no chats are completed" in caplog.text

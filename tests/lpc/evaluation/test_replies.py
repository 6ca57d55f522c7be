"""Greedy answers to fixed prompts: against ``generate`` one prompt at a time; what is counted of them."""

from __future__ import annotations

import pytest
import torch
from chatting import chatting
from conftest import build_model
from transformers import GenerationConfig

from lpc.evaluation import Replies, RepliesCompared, Reply, check_asked, fixed_prompts, replies
from lpc.evaluation.replies import repeated
from lpc.report.answers import answer_rows
from passes.errors import DataError, TokenizerError
from passes.pipeline import plain

ASKED = ["Hi", "What is that?", "x"]


def test_answers_of_a_batch_are_those_of_each_prompt_alone() -> None:
    model, tokenizer = build_model("llama"), chatting()
    found = replies(model, tokenizer, ASKED, tokens=12)
    assert [each.prompt for each in found.given] == ASKED
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=256, pad_token_id=256)
    for each in found.given:
        text = f"<|im_start|>user\n{each.prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            said = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[
                0, ids.shape[1] :
            ]
        said = [token for token in said.tolist() if token != 256]
        assert each.text == tokenizer.decode(said, skip_special_tokens=True).strip()
        assert (each.tokens, each.repeated) == (len(said), repeated(said))


def test_an_answer_ends_where_the_model_ends_it() -> None:
    model, tokenizer = build_model("llama"), chatting()
    said = replies(model, tokenizer, ["Hi"], tokens=8).given[0]
    ids = tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        first = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert (said.ended, said.tokens) == (False, 8)
    model.generation_config.eos_token_id = [first]
    assert replies(model, tokenizer, ["Hi"], tokens=8).given[0] == Reply(
        prompt="Hi", text="", tokens=0, ended=True, repeated=0.0
    )


def test_answers_without_an_end_are_refused() -> None:
    tokenizer = chatting()
    tokenizer.eos_token = None
    with pytest.raises(TokenizerError, match="has an eos token"):
        replies(build_model("llama", eos_token_id=None), tokenizer, ["Hi"])


def test_a_template_that_writes_nothing_of_a_prompt_is_refused() -> None:
    tokenizer = chatting()
    tokenizer.chat_template = ""
    with pytest.raises(DataError, match="writes nothing of a prompt"):
        check_asked(build_model("llama"), tokenizer)


def test_there_are_fifty_prompts_each_once() -> None:
    assert len(set(fixed_prompts())) == len(fixed_prompts()) == 50
    assert all(prompt.strip() == prompt for prompt in fixed_prompts())


def test_what_two_models_answer_is_counted_and_told() -> None:
    def said(*texts: str, ended: bool) -> Replies:
        return Replies(
            given=tuple(
                Reply(prompt=str(n), text=t, tokens=len(t), ended=ended, repeated=0.5) for n, t in enumerate(texts)
            )
        )

    found = RepliesCompared.of(said("a", "bb", "c", ended=True), said("a", "b", "c", ended=False))
    assert (found.same, found.dense_ended, found.pruned_ended) == (2, 3, 0)
    assert (found.dense_tokens, found.pruned_tokens) == (4 / 3, 1.0)
    assert [row[1:] for row in answer_rows(plain(found))] == [
        ["3", "2"],
        ["3", "0"],
        ["1.3", "1.0"],
        ["50.0%", "50.0%"],
    ]


def test_what_is_said_again_is_counted_in_runs_of_three() -> None:
    assert repeated([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repeated([1, 1, 1, 1]) == pytest.approx(1 / 2)
    assert repeated([1, 2]) == 0.0

"""What a model's own text begins with and how its turns go: against what the template itself writes."""

from __future__ import annotations

import pytest
import torch
from chatting import BRACKETS, chatting
from conftest import build_model, build_tokenizer

from lpc.generation import Script
from lpc.generation.script import Turn
from passes.errors import DataError


def test_a_chat_is_what_the_template_writes_around_what_is_said() -> None:
    tokenizer = chatting()
    script = Script.of(build_model("llama"), tokenizer)
    assert script.is_chat
    user, assistant = script.turns
    said = [ord("h"), ord("i")]  # not the tokenizer's ids, but no template's either
    whole = [*script.opening, *said, user.end, *user.then, *said, assistant.end, *assistant.then]
    hi = tokenizer.decode(said)
    messages = [{"role": role, "content": hi} for role in ("user", "assistant", "user")]
    written = str(tokenizer.apply_chat_template(messages, tokenize=False))
    assert written == tokenizer.decode(whole) + hi + "<|im_end|>\n"
    assert script.marks == {user.end}


def test_without_a_template_a_text_begins_as_the_tokenizer_or_the_model_begins_one() -> None:
    tokenizer = build_tokenizer()
    script = Script.of(build_model("llama"), tokenizer)
    assert (script.opening, script.is_chat, script.marks) == ((256,), False, frozenset())
    assert script.turns == (Turn(end=256),)


def test_a_template_without_special_tokens_leaves_all_to_the_model() -> None:
    tokenizer = chatting(BRACKETS)
    script = Script.of(build_model("llama"), tokenizer)
    assert (script.is_chat, script.marks) == (True, frozenset())
    assert tokenizer.decode(script.opening) == "[Q] "
    assert [turn.end for turn in script.turns] == [tokenizer.eos_token_id]


def test_a_template_that_refuses_is_told_and_texts_are_written(caplog: pytest.LogCaptureFixture) -> None:
    script = Script.of(build_model("llama"), chatting("{{ raise_exception('only one turn') }}"))
    assert not script.is_chat
    assert "only one turn" in caplog.text


def test_special_tokens_and_rows_beyond_the_tokenizer_are_never_drawn() -> None:
    tokenizer = chatting()
    script = Script.of(build_model("llama"), tokenizer)
    user = script.allowed(272, torch.device("cpu"))[0]
    assert user.nonzero().flatten().tolist() == [*range(256), script.turns[0].end]


def test_no_tokenizer_and_no_token_to_begin_with_are_refused() -> None:
    model = build_model("llama", bos_token_id=None, eos_token_id=None)
    with pytest.raises(DataError, match="without a tokenizer"):
        Script.of(model, None)
    tokenizer = build_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a bos nor an eos"):
        Script.of(model, tokenizer)

"""Chats: only what the assistant says has labels, by the template's own marks or by comparison."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import build_tokenizer

from lpc.data.chat import Chat, Turns
from lpc.data.messages import messages_of
from passes.errors import DataError, TokenizerError

CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}"
    "{%- generation -%}{{ m.content + '</>' }}{%- endgeneration -%}{% else %}{{ m.content + '</>' }}{% endif %}"
    "{% endfor %}"
)
UNSTABLE = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ 'short' }}{% else %}{{ m.content }}{% endif %}{{ '</>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
    {"role": "user", "content": "?"},
]


def chat_with(template: str | None) -> Chat:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer)


def turns(messages: Any, where: str = "row 0") -> Turns:
    return Turns(where, messages_of(where, "messages", messages, CHATML))


def spelled(template: str, messages: list[dict[str, Any]]) -> tuple[str, str]:
    """The text, and what of it is an answer, read off the byte-level tokens."""
    (row,) = chat_with(template).rows([turns(messages)])
    tokenizer = build_tokenizer()
    return tokenizer.decode(row.ids), tokenizer.decode(row.ids[row.is_answer])


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_the_assistants_turns_are_answers(template: str) -> None:
    text, answers = spelled(template, TALK)
    assert text == ("<system>Be kind.</><user>Hello</><assistant>Hi!</><user>Bye</><assistant>So long</><user>?</>")
    assert answers == "Hi!</>So long</>"


def test_the_marks_stand_where_the_answers_do() -> None:
    (row,) = chat_with(CHATML).rows([turns(TALK)])
    text = "<system>Be kind.</><user>Hello</><assistant>"
    assert row.is_answer.tolist().index(True) == len(text)
    assert row.is_answer[len(text) :].tolist().index(False) == len("Hi!</>")


def test_a_template_that_changes_what_was_said_is_refused_unless_the_answer_is_the_last() -> None:
    with pytest.raises(DataError, match=r"row 7: .* \(at message 2\), so the answers cannot be told apart"):
        chat_with(UNSTABLE).rows([turns(TALK, "row 7")])
    assert spelled(UNSTABLE, TALK[:3])[1] == "Hi!</>"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("a chat", "`messages` must be a list of dicts"),
        (None, "`messages` must be a list of dicts"),
        (["a", "b"], "`messages` must be a list of dicts with role and content"),
        ([{"content": "a"}], "message 0: it must be a dict with role and content"),
        ([], "`messages` is empty"),
        ([{"role": "assistant", "content": "a"}], "begins with the assistant"),
    ],
)
def test_what_is_no_chat_is_refused(messages: object, message: str) -> None:
    with pytest.raises(DataError, match=f"row 3.*{message}"):
        chat_with(CHATML).rows([turns(messages, "row 3")])


def test_what_the_template_refuses_is_an_error_that_says_why() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="row 0: the tokenizer's chat template refuses the chat: roles must alternate"):
        chat_with(template).rows([turns(TALK)])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"no chat template: set tokenizer\.chat_template"):
        chat_with(None)


def test_a_chat_without_an_answer_has_none_marked() -> None:
    (row,) = chat_with(CHATML).rows([turns(TALK[:2])])
    assert not row.is_answer.any()

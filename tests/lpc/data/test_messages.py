"""Messages of every form become what a chat template reads: against the same chat written plainly."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import build_tokenizer
from transformers import PreTrainedTokenizerBase

from lpc.data.answers import AnsweredRows
from lpc.data.instructions import Columns, instruction_rows
from lpc.data.messages import messages_of
from lpc.data.records import open_records
from lpc.options import InstructionFormat
from passes.errors import DataError

PLAIN = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
CALLING = PLAIN.replace(
    "+ m.content", "+ m.content + (m.tool_calls[0].function.name if m.tool_calls is defined else '')"
)
MARKING = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '</>' }}{% endgeneration %}{% else %}{{ m.content + '</>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "clock", "arguments": {}}}


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def rows_of(row: dict[str, Any], template: str = PLAIN) -> AnsweredRows:
    records = open_records([row])
    columns = Columns.of(records.first)
    assert columns is not None
    tokenizer = tokenizer_with(template)
    return instruction_rows(records, columns, tokenizer, row_format=InstructionFormat(), length=512)


def spelled(row: dict[str, Any], template: str = PLAIN) -> tuple[str, str]:
    """The text of a row, and what of it is learnt."""
    (found,), tokenizer = rows_of(row, template).rows, build_tokenizer()
    return tokenizer.decode(found.ids), tokenizer.decode(found.ids[found.is_answer])


def say(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [say("system", "Be kind."), say("user", "Hello"), say("assistant", "Hi!")]},
    "parts": {"messages": [say("system", "Be kind."), say("user", PARTS), say("assistant", ["Hi", "!"])]},
    "ShareGPT": {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hello", "weight": 1},
            {"from": "GPT", "value": "Hi!"},
        ]
    },
    "roles in conversations": {
        "conversations": [say("system", "Be kind."), say("user", "Hello"), say("assistant", "Hi!")]
    },
    "TRL": {"prompt": [say("system", "Be kind."), say("user", "Hello")], "completion": [say("assistant", "Hi!")]},
    "filled in by a data set": {
        "messages": [
            {"role": "system", "content": "Be kind.", "tool_calls": None, "name": None},
            {"role": "user", "content": "Hello", "tool_calls": [], "name": None},
            {"role": "assistant", "content": "Hi!", "tool_calls": None, "name": "x"},
        ]
    },
}


@pytest.mark.parametrize("template", [PLAIN, CALLING, MARKING])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_chat_gives_the_same_text_and_answers(form: str, template: str) -> None:
    assert spelled(FORMS[form], template) == ("<system>Be kind.</><user>Hello</><assistant>Hi!</>", "Hi!</>")


@pytest.mark.parametrize("template", [PLAIN, MARKING])
def test_what_the_assistant_said_in_a_prompt_is_no_answer(template: str) -> None:
    row = {
        "prompt": [say("user", "a"), say("assistant", "b"), say("user", "c")],
        "completion": [say("assistant", "d"), say("user", "e"), say("assistant", "f")],
    }
    assert spelled(row, template)[1] == "d</>f</>"


def test_a_call_without_content_is_written_by_a_template_that_knows_calls() -> None:
    for content in ({}, {"content": None}, {"content": ""}):
        row = {"messages": [say("user", "When?"), {"role": "assistant", "tool_calls": [CALL], **content}]}
        assert spelled(row, CALLING) == ("<user>When?</><assistant>clock</>", "clock</>")


def test_messages_are_not_changed_in_the_users_hands() -> None:
    row = {"messages": [say("user", PARTS), {"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    messages_of("row 0", "messages", row["messages"], CALLING)
    assert row == {"messages": [say("user", PARTS), {"role": "assistant", "content": None, "tool_calls": [CALL]}]}


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [say("user", None)]}, "message 0 has no content and no tool_calls"),
    ({"messages": [{"role": "user"}]}, "message 0 has no content and no tool_calls"),
    (
        {"messages": [say("user", "a"), {"role": "assistant", "tool_calls": [CALL]}]},
        "message 1 has tool_calls, which the tokenizer's chat template does not write",
    ),
    ({"messages": [say("user", 3)]}, "message 0: `content` is a int, not a string or a list of parts"),
    ({"messages": [say("user", {"text": "a"})]}, "message 0: `content` is a dict"),
    ({"messages": [say("user", [{"type": "image_url"}])]}, "a part of type 'image_url', and only text is read"),
    ({"messages": [say("user", [{"type": "text"}])]}, "message 0: `text` is a NoneType"),
    ({"messages": [say("user", [3])]}, "a part of type 'int'"),
    ({"messages": [say("user", "a\ud800")]}, "message 0: `content` has half of a surrogate pair"),
    ({"messages": [say("user\udfff", "a")]}, "message 0: `role` has half of a surrogate pair"),
    ({"messages": [{"role": 3, "content": "a"}]}, "message 0: it must be a dict with role and content"),
    ({"messages": "a"}, "`messages` must be a list of dicts"),
    ({"messages": None}, "`messages` must be a list of dicts"),
    ({"messages": []}, "`messages` is empty"),
    ({"conversations": []}, "`conversations` is empty"),
    ({"conversations": [{"from": "narrator", "value": "a"}]}, "message 0 is from 'narrator': known are human, user"),
    ({"conversations": [{"from": "human"}]}, "message 0: `value` is a NoneType"),
    ({"conversations": [{"from": None, "value": "a"}]}, "message 0: `from` is a NoneType"),
    ({"prompt": [say("user", "a")], "completion": "b"}, "`completion` must be a list of dicts"),
    ({"prompt": "a", "completion": [say("assistant", "b")]}, "`prompt` must be a list of dicts"),
    ({"prompt": [], "completion": [say("assistant", "b")]}, "`prompt` is empty"),
    ({"prompt": [say("user", "a")], "completion": []}, "`completion` is empty"),
    ({"messages": [say("user", "a" * 1_000_001)]}, "has 1000001 characters, and a row at most 1000000"),
]


@pytest.mark.parametrize(("row", "message"), FAULTS)
def test_what_is_no_chat_is_one_error_that_names_the_message(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"row 0 of the data.*{message}"):
        rows_of(row)


USER, SAYS = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
BAD = {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [SAYS], "rejected": [BAD]},
        {"prompt": "2+2?", "chosen": [USER, SAYS], "rejected": [USER, BAD]},
        {"chosen": [USER, SAYS], "rejected": [USER, BAD]},
    ],
)
def test_preferences_teach_what_was_chosen_and_say_what_is_not_read(
    row: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert spelled(row) == spelled({"messages": [USER, SAYS]})
    assert "`rejected` is not read" in caplog.text
    assert spelled({"prompt": "2+2=", "chosen": "4", "rejected": "5"}) == spelled({"prompt": "2+2=", "completion": "4"})


def test_an_answer_that_is_not_to_be_learnt_is_refused() -> None:
    with pytest.raises(DataError, match="`label` is false, so its answer is none to learn"):
        rows_of({"prompt": "2+2=", "completion": "5", "label": False})
    assert rows_of({"prompt": "2+2=", "completion": "4", "label": True}).rows

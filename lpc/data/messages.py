"""Messages of a chat, as data have them, in the one form that chat templates read: dicts with role and content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lpc.data.documents import checked_text
from passes.errors import DataError

__all__ = ["ASSISTANT", "Message", "is_conversation", "messages_of"]

Message = dict[str, Any]

ASSISTANT = "assistant"

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "model": ASSISTANT,
    "system": "system",
    "tool": "tool",
}
"""The roles of those who speak in ShareGPT's form, ``{"from": ..., "value": ...}``."""


def is_conversation(value: object) -> bool:
    """Whether a value looks like a list of messages, of any form, and not like a text."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and (all(isinstance(each, Mapping) for each in value))
    )


def messages_of(where: str, name: str, value: object, template: str) -> list[Message]:
    """The messages in a field of a row, for a chat template.

    Read are ``role`` and ``content`` (also in parts, if all are text) and ShareGPT's ``from`` and ``value``. A message
    without content must have ``tool_calls``, and the template must write them. Raises DataError.
    """
    if not is_conversation(value):
        if isinstance(value, Sequence) and not isinstance(value, str) and not len(value):
            raise DataError(f"{where}: `{name}` is empty")
        raise DataError(f"{where}: `{name}` must be a list of dicts with role and content, or from and value")
    assert isinstance(value, Sequence)
    return [_message(f"{where}, message {turn}", each, template) for turn, each in enumerate(value)]


def _message(where: str, given: Mapping[str, Any], template: str) -> Message:
    if "role" not in given and "from" in given:
        return _shared(where, given)
    if not isinstance(given.get("role"), str):
        raise DataError(f"{where}: it must be a dict with role and content, or from and value")
    # data sets fill in the fields that only other rows have with None
    message = {name: value for name, value in given.items() if value is not None}
    message["role"] = checked_text(where, "role", given["role"])
    calls = message.get("tool_calls")
    if not calls:
        message.pop("tool_calls", None)
    elif "tool_calls" not in template:
        raise DataError(f"{where} has tool_calls, which the tokenizer's chat template does not write")
    message["content"] = "" if calls and "content" not in message else _content(where, message.get("content"))
    return message


def _shared(where: str, given: Mapping[str, Any]) -> Message:
    speaker = checked_text(where, "from", given["from"])
    role = SPEAKERS.get(speaker.strip().lower())
    if role is None:
        raise DataError(f"{where} is from {speaker[:40]!r}: known are {', '.join(SPEAKERS)}; rename it")
    return {"role": role, "content": checked_text(where, "value", given.get("value"))}


def _content(where: str, content: object) -> str:
    if content is None:
        raise DataError(f"{where} has no content and no tool_calls")
    if isinstance(content, str):
        return checked_text(where, "content", content)
    if not isinstance(content, Sequence):
        raise DataError(f"{where}: `content` is a {type(content).__name__}, not a string or a list of parts")
    return "".join(_part(where, part) for part in content)


def _part(where: str, part: object) -> str:
    if isinstance(part, str):
        return checked_text(where, "content", part)
    if not isinstance(part, Mapping) or part.get("type", "text") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise DataError(f"{where}: `content` has a part of type {str(kind)[:40]!r}, and only text is read")
    return checked_text(where, "text", part.get("text"))

"""Chats in tokens: the tokenizer's own chat template, with the assistant's turns as answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lpc.data.answers import Marked, TokenRow, token_rows
from passes.errors import DataError, TokenizerError

__all__ = ["Chat"]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
ASSISTANT = "assistant"


class Chat:
    """Tokenizes lists of messages, dicts with ``role`` and ``content``.

    A template that marks what the model is to say ({% generation %}) says where the answers are. Otherwise an answer
    is what the chat has more, up to and with an assistant's message, than before it and with the prompt to answer. That
    needs a template that only adds as the chat goes on. Raises TokenizerError if there is no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise TokenizerError(
                "the data have `messages` and the tokenizer has no chat template: set tokenizer.chat_template and hand "
                "it over with tokenizer=, or give `prompt` and `completion` instead"
            )
        self._tokenizer = tokenizer
        self._marks_itself = tokenizer.is_fast and GENERATION.search(tokenizer.get_chat_template()) is not None

    def rows(self, chats: Sequence[tuple[str, Any]]) -> list[TokenRow]:
        """The tokens of chats, each with the name of its place. Raises DataError."""
        checked = [(where, _messages(where, chat)) for where, chat in chats]
        if self._marks_itself:
            return [self._marked_by_template(where, messages) for where, messages in checked]
        return token_rows([self._compared(where, messages) for where, messages in checked], self._tokenizer)

    def _marked_by_template(self, where: str, messages: Sequence[Mapping[str, Any]]) -> TokenRow:
        found = self._apply(where, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return TokenRow.of(found["input_ids"], found["assistant_masks"])

    def _compared(self, where: str, messages: Sequence[Mapping[str, Any]]) -> Marked:
        text = self._render(where, messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            if turn == 0:
                raise DataError(f"{where}: the chat begins with the assistant, who has nothing to answer: remove that")
            before = self._render(where, messages[:turn], add_generation_prompt=True)
            through = self._render(where, messages[: turn + 1])
            if not (through.startswith(before) and text.startswith(through)):
                raise DataError(
                    f"{where}: the tokenizer's chat template writes the beginning of a chat otherwise once the chat "
                    f"goes on (at message {turn}), so the answers cannot be told apart: give it a template with "
                    "{% generation %} around them, or chats with one answer, at the end"
                )
            spans.append((len(before), len(through)))
        return Marked(text, tuple(spans), bare=False)

    def _render(self, where: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return str(self._apply(where, messages, tokenize=False, **options))

    def _apply(self, where: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(list(messages), **options)
        except Exception as error:  # a template may raise anything
            raise DataError(f"{where}: the tokenizer's chat template refuses the chat: {error}") from error


def _messages(where: str, chat: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(chat, list | tuple) or not all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in chat
    ):
        raise DataError(f"{where}: `messages` must be a list of dicts with role and content")
    if not chat:
        raise DataError(f"{where}: `messages` is empty")
    return chat

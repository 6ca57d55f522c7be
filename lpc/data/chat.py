"""Chats in tokens: the tokenizer's own chat template, with the assistant's turns as answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lpc.data.answers import Marked, TokenRow, token_rows
from lpc.data.messages import ASSISTANT, Message
from passes.errors import DataError, TokenizerError
from passes.models import reason

__all__ = ["Chat", "Turns"]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Turns:
    """One chat: its messages, of which those before ``given`` are the prompt, whoever says them."""

    where: str
    messages: Sequence[Message]
    given: int = 0

    def characters(self) -> int:
        """About how many are tokenized for it: its beginnings up to every turn."""
        return len(self.messages) * sum(len(message["content"]) for message in self.messages)


class Chat:
    """Tokenizes lists of messages, dicts with ``role`` and ``content``.

    A template that marks what the model is to say ({% generation %}) says where the answers are. Otherwise an answer
    is what the chat has more, up to and with an assistant's message, than before it and with the prompt to answer. That
    needs a template that only adds as the chat goes on. Raises TokenizerError if there is no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise TokenizerError(
                "the data are chats and the tokenizer has no chat template: set tokenizer.chat_template and hand "
                "it over with tokenizer=, or give `prompt` and `completion` instead"
            )
        self._tokenizer = tokenizer
        self.template: str = tokenizer.get_chat_template()
        self._marks_itself = tokenizer.is_fast and GENERATION.search(self.template) is not None

    def rows(self, chats: Sequence[Turns]) -> list[TokenRow]:
        """The tokens of chats. Raises DataError."""
        if self._marks_itself and not any(chat.given for chat in chats):
            return [self._marked_by_template(chat) for chat in chats]
        return token_rows([self._compared(chat) for chat in chats], self._tokenizer)

    def _marked_by_template(self, chat: Turns) -> TokenRow:
        found = self._apply(
            chat.where, chat.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return TokenRow.of(found["input_ids"], found["assistant_masks"])

    def _compared(self, chat: Turns) -> Marked:
        where, messages = chat.where, chat.messages
        text = self.render(where, messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != ASSISTANT or turn < chat.given:
                continue
            if turn == 0:
                raise DataError(f"{where}: the chat begins with the assistant, who has nothing to answer: remove that")
            before = self.render(where, messages[:turn], add_generation_prompt=True)
            through = self.render(where, messages[: turn + 1])
            if not (through.startswith(before) and text.startswith(through)):
                raise DataError(
                    f"{where}: the tokenizer's chat template writes the beginning of a chat otherwise once the chat "
                    f"goes on (at message {turn}), so the answers cannot be told apart: give it a template with "
                    "{% generation %} around them, or chats with one answer, at the end"
                )
            spans.append((len(before), len(through)))
        return Marked(text, tuple(spans), bare=False)

    def render(self, where: str, messages: Sequence[Message], **options: Any) -> str:
        """A chat as a text. Raises DataError if the template refuses it."""
        return str(self._apply(where, messages, tokenize=False, **options))

    def _apply(self, where: str, messages: Sequence[Message], **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(list(messages), **options)
        except Exception as error:  # a template may raise anything
            raise DataError(f"{where}: the tokenizer's chat template refuses the chat: {reason(error)}") from error

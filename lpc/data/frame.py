"""The frame of a text: the tokens that a tokenizer puts before and after it by itself."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from passes.errors import TokenizerError

__all__ = ["TextFrame", "check_size", "highest_id"]

SAMPLE = "a"
"""Any text will do: what is put around it does not depend on it."""


@dataclass(frozen=True)
class TextFrame:
    """What stands around every text in tokens: ``opening`` (mostly bos, or nothing) and ``closing`` (mostly nothing).

    A model that was trained with an opening is in a state that it knows only behind one.
    """

    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextFrame:
        """Read off a text tokenized with and without special tokens, whatever adds them (a flag, a template, code).

        Raises TokenizerError where the one is not in the other.
        """
        bare = list(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])
        whole = list(tokenizer(SAMPLE)["input_ids"])
        for begin in range(len(whole) - len(bare) + 1):
            if whole[begin : begin + len(bare)] == bare and bare:
                return cls(tuple(whole[:begin]), tuple(whole[begin + len(bare) :]))
        raise TokenizerError(
            f"the tokenizer makes {whole} of {SAMPLE!r}, and {bare} without special tokens: how it begins a text "
            "cannot be told from that; give the tokenizer that the model was trained with"
        )


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest token id; -1 if there is none. Ids need not be without gaps."""
    return max(tokenizer.get_vocab().values(), default=-1)


def check_size(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raises TokenizerError if a token of the tokenizer has no row in the embedding of a model."""
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= vocabulary)
    if beyond:
        raise TokenizerError(
            f"the model has {vocabulary} tokens and the tokenizer {len(beyond)} beyond them (the first: "
            f"{beyond[0][1]!r}, {beyond[0][0]}): it belongs to another model, or tokens were added to it; give the "
            "model's own, or call model.resize_token_embeddings and hand over that model"
        )

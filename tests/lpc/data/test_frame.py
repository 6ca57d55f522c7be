"""Blocks begin as their tokenizer begins a text: one test a family of tokenizers, against its own encoding."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import build_model
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lpc.data import TextFrame, check_size
from lpc.data.frame import highest_id
from lpc.data.text import token_sequences
from lpc.material import prepare
from lpc.options import DataOptions
from lpc.source import load_source
from passes.errors import DataError, OptionError, TokenizerError

MARKS = ("<s>", "</s>", "<g>")
TEXTS = ["The cat sat on the mat. ", "A dog barked at it", "ran. " * 40]


def by_bytes(single: str | None = None, **options: object) -> PreTrainedTokenizerFast:
    """A token a byte; ``single`` is the template of a post-processor."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    if single is not None:
        ids = [(mark, backend.token_to_id(mark)) for mark in MARKS]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"bos_token": "<s>", "eos_token": "</s>", **options})


def pieces(bos: str, eos: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The smallest vocabulary of a SentencePiece-like BPE: letters, marks and the blank."""
    letters = [chr(code) for code in range(33, 127)]
    names = ["<unk>", "<pad>", "<mask>", bos, eos, "▁", *letters, *(f"<0x{byte:02X}>" for byte in range(256))]
    return {name: index for index, name in enumerate(dict.fromkeys(names))}, []


def llama(**flags: bool) -> PreTrainedTokenizerBase:
    vocab, merges = pieces("<s>", "</s>")
    return LlamaTokenizer(vocab=vocab, merges=merges, **flags)


def gemma() -> PreTrainedTokenizerBase:
    vocab, merges = pieces("<bos>", "<eos>")
    return GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


def gpt2(**flags: bool) -> PreTrainedTokenizerBase:
    vocab = {symbol: i for i, symbol in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"])}
    return GPT2Tokenizer(vocab=vocab, merges=[], **flags)


FAMILIES: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], list[str], list[str]]] = {
    "none": (by_bytes, [], []),
    "bos by template": (lambda: by_bytes("<s> $A"), ["<s>"], []),
    "bos and eos by template": (lambda: by_bytes("<s> $A </s>"), ["<s>"], ["</s>"]),
    "eos alone": (lambda: by_bytes("$A </s>"), [], ["</s>"]),
    "two tokens before": (lambda: by_bytes("<g> <s> $A"), ["<g>", "<s>"], []),
    "one that is not bos": (lambda: by_bytes("<g> $A", bos_token=None), ["<g>"], []),
    "neither bos nor eos": (lambda: by_bytes(bos_token=None, eos_token=None), [], []),
    "llama, add_bos_token": (lambda: llama(add_bos_token=True), ["<s>"], []),
    "llama, add_bos_token and add_eos_token": (
        lambda: llama(add_bos_token=True, add_eos_token=True),
        ["<s>"],
        ["</s>"],
    ),
    "llama, neither": (lambda: llama(add_bos_token=False, add_eos_token=False), [], []),
    "gemma": (gemma, ["<bos>"], []),
    "gpt2, as it is": (gpt2, [], []),
    "gpt2, add_bos_token": (lambda: gpt2(add_bos_token=True), ["<|endoftext|>"], []),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[PreTrainedTokenizerBase, list[int], list[int]]:
    build, before, after = FAMILIES[request.param]
    tokenizer = build()
    return tokenizer, tokenizer.convert_tokens_to_ids(before), tokenizer.convert_tokens_to_ids(after)


def test_frame_is_what_the_tokenizer_puts_around_a_text(
    family: tuple[PreTrainedTokenizerBase, list[int], list[int]],
) -> None:
    tokenizer, before, after = family
    assert TextFrame.of(tokenizer) == TextFrame(tuple(before), tuple(after))


@pytest.mark.parametrize("length", [5, 8, 64])
def test_every_block_begins_as_a_text_and_no_token_is_lost(
    length: int, family: tuple[PreTrainedTokenizerBase, list[int], list[int]]
) -> None:
    tokenizer, before, after = family
    eos = tokenizer.eos_token_id
    blocks = token_sequences(TEXTS, tokenizer, sequence_length=length)
    found = blocks.tensor.tolist()
    assert all(block[: len(before)] == before for block in found)
    documents = [[*before, *tokenizer.encode(text, add_special_tokens=False), *after] for text in TEXTS]
    if not before and not after and eos is not None:
        documents = [documents[0], *([eos, *each] for each in documents[1:])]
    stream = list(itertools.chain(*documents))
    assert blocks.tokens == len(stream)
    # what blocks got in front is dropped again: every token but the openings is there, once and in order
    bare = [token for block in found for token in block if token not in before]
    whole = [token for token in stream if token not in before]
    assert whole[: len(bare)] == bare
    assert 0 <= len(whole) - len(bare) < length
    assert len(stream) - blocks.dropped_tokens >= len(bare)


def test_a_block_that_begins_where_a_document_does_has_one_bos() -> None:
    tokenizer = by_bytes("<s> $A")
    bos = tokenizer.bos_token_id
    blocks = token_sequences(["abc", "defg"], tokenizer, sequence_length=4)
    a, b, c, d, e, f, g = tokenizer.encode("abcdefg", add_special_tokens=False)
    assert blocks.tensor.tolist() == [[bos, a, b, c], [bos, d, e, f]]
    assert (blocks.tokens, blocks.dropped_tokens) == (9, 1)
    assert g not in blocks.tensor


def test_what_a_block_got_in_front_and_the_next_token_bear_no_label() -> None:
    """That a document begins with the middle of another is nothing to learn, and nothing to measure a model by."""
    tokenizer = by_bytes("<s> $A")
    blocks = token_sequences(["abcdefgh"], tokenizer, sequence_length=4)
    bos, (a, b, c, d, e, f) = tokenizer.bos_token_id, tokenizer.encode("abcdef", add_special_tokens=False)
    assert blocks.tensor.tolist() == [[bos, a, b, c], [bos, d, e, f]]
    assert blocks.labels.tolist() == [[bos, a, b, c], [-100, -100, e, f]]
    plain = token_sequences(["abcdefgh"], by_bytes(), sequence_length=4)
    assert torch.equal(plain.labels, plain.tensor)


def test_a_cut_inside_an_opening_goes_back_to_its_beginning() -> None:
    tokenizer = by_bytes("<g> <s> $A")
    g, s = tokenizer.convert_tokens_to_ids(["<g>", "<s>"])
    a, b, c, d = tokenizer.encode("abcd", add_special_tokens=False)
    blocks = token_sequences(["a", "bcd"], tokenizer, sequence_length=4)
    assert blocks.tensor.tolist() == [[g, s, a, g], [g, s, b, c]]
    assert blocks.dropped_tokens == 1
    assert d not in blocks.tensor


def test_blocks_of_token_ids_begin_as_a_text_where_the_tokenizer_is_known() -> None:
    tokenizer = by_bytes("<s> $A")
    bos = tokenizer.bos_token_id
    assert token_sequences([[5, 6], [7, 8]], tokenizer, sequence_length=3).tensor.tolist() == [[bos, 5, 6], [bos, 7, 8]]
    own = [[bos, 5, 6], [bos, 7, 8]]
    assert token_sequences(own, tokenizer, sequence_length=3).tensor.tolist() == own
    assert token_sequences([[5, 6], [7, 8]], None, sequence_length=2).tensor.tolist() == [[5, 6], [7, 8]]


def test_a_long_document_in_pieces_has_one_opening_and_one_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    from lpc.data import text as data_module

    monkeypatch.setattr(data_module, "PIECE_CHARS", 7)
    monkeypatch.setattr(data_module, "BATCH_CHARS", 20)
    tokenizer = by_bytes("<s> $A </s>")
    text = "one two three four five six seven"
    expected = tokenizer(text)["input_ids"]
    assert token_sequences([text], tokenizer, sequence_length=len(expected)).tensor.tolist() == [expected]


def test_a_sequence_without_room_behind_its_opening_raises() -> None:
    with pytest.raises(OptionError, match="sequence_length 3: a sequence needs at least 4 tokens"):
        token_sequences(TEXTS, by_bytes("<g> <s> $A"), sequence_length=3)


def test_a_tokenizer_that_writes_a_text_otherwise_with_special_tokens_raises() -> None:
    class Odd(PreTrainedTokenizerFast):
        def __call__(self, text: object, add_special_tokens: bool = True, **options: object) -> object:
            return {"input_ids": [1, 2] if add_special_tokens else [3]}

    with pytest.raises(TokenizerError, match=r"makes \[1, 2\] of 'a', and \[3\] without special tokens"):
        TextFrame.of(Odd(tokenizer_object=by_bytes().backend_tokenizer))


def test_one_token_beyond_the_vocabulary_is_refused_even_behind_a_gap() -> None:
    tokenizer = by_bytes()
    check_size(tokenizer, len(tokenizer))
    assert highest_id(tokenizer) == len(tokenizer) - 1
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(TokenizerError, match=r"the model has 259 tokens and the tokenizer 1 beyond .*'<new>', 259"):
        check_size(tokenizer, 259)
    vocab = {symbol: 2 * i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    gaps = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=[])))
    assert len(gaps) == 256
    with pytest.raises(TokenizerError, match="the model has 300 tokens and the tokenizer 106 beyond"):
        check_size(gaps, 300)
    with pytest.raises(DataError, match="token id 511 is outside the vocabulary of 511"):
        token_sequences([[1, 511]], gaps, sequence_length=2)


def test_blocks_are_whole_numbers() -> None:
    assert token_sequences(TEXTS, by_bytes("<s> $A"), sequence_length=8).tensor.dtype is torch.int64


def test_what_bears_no_label_is_neither_tuned_on_nor_measured() -> None:
    tokenizer, model = by_bytes("<s> $A"), build_model("llama")
    text = "The cat sat on the mat. " * 20
    material = prepare(load_source(model, tokenizer), [text], DataOptions(sequence_length=16, heldout_fraction=0.25))
    blocks = token_sequences([text], tokenizer, sequence_length=16)
    count = len(material.train)  # type: ignore[arg-type]
    assert torch.equal(torch.stack([material.train[index]["labels"] for index in range(count)]), blocks.labels[:count])
    assert int((blocks.labels == -100).sum()) == 2 * (len(blocks.tensor) - 1)
    quality, held = material.measure(model, 8), blocks.tensor[count:]
    with torch.no_grad():
        logits = model(input_ids=held).logits[:, 1:-1].log_softmax(-1)
    losses = -logits.gather(-1, held[:, 2:, None])
    assert (quality.rows, quality.labels) == (len(held), losses.numel())
    assert quality.loss == pytest.approx(losses.double().mean().item(), rel=1e-5)

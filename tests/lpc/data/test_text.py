from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from lpc.data import BlockDataset, split_heldout
from lpc.data import text as data_module
from lpc.data.text import token_sequences
from passes.errors import DataError, LpcError, MissingFileError, OptionError, TokenizerError

EOS = 256


def stream(blocks: data_module.TokenBlocks) -> list[int]:
    return blocks.tensor.flatten().tolist()


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_text_file_gives_documents_with_eos_between_them(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "a.txt", "one cat\n<|endoftext|>\ntwo dogs<|endoftext|>\n\n<|endoftext|>three")
    blocks = token_sequences(path, tiny_tokenizer, sequence_length=4)
    expected = [
        *encode(tiny_tokenizer, "one cat"),
        EOS,
        *encode(tiny_tokenizer, "two dogs"),
        EOS,
        *encode(tiny_tokenizer, "three"),
    ]
    assert blocks.documents == 3
    assert blocks.tokens == len(expected) == 22
    assert blocks.dropped_tokens == 2
    assert blocks.tensor.dtype == torch.int64
    assert stream(blocks) == expected[:20]


def test_file_without_a_marker_is_one_document_kept_as_it_is(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "a.txt", " \n = Title = \n\nText.\n")
    blocks = token_sequences(str(path), tiny_tokenizer, sequence_length=2)
    assert blocks.documents == 1
    assert stream(blocks) == encode(tiny_tokenizer, " \n = Title = \n\nText.\n")[: 2 * len(blocks.tensor)]


def test_bos_begins_each_document_when_the_tokenizer_adds_it(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    backend = tiny_tokenizer.backend_tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    bos = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    adding = type(tiny_tokenizer)(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")
    blocks = token_sequences(["ab", "cd"], adding, sequence_length=6)
    assert stream(blocks) == [bos, *encode(tiny_tokenizer, "ab"), bos, *encode(tiny_tokenizer, "cd")]


def test_long_document_is_tokenized_as_a_whole_when_cut_into_pieces(
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "line one\nline two two\n" * 30 + "x" * 100 + " words without a line end" * 5
    expected = encode(tiny_tokenizer, text)
    monkeypatch.setattr(data_module, "PIECE_CHARS", 37)
    monkeypatch.setattr(data_module, "BATCH_CHARS", 90)
    blocks = token_sequences([text], tiny_tokenizer, sequence_length=5)
    assert (blocks.documents, blocks.tokens) == (1, len(expected))
    assert stream(blocks) == expected[: len(expected) // 5 * 5]


@pytest.mark.parametrize("form", ["paths", "strings", "jsonl", "dataset", "texts", "ids", "tensors", "dataset of ids"])
def test_every_form_of_data_gives_the_same_tokens(
    form: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["The cat sat.", "A line \u2028 separator\nand a newline."]
    first, second = write(tmp_path / "a.txt", texts[0]), write(tmp_path / "b.txt", texts[1])
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n\n" for text in texts)
    ids = [[*encode(tiny_tokenizer, texts[0]), EOS], encode(tiny_tokenizer, texts[1])]
    given = {
        "paths": [first, second],
        "strings": [str(first), str(second)],
        "jsonl": write(tmp_path / "c.jsonl", rows),
        "dataset": datasets.Dataset.from_dict({"text": texts}),
        "texts": texts,
        "ids": ids,
        "tensors": [torch.tensor(each) for each in ids],
        "dataset of ids": datasets.Dataset.from_dict({"input_ids": ids}),
    }[form]
    blocks = token_sequences(given, tiny_tokenizer, sequence_length=3)
    flat = ids[0] + ids[1]
    assert stream(blocks) == flat[: len(flat) // 3 * 3]
    assert blocks.documents == 2


def test_marker_in_a_text_is_not_tokenized_when_the_tokenizer_does_not_know_it(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    backend = tiny_tokenizer.backend_tokenizer.from_str(
        tiny_tokenizer.backend_tokenizer.to_str().replace("<|endoftext|>", "<|other|>")
    )
    other = type(tiny_tokenizer)(tokenizer_object=backend, eos_token="<|other|>")
    blocks = token_sequences(["ab<|endoftext|>cd"], other, sequence_length=5)
    assert stream(blocks) == [*encode(tiny_tokenizer, "ab"), EOS, *encode(tiny_tokenizer, "cd")]


def test_token_ids_need_no_tokenizer() -> None:
    assert stream(token_sequences([[1, 2], [3, 4, 5]], None, sequence_length=2)) == [1, 2, 3, 4]
    assert stream(token_sequences(torch.tensor([[1, 2], [3, 4]]), None, sequence_length=4)) == [1, 2, 3, 4]


def bad_inputs(folder: Path) -> dict[str, tuple[object, type[LpcError], str]]:
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    good = write(folder / "good.txt", "some text")
    return {
        "missing": (folder / "no.txt", MissingFileError, "no such file"),
        "missing string": ("no.txt", MissingFileError, "put it in a list"),
        "text as a string": ("A text. " * 200, MissingFileError, "put it in a list"),
        "folder": (folder, DataError, "is a folder"),
        "empty": (write(folder / "empty.txt", ""), DataError, "holds no text"),
        "white": (write(folder / "white.txt", " \n\t\n<|endoftext|>\n"), DataError, "white space only"),
        "not utf-8": (folder / "latin.txt", DataError, r"not UTF-8 text \(byte 3\)"),
        "csv": (write(folder / "a.csv", "text\nhello"), DataError, "convert it to .jsonl"),
        "bad json": (write(folder / "a.jsonl", '{"text": "a"}\n{"text"\n'), DataError, "line 2: not JSON"),
        "not an object": (write(folder / "b.jsonl", '["a"]\n'), DataError, "line 1: a JSON object"),
        "no text": (
            write(folder / "c.jsonl", '\n{"body": "a"}\n'),
            DataError,
            r"line 2: no `text` field \(it has: body",
        ),
        "text a number": (write(folder / "d.jsonl", '{"text": 3}\n'), DataError, "line 1: `text` is a int"),
        "empty list": ([], DataError, "the data has no row: it is empty"),
        "blank texts": (["", " "], DataError, "holds no text"),
        "mixed": ([str(good), "a text"], DataError, "all files or all texts"),
        "mixed kinds": (["a text", [1, 2]], DataError, "row 1 of the data: `text` is a list, not a string"),
        "flat ids": ([1, 2, 3], DataError, "row 0 of the data is a int"),
        "floats": ([[0.5, 1.0]], DataError, "other than token ids"),
        "empty ids": ([[], []], DataError, "every sequence is empty"),
        "negative ids": ([[-100, 3, 4, 5]], DataError, "token id -100"),
        "ids outside": ([[3, 4, 5, 257]], DataError, "257 is outside the vocabulary of 257"),
        "no column": (
            datasets.Dataset.from_dict({"body": ["a"]}),
            DataError,
            r"no `text` field \(it has: body\), and no `input_ids`",
        ),
        "null text": (
            datasets.Dataset.from_dict({"text": ["a", None]}),
            DataError,
            "row 1 of the data: `text` is a NoneType",
        ),
        "splits": (datasets.DatasetDict(), DataError, "one split"),
        "short": (
            ["abc"],
            DataError,
            "has 3 tokens and one sequence needs 4.*shorter sequence_length.*names an existing",
        ),
        "short file": (write(folder / "short.txt", "abc"), DataError, "sequence_length$"),
    }


BAD = (
    "missing",
    "missing string",
    "text as a string",
    "folder",
    "empty",
    "white",
    "not utf-8",
    "csv",
    "bad json",
    "not an object",
    "no text",
    "text a number",
    "empty list",
    "blank texts",
    "mixed",
    "mixed kinds",
    "flat ids",
    "floats",
    "empty ids",
    "negative ids",
    "ids outside",
    "no column",
    "null text",
    "splits",
    "short",
    "short file",
)


def test_every_bad_input_is_tried(tmp_path: Path) -> None:
    assert set(BAD) == set(bad_inputs(tmp_path))


@pytest.mark.parametrize("case", BAD)
def test_bad_data_raises_one_clear_error(case: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    given, error, message = bad_inputs(tmp_path)[case]
    with pytest.raises(error, match=message):
        token_sequences(given, tiny_tokenizer, sequence_length=4)  # type: ignore[arg-type]


def test_text_without_a_tokenizer_raises() -> None:
    with pytest.raises(TokenizerError, match="needs a tokenizer"):
        token_sequences(["some text"], None, sequence_length=4)


def test_tokenizer_of_another_model_raises(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TokenizerError, match="the model has 10 tokens"):
        token_sequences(["some text"], tiny_tokenizer, sequence_length=4, vocab_size=10)


def test_sequence_of_one_token_raises(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(OptionError, match="at least 2"):
        token_sequences(["some text"], tiny_tokenizer, sequence_length=1)


def test_heldout_is_the_end_of_the_stream() -> None:
    blocks = torch.arange(20).reshape(10, 2)
    train, heldout = split_heldout(blocks, 0.25)
    assert torch.equal(torch.cat([train, heldout]), blocks)
    assert len(heldout) == 2


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.01), (2, 0.99)])
def test_both_sides_of_the_split_have_a_block(count: int, fraction: float) -> None:
    assert [len(side) for side in split_heldout(torch.zeros(count, 4), fraction)] == [1, 1]


def test_impossible_split_raises() -> None:
    with pytest.raises(OptionError, match="between 0 and 1"):
        split_heldout(torch.zeros(4, 2), 1.0)
    with pytest.raises(DataError, match="1 sequence cannot be split"):
        split_heldout(torch.zeros(1, 2), 0.5)


def test_block_dataset_labels_every_token() -> None:
    dataset = BlockDataset(torch.arange(6).reshape(2, 3))
    assert len(dataset) == 2
    assert {key: value.tolist() for key, value in dataset[1].items()} == {
        "input_ids": [3, 4, 5],
        "labels": [3, 4, 5],
    }


def test_tokens_that_an_attention_mask_hides_are_no_data() -> None:
    rows = [{"input_ids": [1, 2, 3, 9, 9], "attention_mask": [1, 1, 1, 0, 0]}] * 4
    blocks = token_sequences(rows, None, sequence_length=4)
    assert blocks.tokens == 12
    assert 9 not in blocks.tensor
    with pytest.raises(DataError, match="row 1 of the data: its attention_mask is not a 0 or 1 for each of the 2"):
        token_sequences([*rows[:1], {"input_ids": [1, 2], "attention_mask": [1]}], None, sequence_length=4)


def test_positions_beside_token_ids_are_said_not_to_count(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"input_ids": [1, 2, 3, 4], "position_ids": [0, 1, 0, 1]}] * 4
    token_sequences(rows, None, sequence_length=4)
    assert "their position_ids do not count" in caplog.text


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused_and_not_read_to_its_end(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is a device, whose text may never end: name a file"):
        token_sequences(Path(name), None, sequence_length=4)

"""Instruction data: labels against prompt and answer tokenized by hand, every form, every fault."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lpc.data.answers import AnsweredRows
from lpc.data.instructions import Columns, instruction_rows
from lpc.data.records import open_records
from lpc.options import InstructionFormat
from passes.errors import DataError, OptionError, TokenizerError

EOS = 256
LAMINI = [
    {"instruction": f"Name number {i}.", "response": "one" * (1 + i % 3), "instruction_source": "flan"}
    for i in range(6)
]
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{0}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{0}\n\n### Input:\n{1}\n\n### Response:\n"
)


def rows_of(
    data: object,
    tokenizer: PreTrainedTokenizerBase | None,
    row_format: InstructionFormat | None = None,
    length: int = 512,
) -> AnsweredRows:
    records = open_records(data)
    columns = Columns.of(records.first)
    assert columns is not None
    return instruction_rows(records, columns, tokenizer, row_format=row_format or InstructionFormat(), length=length)


def by_hand(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> dict[str, list[int]]:
    """The byte-level tokenizer has no merges, so prompt and answer may be tokenized apart."""
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    return {"input_ids": [*first, *second, EOS], "labels": [-100] * len(first) + [*second, EOS]}


def found(rows: AnsweredRows) -> list[dict[str, list[int]]]:
    return [{name: value.tolist() for name, value in rows[index].items()} for index in range(len(rows))]


class Map(torch.utils.data.Dataset[dict[str, str]]):
    def __len__(self) -> int:
        return len(LAMINI)

    def __getitem__(self, index: int) -> dict[str, str]:
        return LAMINI[index]


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", ["list", "dataset", "torch", "jsonl", "files", "folder"])
def test_every_form_gives_prompts_without_labels_and_answers_with_eos(
    form: str, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    dataset = datasets.Dataset.from_list(LAMINI)
    dataset.save_to_disk(str(tmp_path / "saved"))
    data = {
        "list": LAMINI,
        "dataset": dataset,
        "torch": Map(),
        "jsonl": _jsonl(tmp_path / "rows.jsonl", LAMINI),
        "files": [_jsonl(tmp_path / "a.jsonl", LAMINI[:4]), str(_jsonl(tmp_path / "b.JSONL", LAMINI[4:]))],
        "folder": str(tmp_path / "saved"),
    }[form]
    expected = [by_hand(tiny_tokenizer, PROMPT.format(row["instruction"]), row["response"]) for row in LAMINI]
    assert found(rows_of(data, tiny_tokenizer)) == expected


@pytest.mark.parametrize(
    ("row", "row_format", "prompt"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, None, PROMPT_WITH_INPUT.format("Add.", "1 2")),
        ({"instruction": "Add.", "input": "", "output": "3"}, None, PROMPT.format("Add.")),
        ({"instruction": "Add.", "context": None, "response": "3"}, None, PROMPT.format("Add.")),
        ({"instruction": "Add.", "context": "1 2", "response": "3"}, None, PROMPT_WITH_INPUT.format("Add.", "1 2")),
        ({"prompt": "1 + 2 =", "completion": "3", "input": "not read"}, None, "1 + 2 ="),
        ({"instruction": "{input} {0}", "input": "{x}", "output": "3"}, "Q: {instruction}|{input}|{y}\nA: ", None),
    ],
)
def test_the_prompt_is_the_templates(
    row: dict[str, Any], row_format: str | None, prompt: str | None, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of([row], tiny_tokenizer, InstructionFormat(template=row_format) if row_format else None)
    assert found(rows) == [by_hand(tiny_tokenizer, prompt or "Q: {input} {0}|{x}|{y}\nA: ", "3")]


def test_all_tokens_have_labels_if_the_prompt_is_not_masked(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = found(rows_of(LAMINI, tiny_tokenizer, InstructionFormat(mask_prompt=False)))
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert rows[0]["input_ids"] == by_hand(tiny_tokenizer, PROMPT.format("Name number 0."), "one")["input_ids"]


def small_tokenizer(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Bytes with some merges, and ``<s>`` in front of every text."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_bos_goes_first_where_the_tokenizer_adds_it_and_bears_no_label() -> None:
    tokenizer = small_tokenizer([])
    (row,) = found(rows_of([{"prompt": "ab", "completion": "c"}], tokenizer))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    a, b, c = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert row == {"input_ids": [bos, a, b, c, eos], "labels": [-100, -100, -100, c, eos]}


def test_a_token_across_the_seam_is_the_answers() -> None:
    """As the model would have to say it; prompt and answer tokenized apart would give tokens that it never meets."""
    tokenizer = small_tokenizer([("b", "c")])
    (row,) = found(rows_of([{"prompt": "ab", "completion": "cd"}], tokenizer))
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<s>", "a", "bc", "d", "</s>"]
    assert row["labels"] == [-100, -100, *row["input_ids"][2:]]


def test_answers_are_cut_at_the_end_and_rows_without_one_are_left_out_and_counted(
    tiny_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    data = [
        {"prompt": "p" * 10, "completion": "a" * 3},
        {"prompt": "p" * 10, "completion": "b" * 9},
        {"prompt": "p" * 12, "completion": "cc"},
        {"prompt": "p" * 40, "completion": "d"},
        {"prompt": "pp", "completion": ""},
        {"prompt": "p" * 9, "completion": "eee"},
    ]
    with caplog.at_level(logging.WARNING):
        rows = rows_of(data, tiny_tokenizer, length=12)
    whole = [by_hand(tiny_tokenizer, row["prompt"], row["completion"]) for row in data]
    expected = [{name: value[:12] for name, value in whole[i].items()} for i in (0, 1, 5)]
    assert found(rows) == expected
    assert (rows.left_out, rows.answers_cut) == (3, 3)
    assert "3 of 6 rows are left out" in caplog.text
    assert "sequence_length 12; of 3 more the end is cut off" in caplog.text


def test_nothing_is_said_where_nothing_is_cut(
    tiny_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows_of(LAMINI, tiny_tokenizer)
    assert not caplog.records


def test_no_row_with_an_answer_is_refused(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="no row has an answer within sequence_length 5"):
        rows_of(LAMINI, tiny_tokenizer, length=5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([LAMINI[0], {"instruction": "a"}], "row 1 of the data: `response` is missing"),
        ([{"instruction": "a", "output": 3}], "row 0 of the data: `output` is a int, not a string"),
        ([{"instruction": None, "output": "b"}], "`instruction` is a NoneType"),
        ([{"instruction": "a", "input": ["b"], "output": "c"}], "`input` is a list"),
        ([{"prompt": ["a"], "completion": "c"}], "`prompt` is a list"),
        ([LAMINI[0], "b"], "row 1 of the data is a str, not a dict"),
    ],
)
def test_a_row_that_is_at_fault_is_named(
    data: list[Any], message: str, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(data, tiny_tokenizer)


def test_a_line_that_is_at_fault_is_named(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "rows.jsonl", [LAMINI[0], {"response": "b"}])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: `instruction` is missing"):
        rows_of(path, tiny_tokenizer)


REFUSED: list[tuple[Callable[[PreTrainedTokenizerBase], object], type[Exception], str]] = [
    (lambda _: InstructionFormat(template="Q: {input}"), OptionError, r"has no \{instruction\}"),
    (lambda _: rows_of(LAMINI, None), TokenizerError, "need a tokenizer"),
    (
        lambda t: rows_of([{"prompt": "a", "completion": "b"}], t, InstructionFormat(template="{instruction}")),
        OptionError,
        "the template is for an `instruction` column, and the data have `prompt`",
    ),
    (
        lambda t: rows_of(
            [{"instruction": "a", "input": "b", "output": "c"}], t, InstructionFormat(template="{instruction}")
        ),
        DataError,
        r"row 0 of the data has an input, and the template has no \{input\}",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused(
    call: Callable[[PreTrainedTokenizerBase], object],
    error: type[Exception],
    message: str,
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(error, match=message):
        call(tiny_tokenizer)


def test_a_tokenizer_without_eos_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = small_tokenizer([])
    tokenizer.eos_token = None
    (row,) = found(rows_of([{"prompt": "ab", "completion": "c"}], tokenizer))
    assert row["labels"][-1] == row["input_ids"][-1] == tokenizer.convert_tokens_to_ids("c")
    assert "no eos token" in caplog.text

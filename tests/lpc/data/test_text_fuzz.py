"""Property tests: every parser that reads the user's text gives what it promises, or one error of lpc's own.

``tests/corpus`` keeps what once went wrong, or might: every file of it goes through every parser. A case that
hypothesis finds belongs there, as a file. ``LPC_FUZZ=500`` tries 500 cases a property instead of 20.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from conftest import build_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpc.data import Reading, RowFormat, Rows, TokenBlocks, read_data, read_documents, read_jsonl, read_text
from lpc.data.documents import listed, split_documents
from lpc.data.text import token_sequences
from lpc.evaluation.tasks import RowTask, read_rows
from lpc.options import InstructionFormat
from passes.errors import DataError, LpcError

CORPUS = sorted((Path(__file__).parents[2] / "corpus").iterdir())
FUZZ = settings(
    max_examples=int(os.environ.get("LPC_FUZZ", "20")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEMPLATE = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
TOKENIZER = build_tokenizer()
TOKENIZER.chat_template = TEMPLATE
MODELS = ("qwen2", "bert-sequence-classification", "bert-question-answering", "vit")


def reading(name: str, instructions: InstructionFormat | None = None) -> Reading:
    case = zoo.ZOO[name]
    rows = RowFormat.of(case.model_class, case.config())
    return Reading(rows=rows, tokenizer=TOKENIZER, instructions=instructions)


READINGS = [reading(name) for name in MODELS] + [reading("qwen2", InstructionFormat(mask_prompt=False))]
PARSERS: dict[str, Callable[[Path], object]] = {
    "text": read_text,
    "jsonl": lambda path: list(read_jsonl(path)),
    "documents": read_documents,
    "task rows": lambda path: read_task(path),
    "blocks": lambda path: token_sequences(path, TOKENIZER, sequence_length=4),
    **{f"data, {index}": lambda path, how=how: read_all(path, how) for index, how in enumerate(READINGS)},
}


def read_task(path: Path) -> RowTask:
    """Read, and check that all texts can be tokenized and that the right answer is one of the choices."""
    found = read_rows(path)
    json.dumps(found.rows, ensure_ascii=False).encode("utf-8")
    assert all(
        "gold" not in row or 0 <= row["gold"] < len(row.get("choices", row.get("contexts"))) for row in found.rows
    )
    return found


def read_all(data: object, how: Reading) -> TokenBlocks | Rows:
    """Read, and check what every consumer relies on."""
    found = read_data(data, how)
    if isinstance(found, TokenBlocks):
        assert found.tensor.dtype is torch.int64
        assert 0 <= int(found.tensor.min()) <= int(found.tensor.max()) < how.rows.vocabulary
        return found
    for row in found:
        assert set(row) <= set(how.rows.inputs)
        assert all(bool(torch.isfinite(value.float()).all()) for value in row.values())
        assert "input_ids" not in row or row["input_ids"].dtype is torch.int64
    return found


def outcome(parser: Callable[[Any], object], data: object) -> object:
    """What a parser gives, or its error: one of lpc's own, of one line that a terminal can show."""
    try:
        return parser(data)
    except LpcError as error:
        found = error
    assert 0 < len(str(found)) < 3000
    assert isinstance(found, DataError if isinstance(data, Path) else LpcError)
    return found


LETTERS = st.text(st.characters(codec=None), max_size=12)  # with halves of surrogate pairs
NUMBERS = st.integers() | st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(NUMBERS | LETTERS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls"]),
        st.sampled_from(["user", "assistant", "human", "gpt"]) | VALUES | st.lists(st.just({"type": "text"})),
        max_size=4,
    ),
    max_size=4,
)
IDS = st.lists(st.integers(-2, 300), max_size=6)
NAMES = ("text", "input_ids", "labels", "label", "attention_mask", "prompt", "completion", "instruction", "input")
NAMES += ("output", "response", "context", "messages", "conversations", "pixel_values", "start_positions")
NAMES += ("end_positions", "query", "choices", "gold", "continuation", "context_options", "ctx_a", "ctx_b", "endings")
RECORDS = st.dictionaries(
    st.sampled_from([*NAMES, "activity_label", "idx"]) | LETTERS, VALUES | MESSAGES | IDS, max_size=5
)
GOOD = st.sampled_from(
    [
        {"text": "a cat"},
        {"input_ids": [1, 2, 3]},
        {"input_ids": [1, 2], "labels": [1, 2]},
        {"input_ids": [1, 2], "labels": 1},
        {"prompt": "a", "completion": "b"},
        {"instruction": "a", "output": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"query": "a", "choices": ["b", "c"], "gold": 1},
        {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["d", "e"], "label": "1"},
    ]
)


@pytest.mark.parametrize("parser", PARSERS)
def test_the_kept_corpus_is_read_or_refused(parser: str) -> None:
    assert len(CORPUS) >= 30
    for path in CORPUS:
        found = outcome(PARSERS[parser], path)
        if isinstance(found, LpcError) and path.suffix in (".jsonl", ".txt"):
            assert path.name in str(found), (path, found)


@pytest.mark.parametrize("parser", PARSERS)
@FUZZ
@given(content=st.binary(max_size=200) | LETTERS.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(parser: str, content: bytes, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(content)
        outcome(PARSERS[parser], tmp_path / name)


@pytest.mark.parametrize("parser", PARSERS)
@FUZZ
@given(rows=st.lists(GOOD | RECORDS, min_size=1, max_size=4))
def test_any_rows_in_a_file_are_read_or_refused(parser: str, rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    outcome(PARSERS[parser], tmp_path / "a.jsonl")


@pytest.mark.parametrize("index", range(len(READINGS)))
@FUZZ
@given(data=st.lists(GOOD | RECORDS | LETTERS | IDS | VALUES, max_size=4) | VALUES | RECORDS)
def test_anything_in_memory_is_read_or_refused(index: int, data: Any) -> None:
    outcome(lambda given_: read_all(given_, READINGS[index]), data)


@FUZZ
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=5))
def test_text_comes_back_from_its_tokens(texts: list[str]) -> None:
    documents = split_documents(texts)
    found = outcome(lambda given_: token_sequences(given_, TOKENIZER, sequence_length=2), texts)
    if isinstance(found, LpcError):
        return
    assert isinstance(found, TokenBlocks)
    expected = "<|endoftext|>".join(documents)
    text = TOKENIZER.decode(found.tensor.flatten())
    whole = found.dropped_tokens == 0
    assert text == expected if whole else expected.startswith(text[: -3 or None])


@FUZZ
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9)), max_size=5))
def test_jsonl_gives_back_what_was_written(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\r\n\n".join(json.dumps(row) for row in rows))
    assert [row for _, row in read_jsonl(tmp_path / "a.jsonl")] == rows
    assert all(name.isprintable() for row in rows for name in [listed(row)])


@FUZZ
@given(template=LETTERS, instruction=LETTERS, context=LETTERS)
def test_a_template_is_filled_in_or_refused(template: str, instruction: str, context: str) -> None:
    found = outcome(
        lambda text: InstructionFormat(template=text).prompt(instruction, context),
        "{instruction}" + template + "{input}",
    )
    assert found == instruction + template.replace("{input}", context).replace("{instruction}", instruction) + context
    outcome(lambda text: InstructionFormat(template=text).prompt(instruction, context), template)


def test_not_a_number_stays_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": NaN}')
    ((_, row),) = read_jsonl(tmp_path / "a.jsonl")
    assert math.isnan(row["n"])  # type: ignore[arg-type]

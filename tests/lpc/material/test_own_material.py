"""What a run is made on where the model writes all of its data, a share, or none; and a whole run without data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chatting import chatting
from conftest import build_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

import lpc
from lpc.generation import GeneratePass, Mixed, OwnText
from lpc.material import Material, prepare
from lpc.options import CompressOptions
from lpc.source import Source
from passes.errors import DataError, OptionError

TEXT = ["The cat sat on the mat and looked at the dog for a long time. " * 60]
SMALL = {"sequence_length": 32, "self_sequences": 12}


def made(tokenizer: PreTrainedTokenizerBase | None, data: object = TEXT, **options: object) -> Material:
    source = Source(build_model("llama"), tokenizer, "tiny")
    return prepare(source, data, lpc.DataOptions(**{**SMALL, **options}))  # type: ignore[arg-type]


def test_without_data_all_is_the_models_own(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    found = made(tiny_tokenizer, None)
    assert isinstance(found.train, OwnText)
    assert (len(found.train), found.train.heldout, found.context_length) == (11, 1, 32)
    assert found.options.self_share == 1.0
    assert found.notes == (
        "no data were given: ranked, tuned and measured on 12 texts of 32 tokens that the model wrote itself",
    )
    assert found.answer is None


def test_plain_text_for_a_model_that_chats_gets_chats_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    found = made(chatting())
    assert isinstance(found.train, Mixed)
    assert found.options.self_share == 0.25
    assert "may forget how to answer: 25% of" in caplog.text
    assert "may forget how to answer" in found.notes[0]
    assert "25%" in found.notes[1]
    assert "from 3 chats of 32 tokens" in found.notes[1]  # a quarter of 12
    assert found.answer is not None


@pytest.mark.parametrize(
    ("data", "share", "reads", "written"),
    [(None, None, 4, 6), (None, None, 400, 12), (TEXT, 0.5, 4, 2), (TEXT, 0.5, 400, 6), (TEXT, 1.0, 4, 4)],
)
def test_no_more_is_written_than_a_run_reads(data: object, share: float | None, reads: int, written: int) -> None:
    source, options = Source(build_model("llama"), chatting(), "tiny"), lpc.DataOptions(**SMALL, self_share=share)  # type: ignore[arg-type]
    made = prepare(source, data, options, reads)  # type: ignore[arg-type]
    assert isinstance(made.generate, GeneratePass)
    assert made.generate.sequences == written


def test_rows_that_a_run_reads_are_those_of_its_longest_stage() -> None:
    target, run = lpc.Target(ratio=0.2), lpc.RunOptions(samples=10, batch_size=2)
    tuned = CompressOptions(target=target, run=run, tune=lpc.TuneOptions(steps=7, gradient_accumulation=3))
    assert CompressOptions(target=target, run=run, tune=lpc.TuneOptions(steps=0)).rows_read == 10
    assert tuned.rows_read == 42
    assert replace(tuned, recover=lpc.RecoverOptions(steps=11, batch_size=5)).rows_read == 55


@pytest.mark.parametrize(("share", "notes"), [(0.0, 1), (0.5, 2), (1.0, 2)])
def test_a_share_that_is_said_wins(share: float, notes: int) -> None:
    found = made(chatting(), self_share=share)
    assert (found.options.self_share, len(found.notes)) == (share, notes)
    assert (found.generate is None) == (share == 0)
    assert isinstance(found.train, OwnText) == (share == 1)


def test_text_that_is_chats_already_and_models_that_do_not_chat_get_none(
    tiny_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    chats = ["<|im_start|>user\nHi, how are you?<|im_end|>\n<|im_start|>assistant\nWell.<|im_end|>\n" * 20]
    for found in (made(chatting(), chats), made(tiny_tokenizer), made(None, [list(range(200))])):
        assert (found.generate, found.notes, found.options.self_share) == (None, (), 0.0)
    assert caplog.text == ""


def test_models_that_write_nothing_are_told_what_to_give() -> None:
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "vocab_size": 300,
    }
    bert = BertForSequenceClassification(BertConfig(**sizes))
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=300))
    for model, wanted in ((bert, "input_ids.*labels"), (t5, "input_ids.*labels")):
        with pytest.raises(DataError, match=f"writes none by itself: give data= .*{wanted}"):
            prepare(Source(model, chatting(), "tiny"), None, lpc.DataOptions())
    with pytest.raises(DataError, match=r"without a tokenizer.*give"):
        made(None, None)


def test_a_template_that_refuses_a_prompt_costs_the_answers_alone(caplog: pytest.LogCaptureFixture) -> None:
    found = made(chatting("{{ raise_exception('only one turn') }}"))
    assert found.answer is None
    assert "the fixed prompts are not asked" in caplog.text
    assert "only one turn" in caplog.text


def test_shares_that_have_no_sense_are_refused() -> None:
    with pytest.raises(OptionError, match="needs data for the rest"):
        made(chatting(), None, self_share=0.5)
    with pytest.raises(OptionError, match="is none"):
        made(chatting(), [list(range(70))], self_share=0.3)
    rows = [{"prompt": "a", "completion": "b"}] * 4
    with pytest.raises(OptionError, match="goes with text"):
        made(chatting(), rows, self_share=0.5)


def test_nothing_but_a_model_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And what was done without being asked is in the log, the report, the manifest and the recipe."""
    options = lpc.DataOptions(**SMALL)  # type: ignore[arg-type]
    result = lpc.compress(build_model("llama"), tokenizer=chatting(), steps=1, samples=4, data_options=options)
    result.save(tmp_path / "out", export=["hf"])
    manifest = json.loads((tmp_path / "out" / "lpc.json").read_text())
    note = "no data were given: ranked, tuned and measured on 10 chats of 32 tokens that the model wrote itself"
    assert f"{note}; ratio 0.2 of the parameters goes" in caplog.text
    assert (manifest["notes"][0], manifest["ratio"]["asked"]) == (note, 0.2)
    ways = next(each for each in manifest["passes"] if each["name"] == "score")["report"]["ways"]
    taken = ", ".join(f"{count} {width}" for width, count in ways[0]["kept"].items())
    assert ways[0]["loss"] == min(way["loss"] for way in ways)
    assert f"was taken: {taken}: loss {ways[0]['loss']:.3f}; " in manifest["notes"][1]
    assert f"Note: {note}." in (tmp_path / "out" / "report.md").read_text()
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "self_share: 1.0" in recipe
    assert "ratio: 0.2" in recipe
    generate = next(each for each in manifest["passes"] if each["name"] == "generate")
    assert generate["report"] == {"sequences": 10, "asked": 10, "length": 32, "chat": True}
    answers = manifest["answers"]
    assert len(answers["dense"]) == len(answers["pruned"]) == 50
    assert 0 <= answers["same"] <= 50

"""compress on instruction data: from a file to a compact model, measured on answers that nothing else has seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import lpc
from lpc.material import prepare
from lpc.source import load_source
from passes.criteria import CRITERIA, Random

DATA = lpc.DataOptions(heldout_fraction=0.25)
ALL = 1000
ROWS = [{"instruction": f"Say {i}.", "response": f"{i} it is" + "!" * (i % 7)} for i in range(24)]
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{0}\n\n### Response:\n"
)
SEEN: list[torch.Tensor] = []


class Spy(Random):
    """A criterion that keeps the inputs of every forward pass that it is to score."""

    def begin(self, model: Any) -> None:
        self._handle = model.register_forward_pre_hook(
            lambda _, __, inputs: SEEN.append(inputs["input_ids"].clone()), with_kwargs=True
        )

    def end(self, model: Any) -> None:
        self._handle.remove()


@pytest.fixture
def spy() -> Iterator[str]:
    SEEN.clear()
    with CRITERIA.restored():
        lpc.register_criterion("spy", lambda graph, options, seed: Spy(graph, seed), needs="activations")
        yield "spy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer, and the rows as a file."""
    home = tmp_path_factory.mktemp("instructions")
    build_model("llama", max_position_embeddings=256).save_pretrained(home / "model")
    build_tokenizer().save_pretrained(home / "model")
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return home


def heldout_rows(folder: Path) -> list[dict[str, str]]:
    """The rows that are not among the material's, by their texts."""
    material = prepare(load_source(folder / "model"), folder / "rows.jsonl", DATA)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    count = len(material.train)  # type: ignore[arg-type]
    texts = [tokenizer.decode(material.train[index]["input_ids"]) for index in range(count)]
    found = [row for row in ROWS if not any(f"{row['instruction']}\n\n### Response" in text for text in texts)]
    assert (len(texts), len(found)) == (18, 6)
    return found


def answers_loss(model: PreTrainedModel, rows: list[dict[str, str]]) -> float:
    """The mean loss in nats of answers and their eos: one row at a time, no padding, no labels."""
    tokenizer, total, tokens = build_tokenizer(), 0.0, 0
    for row in rows:
        prompt, answer = tokenizer(PROMPT.format(row["instruction"]))["input_ids"], tokenizer(row["response"])
        answer = [*answer["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1)[torch.arange(len(answer)), answer]
        total, tokens = total - float(chosen.sum()), tokens + len(answer)
    return total / tokens


def test_a_file_of_instructions_gives_a_compact_model_measured_on_answers_alone(folder: Path, tmp_path: Path) -> None:
    tune, run = lpc.TuneOptions(steps=6, gradient_accumulation=2), lpc.RunOptions(batch_size=3, samples=ALL)
    result = lpc.compress(folder / "model", folder / "rows.jsonl", 0.2, run=run, tune=tune, data_options=DATA)
    result.save(tmp_path / "out", export=["hf"])
    measures = result.report.heldout.measures
    heldout = heldout_rows(folder)
    dense = AutoModelForCausalLM.from_pretrained(folder / "model")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    assert sum(p.numel() for p in pruned.parameters()) <= 0.8 * sum(p.numel() for p in dense.parameters())
    assert measures["loss"].dense == pytest.approx(answers_loss(dense, heldout), rel=1e-4)
    assert measures["loss"].pruned == pytest.approx(answers_loss(pruned, heldout), rel=1e-4)
    assert result.report.heldout.rows == 6
    assert result.report.heldout.labels == sum(len(row["response"]) + 1 for row in heldout)
    # 6 steps of 6 rows teach even this model more of the answers than it knew
    assert measures["loss"].pruned < measures["loss"].removed


@pytest.mark.parametrize("steps", [0, 9])
def test_held_out_rows_are_neither_tuned_nor_scored_on(steps: int, spy: str, folder: Path) -> None:
    asked = lpc.Schedule(cooldown=0)  # the criterion looks at all steps up to the last event
    tune, run = lpc.TuneOptions(steps=steps, criterion=spy, schedule=asked), lpc.RunOptions(batch_size=4, samples=ALL)
    lpc.compress(folder / "model", folder / "rows.jsonl", 0.2, run=run, tune=tune, data_options=DATA)
    tokenizer = build_tokenizer()
    seen = {tokenizer.decode(row).split("### Instruction:\n")[1].split("\n")[0] for batch in SEEN for row in batch}
    heldout = {row["instruction"] for row in heldout_rows(folder)}
    assert seen == {row["instruction"] for row in ROWS} - heldout


@pytest.mark.parametrize("criterion", ["wanda", "flap"])
def test_padding_of_rows_counts_in_no_score(criterion: str, folder: Path) -> None:
    scores = []
    for size in (1, 5):
        tune, run = lpc.TuneOptions(steps=0, criterion=criterion), lpc.RunOptions(batch_size=size, samples=ALL)
        result = lpc.compress(folder / "model", folder / "rows.jsonl", 0.2, run=run, tune=tune, data_options=DATA)
        scores.append(result.program.scores)
    for name, score in scores[0].items():
        assert torch.allclose(score, scores[1][name], rtol=1e-4, atol=1e-4 * float(score.max())), name


def test_the_prompt_is_measured_too_where_it_is_not_masked(folder: Path) -> None:
    losses = {}
    for masked in (True, False):
        text = lpc.DataOptions(instructions=lpc.InstructionFormat(mask_prompt=masked))
        material = prepare(load_source(folder / "model"), folder / "rows.jsonl", text)
        losses[masked] = material.measure(load_source(folder / "model").model, 8)
    assert losses[True].labels * 5 < losses[False].labels
    assert losses[True].loss != pytest.approx(losses[False].loss, rel=1e-3)


def test_sequence_length_is_the_most_a_row_has(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt = len(PROMPT.format("Say 1."))
    text = lpc.DataOptions(sequence_length=prompt + 4)
    material = prepare(load_source(folder / "model"), folder / "rows.jsonl", text)
    lengths = [len(row["input_ids"]) for row in material.train]
    assert max(lengths) == prompt + 4
    assert "0 of 24 rows are left out" in caplog.text
    assert "of 24 more the end is cut off" in caplog.text
    with pytest.raises(lpc.OptionError, match="longer than the model's context of 256"):
        prepare(load_source(folder / "model"), folder / "rows.jsonl", lpc.DataOptions(sequence_length=257))


def test_instructions_are_for_causal_models_and_need_a_tokenizer() -> None:
    with pytest.raises(lpc.OptionError, match="instructions are for causal language models"):
        prepare(
            load_source(zoo.build("bert")), ROWS, lpc.DataOptions(instructions=lpc.InstructionFormat(mask_prompt=False))
        )
    with pytest.raises(lpc.TokenizerError, match="instruction data need a tokenizer"):
        lpc.compress(build_model("llama"), ROWS, 0.2)


def test_a_chat_is_learnt_through_the_tokenizers_template(tiny_llama: PreTrainedModel) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    chats = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "y" * (1 + i % 4)}]}
        for i in range(12)
    ]
    result = lpc.compress(tiny_llama, chats, 0.2, steps=2, tokenizer=tokenizer, data_options=DATA)
    assert result.report.heldout.rows == 3
    with pytest.raises(lpc.TokenizerError, match="no chat template"):
        lpc.compress(tiny_llama, chats, 0.2, steps=2, tokenizer=build_tokenizer(), data_options=DATA)

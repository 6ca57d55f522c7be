"""What else GenAI does with a package than greedy decoding of one prompt, against torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import pytest
import torch
from conftest import build_tokenizer
from onnx_workbench import exported

PROMPT, MORE = [5, 9, 44, 61, 7], [33, 12, 90]
PAD = 256
BOTH = ("llama", "llama, gqa")
"""The cache grows, or is written in place."""


def generator(folder: Path, length: int, *, rows: int = 1, **search: Any) -> Any:
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, batch_size=rows, **{"do_sample": False, **search})
    return onnxruntime_genai.Generator(model, parameters)


def append(found: Any, tokens: list[int] | list[list[int]]) -> None:
    found.append_tokens(np.array(tokens, np.int32))


def take(found: Any, tokens: int) -> list[int]:
    """The whole sequence after so many more tokens."""
    for _ in range(tokens):
        found.generate_next_token()
    return sequence(found)


def finished(found: Any, row: int = 0) -> list[int]:
    while not found.is_done():
        found.generate_next_token()
    return sequence(found, row)


def sequence(found: Any, row: int = 0) -> list[int]:
    return [int(token) for token in found.get_sequence(row)]


def torch_tokens(case: str, prompt: list[int], new: int, **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "min_new_tokens": new, **options}
    answer = exported(case)[0].generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options)
    return [int(token) for token in answer[0]]


def changed(folder: Path, tmp_path: Path, **model: object) -> Path:
    """A copy of a package with other entries in the model's part of ``genai_config.json``."""
    copy = Path(shutil.copytree(folder, tmp_path / "package"))
    values = json.loads((copy / "genai_config.json").read_text())
    values["model"] |= model
    (copy / "genai_config.json").write_text(json.dumps(values))
    return copy


@pytest.mark.parametrize(
    "case", [*BOTH, "mistral with window", "mistral with window, gqa", "qwen2 with one windowed layer"]
)
def test_a_batch_of_prompts_of_different_lengths_gives_the_tokens_of_each_alone(case: str) -> None:
    rows = [[5, 9, 44, 61, 7, 8, 2, 3, 77], [33, 12, 90, 4], [6, 7, 8, 200, 11, 13]]
    width, new = 9, 8
    found = generator(exported(case)[1].folder, width + new, rows=3, min_length=width + new)
    append(found, [row + [PAD] * (width - len(row)) for row in rows])
    finished(found)
    for index, row in enumerate(rows):
        assert sequence(found, index)[width:] == torch_tokens(case, row, new)[len(row) :]


@pytest.mark.parametrize("case", BOTH)
@pytest.mark.parametrize("beams", [2, 3])
def test_beams_are_those_of_generate(beams: int, case: str) -> None:
    for prompt in (PROMPT, MORE):
        found = generator(exported(case)[1].folder, len(prompt) + 6, num_beams=beams, min_length=len(prompt) + 6)
        append(found, prompt)
        assert finished(found) == torch_tokens(case, prompt, 6, num_beams=beams)


def test_sampling_is_repeatable_by_its_seed_and_greedy_among_one() -> None:
    answers = []
    for seed in (1, 1, 2):
        found = generator(
            exported("llama")[1].folder, 16, do_sample=True, top_k=0, top_p=0.9, temperature=1.5, random_seed=seed
        )
        append(found, PROMPT)
        answers.append(finished(found))
    assert answers[0] == answers[1] != answers[2]
    found = generator(exported("llama")[1].folder, 12, do_sample=True, top_k=1, min_length=12)
    append(found, PROMPT)
    assert finished(found) == torch_tokens("llama", PROMPT, 7)


def test_a_conversation_goes_on_behind_an_end_of_text_token_of_several(tmp_path: Path) -> None:
    wanted = torch_tokens("llama", PROMPT, 8)
    stop = wanted[len(PROMPT) + 2]
    before = wanted[: wanted.index(stop)]
    after = torch_tokens("llama", before + MORE, 4)
    assert stop not in after
    found = generator(changed(exported("llama")[1].folder, tmp_path, eos_token_id=[PAD, stop]), 40)
    append(found, PROMPT)
    assert finished(found) == before  # the token that ends it is not taken up
    append(found, MORE)
    assert take(found, 4) == after


@pytest.mark.parametrize("case", BOTH)
def test_a_conversation_that_was_cut_goes_on_after_two_tokens_are_taken_back(case: str) -> None:
    """GenAI's cache lacks the last token where nothing ended the text, and to go back by one is refused."""
    found = generator(exported(case)[1].folder, 40)
    append(found, PROMPT)
    before = take(found, 6)
    assert before == torch_tokens(case, PROMPT, 6)
    found.rewind_to(len(before) - 2)
    append(found, before[-2:] + MORE)
    assert take(found, 4) == torch_tokens(case, before + MORE, 4)
    found.rewind_to(0)
    append(found, MORE)
    assert take(found, 4) == torch_tokens(case, MORE, 4)


def test_the_chat_template_gives_the_text_and_tokens_of_transformers(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported("llama")[1].folder, tmp_path / "package"))
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    theirs = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(folder)))
    text = theirs.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
    assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert theirs.encode(text).tolist() == tokenizer(text).input_ids

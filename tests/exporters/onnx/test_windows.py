"""Sliding windows count positions: a padded batch goes on as each of its prompts alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer

from exporters.onnx import export_onnx
from exporters.onnx.windows import FULL, SLIDING, masks_by_type, position_masks, window_of
from exporters.options import OnnxOptions

WINDOW = 6


def test_position_masks_are_what_a_loop_over_real_tokens_allows() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 1]])
    found = position_masks(mask, 4, 2, torch.float32)
    for row in range(2):
        for query, own in enumerate(range(2, 6)):
            real = [slot for slot in range(own + 1) if mask[row, slot]]
            near = [slot for slot in real if int(mask[row, slot + 1 : own + 1].sum()) < 2]
            for name, allowed in ((FULL, real), (SLIDING, near)):
                assert (found[name][row, 0, query] == 0).nonzero().flatten().tolist() == allowed


def test_window_is_that_of_the_configuration() -> None:
    assert window_of(build_model("mistral", sliding_window=WINDOW)) == WINDOW
    assert window_of(build_model("mistral", sliding_window=None)) is None
    assert window_of(build_model("llama")) is None
    assert window_of(build_model("qwen2", use_sliding_window=False, sliding_window=WINDOW)) is None


def test_masks_are_given_as_the_model_takes_them() -> None:
    assert masks_by_type(zoo.build("gemma2"))
    assert not masks_by_type(build_model("mistral", sliding_window=WINDOW))


def _tokens(folder: Path, rows: list[list[int]], new: int) -> list[list[int]]:
    model = og.Model(str(folder))
    longest = max(map(len, rows))
    parameters = og.GeneratorParams(model)
    length = longest + new
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=len(rows))
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([row + [256] * (longest - len(row)) for row in rows], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(token) for token in generator.get_sequence(row)][longest:] for row in range(len(rows))]


@pytest.mark.parametrize("window", [None, WINDOW])
def test_genai_gives_a_batch_the_tokens_of_each_prompt_alone(window: int | None, tmp_path: Path) -> None:
    model = build_model("mistral", sliding_window=window)
    package = export_onnx(model, build_tokenizer(), tmp_path, OnnxOptions(greedy_prompts=1))
    assert any("behind padding" in parity.name for parity in package.parity) == (window is not None)
    rows = [np.random.default_rng(1).integers(0, 250, size).tolist() for size in (9, 4, 6)]
    assert _tokens(tmp_path, rows, 5) == [_tokens(tmp_path, [row], 5)[0] for row in rows]

"""Greedy tokens of OpenVINO: python openvino_greedy.py PACKAGE CASE; writes JSON to standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino


def main(folder: Path, case: Path) -> list[list[int]]:
    asked = json.loads(case.read_text(encoding="utf-8"))
    compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [greedy(compiled, prompt, asked["new_tokens"]) for prompt in asked["prompts"]]


def greedy(compiled: openvino.CompiledModel, prompt: list[int], new: int) -> list[int]:
    shapes = {each.any_name: each.partial_shape for each in compiled.inputs}
    cache = {
        name: np.zeros((1, shape[1].get_length(), 0, shape[3].get_length()), np.float32)
        for name, shape in shapes.items()
        if name.startswith("past_key_values.")
    }
    tokens, fresh = list(prompt), np.array([prompt], np.int64)
    for _ in range(new):
        positions = np.arange(len(tokens) - fresh.shape[1], len(tokens))[None]
        feeds = {"input_ids": fresh, "attention_mask": np.ones((1, len(tokens)), np.int64), "position_ids": positions}
        answer = compiled({name: value for name, value in {**feeds, **cache}.items() if name in shapes})
        cache = {name: answer[name.replace("past_key_values", "present")].copy() for name in cache}
        tokens.append(int(answer["logits"][0, -1].argmax()))
        fresh = np.array([tokens[-1:]], np.int64)
    return tokens[len(prompt) :]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))

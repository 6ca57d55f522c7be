"""Greedy tokens of torch, onnxruntime and GenAI on prompts of held-out text.

    python benchmarks/agreement.py OUT TEXT [--prompts 20] [--prompt-tokens 24] [--new-tokens 24]

OUT is an output of ``lpc compress``; TEXT has documents separated by ``<|endoftext|>`` or by blank lines.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

Tokens = list[int]


def torch_greedy(model: Any, prompt: Tokens, new: int) -> Tokens:
    with torch.no_grad():
        found = model.generate(torch.tensor([prompt]), max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return [int(token) for token in found[0]]


def ort_greedy(session: Any, prompt: Tokens, new: int, *, never: set[int]) -> Tokens:
    """Greedy decoding on the raw graph; like ``min_new_tokens``, it never takes an end-of-text token."""
    outputs = [output.name for output in session.get_outputs()]
    shapes = {each.name: each.shape for each in session.get_inputs()}
    pasts = [name for name in shapes if name.startswith("past_key_values.")]
    cache = {name: np.zeros((1, shapes[name][1], 0, shapes[name][3]), np.float32) for name in pasts}
    tokens, fresh = list(prompt), np.array([prompt], np.int64)
    for _ in range(new):
        positions = np.arange(len(tokens) - fresh.shape[1], len(tokens))[None]
        feeds = {"input_ids": fresh, "attention_mask": np.ones((1, len(tokens)), np.int64), "position_ids": positions}
        feeds = {name: value for name, value in feeds.items() if name in shapes}
        logits, *present = session.run(outputs, {**feeds, **cache})
        cache = {n.replace("present", "past_key_values"): v for n, v in zip(outputs[1:], present, strict=True)}
        last = logits[0, -1]
        last[list(never)] = -np.inf
        tokens.append(int(last.argmax()))
        fresh = np.array([tokens[-1:]], np.int64)
    return tokens


def genai_greedy(genai: Any, prompt: Tokens, new: int) -> Tokens:
    import onnxruntime_genai as og

    parameters = og.GeneratorParams(genai)
    length = len(prompt) + new
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(genai, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def prompts(text: Path, tokenizer: Any, count: int, length: int) -> list[Tokens]:
    """The first tokens of the first documents that are long enough."""
    documents = re.split(r"<\|endoftext\|>|\n\s*\n", text.read_text(encoding="utf-8"))
    encoded = (tokenizer(document.strip()).input_ids[:length] for document in documents if document.strip())
    return [tokens for tokens in encoded if len(tokens) == length][:count]


def main() -> None:
    import onnxruntime_genai as og

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=24)
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(arguments.out / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.out / "hf")
    session = onnxruntime.InferenceSession(arguments.out / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    genai = og.Model(str(arguments.out / "onnx"))
    found = {"prompts": 0, "onnxruntime": 0, "genai": 0}
    for prompt in prompts(arguments.text, tokenizer, arguments.prompts, arguments.prompt_tokens):
        expected = torch_greedy(model, prompt, arguments.new_tokens)
        found["prompts"] += 1
        never = {model.config.eos_token_id}
        found["onnxruntime"] += ort_greedy(session, prompt, arguments.new_tokens, never=never) == expected
        found["genai"] += genai_greedy(genai, prompt, arguments.new_tokens) == expected
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Tiny models with their ONNX packages, each exported once a test session, and plain onnxruntime to call them."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from conftest import build_model, build_tokenizer
from transformers import PreTrainedModel

from exporters.onnx import OnnxPackage, export_onnx
from exporters.options import OnnxOptions

PRUNED_MISTRAL = {
    "hidden_size": 64,
    "intermediate_size": 120,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "sliding_window": None,
}
"""Heads times head size (48) is not the hidden size, as after pruning."""

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama with biases and yarn": (
        "llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "pruned mistral": ("mistral", PRUNED_MISTRAL),
    "mistral with window": ("mistral", {"sliding_window": 5}),
    "qwen2 with one windowed layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3, one KV head, untied": ("qwen3", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "llama, gqa": ("llama", {"head_dim": 16}),
    "mistral with window, gqa": ("mistral", {"head_dim": 16, "sliding_window": 5}),
    "qwen3, gqa": ("qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
}
"""Heads of 8 values have opset 23's Attention, those of 16 can have GroupQueryAttention."""


@functools.cache
def exported(case: str) -> tuple[PreTrainedModel, OnnxPackage]:
    """The model of a case and its package; nobody may change either."""
    family, changes = CASES[case]
    folder = Path(tempfile.mkdtemp(prefix="lpc-onnx-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = build_model(family, **changes)
    return model, export_onnx(model, build_tokenizer(), folder, OnnxOptions(greedy_prompts=1, greedy_tokens=4))


def run_onnx(folder: Path, ids: torch.Tensor, mask: torch.Tensor, past: dict[str, np.ndarray] | None = None) -> dict:
    """All outputs of one call of a decoder by name, with caches of length zero unless given."""
    session = open_session(folder / "model.onnx")
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy()}
    for each in session.get_inputs():
        if each.name.startswith("past_key_values"):
            empty = np.zeros((len(ids), each.shape[1], 0, each.shape[3]), np.float32)
            feeds[each.name] = empty if past is None else past[each.name.replace("past_key_values", "present")]
    return call(session, feeds)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Plain onnxruntime, nothing of lpc's."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def call(session: onnxruntime.InferenceSession, feeds: dict) -> dict:
    """All outputs by name; feeds that the graph has no input for are left out."""
    wanted = {each.name: np.asarray(feeds[each.name]) for each in session.get_inputs()}
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, wanted), strict=True))


def difference(ours: np.ndarray, theirs: np.ndarray, real: torch.Tensor | None = None) -> float:
    """Largest difference over the largest value, where ``real`` is 1."""
    if real is not None:
        kept = real.bool().numpy()
        ours, theirs = ours[kept], theirs[kept]
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

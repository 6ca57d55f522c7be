"""Decoders of random weights in the shapes that the ONNX benchmarks name, whole and pruned."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

TOKENIZER = Path(os.environ.get("LPC_MODELS", "../shared/models")) / "wikitext-llama"
KEPT = 0.7
"""What a pruned shape keeps of KV groups and of MLP channels, these in multiples of 64."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Llama, or of a Qwen3 (which norms its heads)."""

    qwen3: bool
    hidden: int
    layers: int
    mlp: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int

    @property
    def pruned(self) -> Shape:
        """What pruning would leave of it, in every layer alike."""
        groups = round(KEPT * self.groups)
        heads, mlp = groups * self.heads // self.groups, round(KEPT * self.mlp / 64) * 64
        return Shape(**{**vars(self), "groups": groups, "heads": heads, "mlp": mlp})

    def config(self) -> dict[str, Any]:
        """As transformers says it; a tied embedding, and a context that takes every call of the benchmark."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.mlp,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.head_size,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
        }


LLAMA_60M = Shape(
    qwen3=False, hidden=1024, layers=4, mlp=2816, heads=16, groups=8, head_size=64, vocabulary=8192
)  # fmt: skip
QWEN3_60M = Shape(
    qwen3=True, hidden=1024, layers=4, mlp=3072, heads=16, groups=8, head_size=128, vocabulary=4096
)  # fmt: skip
LLAMA_500M = Shape(
    qwen3=False, hidden=1536, layers=17, mlp=4096, heads=24, groups=8, head_size=64, vocabulary=49152
)  # fmt: skip
SHAPES = {"llama-60m": LLAMA_60M, "qwen3-60m": QWEN3_60M, "llama-500m": LLAMA_500M}


def made(name: str, work: Path, *, pruned: bool) -> Path:
    """The folder of the model, written if it is not there."""
    folder, shape = work / f"{name}{'-pruned' if pruned else ''}", SHAPES[name]
    if not (folder / "model.safetensors").is_file():
        shape = shape.pruned if pruned else shape
        config_class, model_class = (Qwen3Config, Qwen3ForCausalLM) if shape.qwen3 else (LlamaConfig, LlamaForCausalLM)
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        torch.manual_seed(0)
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = model_class(config_class(**shape.config(), **ends))
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder

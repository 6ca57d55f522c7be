"""Tiny folders as sentence-transformers saves them, built in code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def sentence_folder(folder: Path, pooling: dict[str, Any], *, last: str = "Normalize") -> Path:
    """A tiny BERT as sentence-transformers saves one."""
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(**SMALL)).save_pretrained(folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling", last: f"2_{last}"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(paths.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    (folder / "pytorch_model.bin").write_bytes(b"dense weights")
    return folder

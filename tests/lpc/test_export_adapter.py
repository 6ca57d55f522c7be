"""``lpc export`` of a folder with an adapter: one graph, of the base with the adapter merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lpc.exporting import export


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["plain", "dora", "rslora"])
def test_the_graph_computes_what_the_base_computes_with_its_adapter(
    tiny_model_folder: Path, tmp_path: Path, more: dict[str, bool]
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    ids = torch.arange(40, 50)[None]
    plain = base(ids).logits.detach().numpy()
    worn = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **more)).eval()
    with torch.no_grad():
        for name, parameter in worn.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        expected = worn(ids).logits.numpy()
    worn.save_pretrained(tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(10)[None]}
    arrays = {name: value.numpy() for name, value in feeds.items()}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            arrays[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    logits = session.run(["logits"], arrays)[0]
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()

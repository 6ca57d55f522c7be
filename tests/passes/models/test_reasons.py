from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

from passes.models import reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(), "RuntimeError"),
        (KeyError("nosuch"), "'nosuch' is not known"),
        (ValueError("Validation error for field 'hidden_size':\n    TypeError: expected int"),
         "Validation error for field 'hidden_size': TypeError: expected int"),
        (ValueError("a first line that has more than forty characters\nand advice"),
         "a first line that has more than forty characters"),
    ],
)  # fmt: skip
def test_a_reason_is_one_line_that_does_not_end_before_its_content(error: Exception, said: str) -> None:
    assert reason(error) == said


def test_a_shape_that_does_not_fit_is_told_in_place_of_a_report_above(tmp_path: Path) -> None:
    zoo.build("llama").save_pretrained(tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path)
    config.intermediate_size = 72
    with pytest.raises(RuntimeError, match="above report") as caught:
        LlamaForCausalLM.from_pretrained(tmp_path, config=config)
    assert "down_proj.weight is (32, 64) in the file, (32, 72) in the class; " in reason(caught.value)
    assert reason(caught.value).endswith("; and 3 more")


def test_an_expert_that_is_missing_is_told_in_place_of_a_report_above(tmp_path: Path) -> None:
    zoo.build("mixtral").save_pretrained(tmp_path)
    tensors: dict[str, torch.Tensor] = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.0.block_sparse_moe.experts.0.w1.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="above report") as caught:
        MixtralForCausalLM.from_pretrained(tmp_path)
    assert "layers.0.mlp.experts.gate_up_proj: Sizes of tensors must match" in reason(caught.value)

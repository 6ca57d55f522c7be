"""After ``lpc.register_auto_classes``, auto classes load compact checkpoints; for all else nothing changes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import zoo
from shrinking import outputs
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from uneven import uneven

import lpc

CASES = {
    "llama": "AutoModelForCausalLM",
    "bloom": "AutoModelForCausalLM",
    "bert-sequence-classification": "AutoModelForSequenceClassification",
    "t5": "AutoModelForSeq2SeqLM",
    "vit": "AutoModelForImageClassification",
}


pytestmark = pytest.mark.usefixtures("auto_classes_as_before")


@pytest.mark.parametrize("name", CASES)
def test_auto_classes_load_compact_checkpoints(name: str, tmp_path: Path) -> None:
    model = uneven(name, custom_code=True)
    model.save_pretrained(tmp_path)
    lpc.register_auto_classes(tmp_path)
    loaded = getattr(transformers, CASES[name]).from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert torch.equal(outputs(loaded, name), outputs(model, name))


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_the_model_without_its_head_loads_too(name: str, tmp_path: Path) -> None:
    model = uneven(name, custom_code=True)
    model.save_pretrained(tmp_path)
    lpc.register_auto_classes(tmp_path)
    bare = transformers.AutoModel.from_pretrained(tmp_path)
    inner = model.base_model
    assert type(bare).__name__ == f"Compact{type(inner).__name__}"
    theirs = dict(bare.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in inner.named_parameters())


def test_the_models_inside_are_stock() -> None:
    found = [type(each).__name__ for each in uneven("llama").modules() if isinstance(each, PreTrainedModel)]
    assert found == ["CompactLlamaForCausalLM", "LlamaModel"]


def test_stock_models_are_as_before(tmp_path: Path) -> None:
    uneven("llama").save_pretrained(tmp_path / "compact")
    lpc.register_auto_classes(tmp_path / "compact")
    model = zoo.build("llama")
    assert type(model) is LlamaForCausalLM
    assert type(model.model) is transformers.LlamaModel
    assert type(copy.deepcopy(model)) is LlamaForCausalLM
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is LlamaForCausalLM
    assert torch.equal(outputs(loaded, "llama"), outputs(model, "llama"))
    assert {each.name for each in tmp_path.iterdir() if each.is_file()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_per_layer_configurations_of_others_are_left_to_transformers() -> None:
    config = copy.deepcopy(uneven("llama").config)
    config.architectures = ["LlamaForCausalLM"]
    assert type(LlamaForCausalLM(config)) is LlamaForCausalLM


def test_a_checkpoint_of_the_usual_sizes_registers_nothing(tmp_path: Path) -> None:
    zoo.build("llama").save_pretrained(tmp_path)
    lpc.register_auto_classes(tmp_path)
    assert LlamaConfig not in transformers.AutoModelForCausalLM._model_mapping._extra_content


UNASKED = """
import sys
from transformers import AutoModelForCausalLM, PreTrainedModel
before = PreTrainedModel.__new__
import lpc, lpc.compression
assert PreTrainedModel.__new__ is before
assert not [each for each in sys.meta_path if type(each).__module__.startswith(('lpc', 'passes', 'exporters'))]
lpc.register_auto_classes(sys.argv[1])
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""


def test_importing_lpc_changes_nothing_in_transformers(tmp_path: Path) -> None:
    uneven("llama").save_pretrained(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(lpc.__file__).parent.parent)}
    command = [sys.executable, "-c", UNASKED, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["CompactLlamaForCausalLM"]

"""Folders, adapters and live models that were tried from outside, and once were let through or answered badly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import PreTrainedModel

import lpc
from lpc.source import load_source
from passes.pipeline import Program

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in tiny_model_folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    return copied


def rewrite(folder: Path, **entries: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **entries}))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"num_hidden_layers": 0}, "config.json says num_hidden_layers = 0, which must be at least 1"),
        ({"num_attention_heads": -4}, "num_attention_heads = -4, which must be at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0, which must be at least 1"),
        ({"head_dim": 0}, "head_dim = 0, which must be at least 1"),
        ({"hidden_size": "32"}, "hidden_size = '32', which must be a number"),
        ({"max_position_embeddings": -5}, "max_position_embeddings = -5, which must be at least 1"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0, which must be at least 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan, which must be at least 0"),
        ({"attention_dropout": 2.0}, "attention_dropout = 2.0, which must be between 0 and 1"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta = 0.0, which must be above 0"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}}, "factor = 0, .* above 0"),
        ({"rope_parameters": {"rope_type": "nosuch", "rope_theta": 1e4}}, "config.json says rope_type = 'nosuch'"),
        ({"hidden_act": "nosuch"}, "config.json says hidden_act = 'nosuch': correct the entry"),
        ({"dtype": "nonsense"}, "dtype = 'nonsense', which must be one of auto, float32"),
        ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM', a text: write a list"),
        ({"id2label": {"a": "b"}}, "config.json has an entry 'a'"),
        ({"return_dict": False}, "return_dict = False, which must be true"),
        ({"model_type": ["llama"]}, r"config\.json says model_type = \['llama'\]: write one name"),
        ({"model_type": "llama\x1b[2J"}, r"config\.json says model_type = 'llama.*: write one name"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "its weights are dense: remove",
        ),
        ({"dtype": 7}, "dtype = 7, which must be one of auto, float32"),
        ({"attn_implementation": "flash_attention_2"}, "= 'flash_attention_2': remove the entry, or install"),
        ({"attn_implementation": "nosuch"}, "attn_implementation = 'nosuch': remove the entry"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, r"Missing required keys.*\{'factor'\}$"),
        ({"output_attentions": True}, "cannot be saved again: .*Please set it to 'eager' instead"),
        ({"attention_bias": True}, "asks for biases that the checkpoint does not have"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_entry_that_no_model_has_is_named(folder: Path, entries: dict[str, Any], said: str) -> None:
    rewrite(folder, **entries)
    with pytest.raises(lpc.ModelError, match=said):
        load_source(folder)


@pytest.mark.parametrize(
    ("entries", "said"),
    [({"model_max_length": "x"}, "model_max_length is 'x', and must be a number"),
     ({"chat_template": 5}, "chat_template is 5, and must be a text"),
     ({"padding_side": "up"}, r"current value: up: write tokenizer\.json, tokenizer_config\.json anew")],
)  # fmt: skip
def test_an_entry_of_a_tokenizer_that_nothing_can_read_is_named(
    folder: Path, entries: dict[str, Any], said: str
) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    with pytest.raises(lpc.TokenizerError, match=said):
        load_source(folder)


def test_an_entry_that_is_odd_and_right_passes(folder: Path) -> None:
    names = {"id2label": {"0": "n_heads"}, "label2id": {"n_heads": 0}}
    rewrite(folder, attention_dropout=0.5, rms_norm_eps=0.0, **names)
    load_source(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_told_as_one(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(lpc.ModelError, match=rf"{name} is a git-lfs pointer.*git lfs pull"):
        load_source(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is no JSON"),
        ("[]", "no JSON object but list"),
        ('{"max_new_tokens": "x"}', "correct it, or remove"),
        ('{"temperature": 0.5, "do_sample": false}', "`temperature`: `do_sample` is not set"),
    ],
)
def test_a_broken_generation_config_is_not_left_out_in_silence(folder: Path, text: str, said: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(lpc.ModelError, match=rf"generation_config\.json cannot be loaded.*{said}"):
        load_source(folder)


def test_a_live_generation_config_that_cannot_be_saved_is_refused_before_any_work() -> None:
    model = build_model("llama")
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, False
    with pytest.raises(lpc.ModelError, match=r"generation_config cannot be saved: .*`temperature`.*correct the entry"):
        load_source(model)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_the_weights_under_it_is_merged_first_and_said_so(
    folder: Path, tmp_path: Path, init: str
) -> None:
    model = build_model("llama")
    model.config._name_or_path = model.name_or_path = str(folder)
    worn = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init)).eval()
    with torch.no_grad():
        for name, parameter in worn.named_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) if ".lora_B." in name else 0)
    worn.save_pretrained(tmp_path / "adapter")
    source, ids = load_source(tmp_path / "adapter"), torch.arange(2, 20)[None]
    assert not isinstance(source.model, PeftModel)
    assert f"init_lora_weights='{init}', which changes the base model" in source.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(source.model(input_ids=ids).logits, worn(input_ids=ids).logits)


def test_code_beside_a_tokenizer_is_refused_with_the_word_that_would_run_it(folder: Path) -> None:
    code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(code))
    with pytest.raises(lpc.TokenizerError, match="--trust-remote-code"):
        load_source(folder)


def test_one_bias_too_many_is_not_told_as_a_wrong_number_of_layers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, folder / "model.safetensors")
    with pytest.raises(lpc.ModelError, match=r"q_proj\.bias\)\. The class of config\.json has no such part"):
        load_source(folder)


def test_a_model_that_computes_nan_is_refused_at_the_start() -> None:
    model = build_model("llama").half()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(lpc.ModelError, match=r"NaN or infinite values in float16, first in .*--dtype bf16"):
        Program.start(model)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"lora_alpha": 0}, "lora_alpha = 0, which must be a number above 0"),
        ({"lora_alpha": "x"}, "lora_alpha = 'x', which must be a number above 0"),
        ({"r": [4]}, r"r = \[4\], which must be a number above 0"),
        ({"peft_type": "NOSUCH"}, "peft_type = 'NOSUCH', which changes no weights"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type = 'PROMPT_TUNING', which changes no weights"),
    ],
    ids=str,
)
def test_an_entry_of_an_adapter_that_makes_no_sense_is_named(
    folder: Path, tmp_path: Path, entries: dict[str, Any], said: str
) -> None:
    model = build_model("llama")
    model.config._name_or_path = model.name_or_path = str(folder)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "base_model_name_or_path": str(folder), **entries}))
    with pytest.raises(lpc.ModelError, match=said):
        load_source(tmp_path / "adapter")


def relu(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def patched(model: PreTrainedModel) -> None:
    own = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: 2 * own(x)


def normed(model: PreTrainedModel) -> None:
    weight_norm(model.model.layers[0].mlp.up_proj)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (relu, r"layers\.1\.mlp\.act_fn is a torch.*ReLU, and the configuration builds a transformers.*SiLU"),
        (patched, r"model\.layers\.0\.mlp has a forward of its own"),
        (normed, r"up_proj is a .*ParametrizedLinear"),
    ],
)
def test_a_live_model_that_no_checkpoint_could_hold_is_refused_before_any_work(
    change: Callable[[PreTrainedModel], None], said: str
) -> None:
    model = copy.deepcopy(build_model("llama"))
    change(model)
    with pytest.raises(lpc.ModelError, match=said):
        load_source(model)


def test_a_model_that_does_not_run_is_one_error() -> None:
    model = build_model("llama")
    model.config.return_dict = False
    with pytest.raises(
        lpc.ModelError, match=r"LlamaForCausalLM does not run on a small batch .*AttributeError: 'tuple'"
    ):
        Program.start(model)


@pytest.mark.parametrize("name", ["target", "run", "tune", "lora", "trace", "data_options", "recover", "compensate"])
def test_a_dict_in_the_place_of_options_is_refused_by_name(name: str) -> None:
    with pytest.raises(lpc.OptionError, match=rf"{name} must be a lpc\.\w+, got a dict: write {name}=lpc\."):
        lpc.compress("nowhere", ["text"], **{name: {"rank": 4}})

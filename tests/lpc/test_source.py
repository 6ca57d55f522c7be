from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification, PreTrainedModel

from lpc.source import find_tokenizer, load_config, load_source
from passes.errors import MissingFileError, ModelError, TokenizerError, UnsupportedModelError


def test_load_source_copies_a_live_model(tiny_llama: PreTrainedModel) -> None:
    source = load_source(tiny_llama)
    assert source.model is not tiny_llama
    with torch.no_grad():
        source.model.get_parameter("model.norm.weight").zero_()
    assert tiny_llama.get_parameter("model.norm.weight").abs().sum() > 0


def test_load_source_reads_model_and_tokenizer_from_a_folder(tiny_model_folder: Path) -> None:
    source = load_source(str(tiny_model_folder))
    assert type(source.model).__name__ == "LlamaForCausalLM"
    assert source.tokenizer is not None
    assert source.tokenizer.eos_token_id == 256
    assert source.name == str(tiny_model_folder)


def test_load_source_loads_an_adapter_folder_on_its_base(tiny_model_folder: Path, tmp_path: Path) -> None:
    base = load_source(tiny_model_folder).model
    assert isinstance(base, PreTrainedModel)
    get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "gate_proj"])).save_pretrained(str(tmp_path / "a"))
    source = load_source(tmp_path / "a")
    assert isinstance(source.model, PeftModel)
    assert source.tokenizer is not None


def test_load_config_needs_only_config_json(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    assert load_config(tmp_path).num_key_value_heads == 4


@pytest.mark.parametrize("name", ["/absent/model", "./absent", "absent", "a b c", "x/y/z", "tests/absent"])
def test_missing_folder_is_named_and_not_looked_up_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    with pytest.raises(MissingFileError, match="no model folder"):
        load_source(name)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        load_source(tmp_path)


def test_absent_hub_name_says_how_it_was_understood() -> None:
    with pytest.raises(ModelError, match="taken for a hub name"):
        load_source("nobody/nothing-there")


def test_unsupported_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_head=2, n_embd=8).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported"):
        load_source(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported"):
        load_source(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16)))


def test_other_heads_than_causal_lm_are_refused(tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaForSequenceClassification is not supported"):
        load_source(LlamaForSequenceClassification(tiny_llama.config))


def test_weights_that_would_have_to_be_unpickled_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights of"):
        load_source(tmp_path)


def test_truncated_weights_are_a_model_error(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_source(tmp_path / "m")


def test_broken_config_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_config(tmp_path)


def test_tokenizer_is_none_when_absent_and_an_error_when_broken(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        find_tokenizer(tmp_path)


def test_adapter_without_base_name_is_refused(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    get_peft_model(tiny_llama, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="does not name its base model"):
        load_source(tmp_path)

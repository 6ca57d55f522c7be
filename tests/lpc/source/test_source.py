from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel, ViTModel

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
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(MissingFileError, match="no model folder"):
        load_source(name)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        load_source(tmp_path)


def test_absent_hub_name_says_how_it_was_understood() -> None:
    with pytest.raises(ModelError, match="taken for a hub name"):
        load_source("nobody/nothing-there")


def test_unsupported_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    config = MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=16)
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'mamba'"):
        load_source(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'mamba'"):
        load_source(MambaForCausalLM(config))


@pytest.mark.parametrize("name", ["bert-question-answering", "llama-sequence-classification", "vit", "t5", "qwen3"])
def test_a_folder_is_loaded_with_the_class_that_it_was_saved_from(name: str, tmp_path: Path) -> None:
    model = zoo.build(name)
    model.save_pretrained(tmp_path)
    source = load_source(tmp_path)
    assert type(source.model) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(source.model.state_dict()[key], value), key
    assert type(load_source(model).model) is type(model)


def test_a_class_without_a_task_is_refused(tmp_path: Path) -> None:
    headless = ViTModel(zoo.ZOO["vit"].config())
    headless.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="ViTModel has no task"):
        load_source(headless)
    with pytest.raises(UnsupportedModelError, match="ViTModel has no task"):
        load_source(tmp_path)


def test_an_image_processor_is_taken_along_as_it_stands(tmp_path: Path) -> None:
    zoo.build("vit").save_pretrained(tmp_path / "model")
    text = '{"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}'
    (tmp_path / "model" / "preprocessor_config.json").write_text(text)
    source = load_source(tmp_path / "model")
    assert source.tokenizer is None
    assert source.processor is not None
    source.processor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").read_text() == text


def test_a_processor_of_the_users_own_wins(tiny_model_folder: Path) -> None:
    class Mine:
        def save_pretrained(self, save_directory: str | Path) -> None:
            raise AssertionError

    mine = Mine()
    source = load_source(tiny_model_folder, mine)
    assert source.processor is mine
    assert source.tokenizer is None


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

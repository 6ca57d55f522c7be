from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from conftest import build_model
from gguf_file import write_gguf
from peft import AdaLoraConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, PreTrainedModel

from lpc.source import check_not_blank, load_adapter, load_config, load_source
from passes.errors import LpcError, MissingFileError, ModelError

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model("llama", tie_word_embeddings=False).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def prefixed(prefix: str) -> Any:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without(part: str) -> Any:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def cast(part: str, dtype: torch.dtype) -> Any:
    return lambda tensors: {name: t.to(dtype) if part in name else t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (prefixed("module."), r"21 tensors are missing.*'module\.' in them.*save model\.module"),
        (prefixed("_orig_mod."), r"'_orig_mod\.' in them"),
        (prefixed("language_model."), r"'language_model\.' in them"),
        (without("layers.1.mlp.down"), r"1 tensor is missing \(model\.layers\.1\.mlp\.down_proj\.weight\)"),
        (without("lm_head"), r"1 tensor is missing \(lm_head\.weight\)"),
        (without("layers.1."), "config.json says 2 layers"),
        (lambda t: {**t, "model.layers.2.mlp.up_proj.weight": torch.zeros(1)}, "It has layers up to 2"),
        (lambda t: {**t, "v_head.summary.weight": torch.zeros(1)}, r"no place \(v_head.*correct architectures"),
        (lambda t: {**t, "lm_head.weight": torch.zeros(9, 32)}, r"shape \[9, 32\] where \[272, 32\] is wanted"),
        (lambda _: {"foo": torch.zeros(1)}, "those of another model"),
        (lambda _: {}, "21 tensors are missing"),
        (cast("mlp", torch.int8), r"mlp\.down_proj\.weight as I8.*floating point"),
        (cast("norm", torch.float8_e4m3fn), "as F8_E4M3"),
    ],
)
def test_a_checkpoint_without_all_its_weights_is_one_error(change: Any, said: str, folder: Path) -> None:
    rewrite(folder, change)
    with pytest.raises(ModelError, match=said):
        load_source(folder)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"intermediate_size": 48}, r"mlp\.down_proj\.weight has shape \[32, 64\] where \[32, 48\] is wanted"),
        ({"num_hidden_layers": 1}, "It has layers up to 1 and config.json says fewer"),
        ({"num_hidden_layers": 3}, "config.json says 3 layers"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"score\.weight.*lm_head\.weight"),
        ({"pad_token_id": 9999}, "pad_token_id is 9999"),
        ({"hidden_size": 10**9}, r"config\.json says hidden_size = 1000000000"),
        ({"max_position_embeddings": 2**24, "hidden_size": 64}, "has shape"),
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_one_error(
    entries: dict[str, Any], said: str, folder: Path
) -> None:
    configure(folder, **entries)
    with pytest.raises(ModelError, match=said):
        load_source(folder)


def test_constants_that_outgrow_the_weights_are_refused_before_they_are_made(tmp_path: Path) -> None:
    model = zoo.build("gptj")
    if not any(model.config.n_positions in buffer.shape for buffer in model.buffers()):
        pytest.skip("from transformers 5.24 on no constant of GPT-J has a row a position")
    model.save_pretrained(tmp_path)
    configure(tmp_path, n_positions=2**25)
    with pytest.raises(ModelError, match=r"GiB of constants.*number of positions"):
        load_source(tmp_path)


def test_a_head_that_is_stored_beside_its_embedding_is_kept(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    configure(folder, tie_word_embeddings=True)
    model: Any = load_source(folder).model
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["lm_head.weight"])
    assert "head is not its embedding" in caplog.text


def test_rounding_at_the_door_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(folder, cast("mlp", torch.float64))
    load_source(folder)
    assert "holds tensors in float32, float64, and all are loaded in float32" in caplog.text


def test_heads_of_pretraining_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    BertForPreTraining(config).save_pretrained(tmp_path)
    configure(tmp_path, architectures=["BertForMaskedLM"])
    assert type(load_source(tmp_path).model) is BertForMaskedLM
    assert "cls.seq_relationship.weight" in caplog.text
    assert "bert.pooler.dense.weight" in caplog.text


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_family_is_whole_and_loading_says_nothing(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = zoo.build(name)
    model.save_pretrained(tmp_path)
    loaded = load_source(tmp_path).model
    assert {k: v.dtype for k, v in loaded.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_code_in_a_folder_is_not_run_and_not_asked_about(folder: Path) -> None:
    ran = folder / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    configure(folder, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    with pytest.raises(ModelError, match=r"brings code of its own.*trust_remote_code=True"):
        load_config(folder)
    configure(folder, model_type="llama")
    load_source(folder)
    assert not ran.exists()


def test_a_gguf_file_is_a_source(tmp_path: Path) -> None:
    model = build_model("llama", tie_word_embeddings=False, head_dim=4)
    path = write_gguf(model, tmp_path / "model.gguf")
    source = load_source(path)
    assert isinstance(source.model, PreTrainedModel)
    for name, tensor in model.state_dict().items():
        assert torch.equal(source.model.state_dict()[name], tensor), name
    assert "quantization_config" not in source.model.config.to_dict()
    assert source.name == str(path)


def test_a_live_model_that_came_from_gguf_is_dense(tmp_path: Path) -> None:
    write_gguf(build_model("llama", tie_word_embeddings=False, head_dim=4), tmp_path / "model.gguf")
    live = type(build_model("llama")).from_pretrained(tmp_path, gguf_file="model.gguf")
    source = load_source(live)
    assert "quantization_config" not in source.model.config.to_dict()
    assert "quantization_config" in live.config.to_dict()
    source.model.save_pretrained(tmp_path / "saved")
    assert load_source(tmp_path / "saved").model is not None


def test_another_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"name the folder that holds the model, or a \.gguf file"):
        load_source(tmp_path / "x.bin")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"x\.gguf"):
        load_source(tmp_path / "x.gguf")


LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


@pytest.fixture
def adapter(folder: Path) -> Path:
    base = load_source(folder).model
    assert isinstance(base, PreTrainedModel)
    get_peft_model(base, LoraConfig(**LORA)).save_pretrained(str(folder.parent / "a"))
    return folder.parent / "a"


def rewrite_adapter(adapter: Path, change: Any) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def renamed(old: str, new: str) -> Any:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def narrower(tensors: Tensors) -> Tensors:
    return {name: tensor[:, :16].clone() if "lora_A" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("lora_A"), r"4 tensors are missing.*another base or class"),
        (
            lambda t: {k.replace("model.layers", "model.language_model.layers"): v for k, v in t.items()},
            "language_model",
        ),
        (prefixed("module."), r"8 tensors have no place.*'module\.'"),
        (lambda t: {k.replace("layers.1", "layers.7"): v for k, v in t.items()}, r"no place \(.*layers\.7"),
        (
            lambda t: {k: v[:, :16].clone() if "lora_A" in k else v for k, v in t.items()},
            r"shape \[4, 16\] where \[4, 32\]",
        ),
        (lambda _: {}, "is empty"),
        (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "as I8: save it in floating point"),
        (
            lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.zeros(280, 32)},
            r"embed_tokens\.weight is \[280, 32\] there and \[272, 32\].*resize_token_embeddings\(280\)",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_error(change: Any, said: str, adapter: Path) -> None:
    rewrite_adapter(adapter, change)
    with pytest.raises(ModelError, match=said):
        load_source(adapter)


def name_base(adapter: Path, name: object, **entries: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name, **entries}))


def test_the_base_is_found_from_the_adapters_folder(adapter: Path) -> None:
    name_base(adapter, "../m")
    assert isinstance(load_source(adapter).model, PeftModel)


@pytest.mark.parametrize("name", [None, "", 5])
def test_an_adapter_names_its_base(name: object, adapter: Path) -> None:
    name_base(adapter, name)
    with pytest.raises(ModelError, match="does not name its base model"):
        load_source(adapter)


def test_an_adapter_is_no_base(adapter: Path) -> None:
    name_base(adapter, str(adapter))
    with pytest.raises(ModelError, match="its own folder as its base"):
        load_source(adapter)
    second = adapter.parent / "b"
    get_peft_model(build_model("llama"), LoraConfig(**LORA)).save_pretrained(str(second))
    name_base(second, str(adapter))
    with pytest.raises(ModelError, match="is itself an adapter: merge that one first"):
        load_source(second)


def test_tokenizer_and_template_of_the_adapter_win(adapter: Path, tiny_model_folder: Path, folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.save_pretrained(folder)
    (adapter / "chat_template.jinja").write_text("THEIRS")
    assert load_source(adapter).tokenizer.chat_template == "THEIRS"  # type: ignore[union-attr]
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    assert len(load_source(adapter).tokenizer) == len(tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}],
    ids=str,
)
def test_more_than_lora_is_merged_first_and_said_so(more: dict[str, Any], folder: Path) -> None:
    base: Any = load_source(folder).model
    worn = get_peft_model(base, LoraConfig(**{**LORA, **more}))
    with torch.no_grad():
        for parameter in worn.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    worn.save_pretrained(str(folder.parent / "a"))
    source = load_source(folder.parent / "a")
    ids = torch.tensor([[1, 2, 3]])
    assert not isinstance(source.model, PeftModel)
    torch.testing.assert_close(source.model(ids).logits, worn.eval()(ids).logits, atol=1e-5, rtol=1e-4)
    assert f"{next(iter(more))}=" in source.notes[0]


def test_an_adapter_whose_options_only_extend_loras_is_merged_first() -> None:
    options = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10, tinit=1, tfinal=2)
    source = load_source(get_peft_model(build_model("llama"), options))
    assert not isinstance(source.model, PeftModel)
    assert "AdaLoraConfig" in source.notes[0]


def test_embeddings_that_came_with_an_adapter_are_merged_as_well(adapter: Path) -> None:
    key = "base_model.model.model.embed_tokens.weight"
    rewrite_adapter(adapter, lambda t: {**t, key: torch.ones(272, 32)})
    source: Any = load_source(adapter)
    assert not isinstance(source.model, PeftModel)
    assert torch.equal(source.model.model.embed_tokens.weight, torch.ones(272, 32))
    assert "embeddings of its own" in source.notes[0]


def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(build_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match=r"PromptTuningConfig.*peft cannot merge it"):
        load_source(model)


def test_what_apply_reads_is_finite_and_more_than_zeros(adapter: Path, folder: Path) -> None:
    check_not_blank(adapter)
    rewrite_adapter(adapter, lambda t: {k: torch.zeros_like(v) for k, v in t.items()})
    with pytest.raises(ModelError, match="nothing but zeros"):
        check_not_blank(adapter)
    rewrite_adapter(adapter, lambda t: {k: v / 0 for k, v in t.items()})
    with pytest.raises(ModelError, match="NaN or infinite"):
        check_not_blank(adapter)


def test_an_adapter_goes_onto_the_bare_model_of_another(adapter: Path) -> None:
    worn = load_source(adapter).model
    assert len(load_adapter(worn, adapter).peft_config) == 1


def test_a_cut_adapter_file_and_a_missing_one_are_errors(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(LpcError, match="cut off"):
        load_source(adapter)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"adapter_model\.safetensors"):
        load_source(adapter)

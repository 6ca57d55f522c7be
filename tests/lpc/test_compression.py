"""compress, save and apply on a tiny real model; one compression is shared by the tests that only look at it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import lpc
from exporters.files import sha256

TUNE = lpc.TuneOptions(steps=6, batch_size=2, schedule=lpc.Schedule(every=1))
TEXT = lpc.DataOptions(sequence_length=32)

FILES = {"plan.json", "scores.safetensors", "lpc.json", "report.md", "report.html", "recipe.yaml"}


@pytest.fixture(scope="module")
def result(tiny_model_folder: Path, text_file: Path) -> lpc.Result:
    return lpc.compress(tiny_model_folder, data=text_file, ratio=0.3, tune=TUNE, data_options=TEXT)


@pytest.fixture(scope="module")
def saved(result: lpc.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "out"
    result.save(out, export=["hf"])
    return out


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_compress_removes_the_share_and_returns_a_stock_model(result: lpc.Result, tiny_llama: PreTrainedModel) -> None:
    dense, pruned = _parameters(tiny_llama), _parameters(result.model)
    assert pruned <= 0.7 * dense
    assert result.report.dense.parameters == dense
    assert result.report.pruned.parameters == pruned == result.plan.target_parameters
    assert type(result.model).__module__.startswith("transformers.models.")
    assert not hasattr(result.model, "peft_config")


def test_compress_reports_heldout_perplexities(result: lpc.Result) -> None:
    heldout = result.report.heldout
    assert heldout is not None
    assert heldout.context_length == 32
    assert heldout.labels == 31 * heldout.rows
    assert set(heldout.measures) == {"loss", "perplexity"}
    perplexity, loss = heldout.measures["perplexity"], heldout.measures["loss"]
    assert perplexity.dense > 1
    assert perplexity.removed is not None
    assert len({perplexity.dense, perplexity.removed, perplexity.pruned}) == 3
    assert loss.dense == pytest.approx(math.log(perplexity.dense))


def test_compress_leaves_a_live_model_as_it_was(tiny_llama: PreTrainedModel) -> None:
    before = copy.deepcopy(tiny_llama.state_dict())
    names = [name for name, _ in tiny_llama.named_modules()]
    grads = [parameter.requires_grad for parameter in tiny_llama.parameters()]
    data = [list(range(i, i + 100)) for i in range(20)]
    lpc.compress(tiny_llama, data=data, ratio=0.3, tune=TUNE, data_options=TEXT)
    assert names == [name for name, _ in tiny_llama.named_modules()]
    assert grads == [parameter.requires_grad for parameter in tiny_llama.parameters()]
    for name, value in tiny_llama.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_compress_is_the_same_again_with_the_same_seed(tiny_llama: PreTrainedModel) -> None:
    data = [list(range(i, i + 100)) for i in range(20)]
    first, second, other = (
        lpc.compress(tiny_llama, data=data, ratio=0.3, tune=TUNE, data_options=TEXT, seed=seed) for seed in (1, 1, 2)
    )
    assert first.plan == second.plan
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize("form", ["list of texts", "dataset", "token ids", "two paths"])
def test_compress_takes_every_form_of_data(
    form: str, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, text_file: Path
) -> None:
    text = text_file.read_text(encoding="utf-8")[:4000]
    data = {
        "list of texts": [text, text[:500]],
        "dataset": datasets.Dataset.from_dict({"text": [text]}),
        "token ids": [tiny_tokenizer.encode(text)],
        "two paths": [text_file, str(text_file)],
    }[form]
    options = lpc.TuneOptions(steps=1, batch_size=2)
    result = lpc.compress(tiny_llama, data=data, ratio=0.3, tokenizer=tiny_tokenizer, tune=options, data_options=TEXT)
    assert _parameters(result.model) <= 0.7 * _parameters(tiny_llama)


def test_save_writes_the_contract(saved: Path, result: lpc.Result) -> None:
    assert {path.name for path in saved.iterdir()} == {"hf", "adapter", *FILES}
    assert lpc.Plan.load(saved / "plan.json") == result.plan
    manifest = json.loads((saved / "lpc.json").read_text())
    assert manifest["schema_version"] == 2
    assert manifest["source"]["parameters"] == result.report.dense.parameters
    assert manifest["target"]["parameters"] == result.report.pruned.parameters
    assert manifest["ratio"] == {"asked": 0.3, "achieved": result.plan.achieved_ratio, "multiple": 8}
    names = [record["name"] for record in manifest["passes"]]
    around = ["decide", "measure", "merge", "shrink", "measure", "save"]
    assert names == ["load", "trace", "measure", "attach", "tune", *around]
    assert all(record["seconds"] > 0 and record["peak_memory_bytes"] > 1e6 for record in manifest["passes"])
    assert manifest["parity"]["attach"]["value"] == manifest["parity"]["save"]["value"] == 0
    assert manifest["parity"]["shrink"]["value"] <= 1e-5
    assert manifest["versions"]["torch"].startswith("2.")
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()} - {"lpc.json"}
    assert set(manifest["files"]) == files
    assert all(sha256(saved / name) == entry["sha256"] for name, entry in manifest["files"].items())


def test_save_says_where_the_output_runs_and_claims_nothing_without_an_onnx_package(saved: Path) -> None:
    found = {each["target"]: each for each in json.loads((saved / "lpc.json").read_text())["compatibility"]}
    stock, onnx, vllm = found["transformers"], found["onnxruntime"], found["vLLM"]
    assert (stock["runs"], stock["evidence"], stock["source"]) == ("yes", "run here", "parity 'save'")
    assert (onnx["runs"], onnx["evidence"]) == ("unverified", "")
    assert (vllm["runs"], vllm["evidence"]) == ("yes", "by rule, not run here")
    report = (saved / "report.md").read_text()
    assert f"| vLLM | yes, by rule, not run here | {vllm['reason']} | {vllm['source']} |" in report


def test_saved_checkpoint_loads_with_stock_transformers(saved: Path, result: lpc.Result) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(saved / "hf")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, result.model(ids).logits)


def test_apply_gives_the_same_checkpoint_bit_for_bit(
    saved: Path, tiny_model_folder: Path, result: lpc.Result, tmp_path: Path
) -> None:
    replayed = lpc.apply(saved / "plan.json", tiny_model_folder, adapter=saved / "adapter")
    assert type(replayed.model) is type(result.model)
    for (name, mine), theirs in zip(
        result.model.state_dict().items(), replayed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    replayed.save(tmp_path / "again", export=["hf"])
    assert sha256(tmp_path / "again/hf/model.safetensors") == sha256(saved / "hf/model.safetensors")


def test_apply_without_the_adapter_prunes_the_dense_weights(saved: Path, tiny_model_folder: Path) -> None:
    replayed = lpc.apply(lpc.Plan.load(saved / "plan.json"), tiny_model_folder)
    dense = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert torch.equal(replayed.model.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    channels = list(replayed.plan.kept["layers.0.mlp_channels"])
    name = "model.layers.0.mlp.gate_proj.weight"
    assert torch.equal(replayed.model.get_parameter(name), dense.get_parameter(name)[channels])


def test_apply_refuses_another_model(saved: Path, tiny_llama: PreTrainedModel) -> None:
    with torch.no_grad():
        tiny_llama.get_parameter("model.norm.weight")[0] += 1
    with pytest.raises(lpc.PlanError, match="fingerprint"):
        lpc.apply(saved / "plan.json", tiny_llama)


def test_brought_adapter_is_kept_and_goes_on(tiny_llama: PreTrainedModel) -> None:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    brought = get_peft_model(copy.deepcopy(tiny_llama), config)
    before = copy.deepcopy(brought.state_dict())
    data = [list(range(i, i + 100)) for i in range(20)]
    result = lpc.compress(brought, data=data, ratio=0.3, tune=TUNE, data_options=TEXT)
    assert result.program.adapter is not None
    assert result.program.adapter.config.r == 3
    assert result.report.heldout is not None
    assert all(measure.removed is None for measure in result.report.heldout.measures.values())
    for name, value in brought.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert isinstance(brought, PeftModel)


def test_bf16_model_is_verified_as_closely_as_any_other(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    data = [list(range(i, i + 100)) for i in range(20)]
    result = lpc.compress(tiny_llama.to(torch.bfloat16), data=data, ratio=0.3, tune=TUNE, data_options=TEXT)
    assert result.model.dtype == torch.bfloat16
    report = result.save(tmp_path / "out", export=["hf"])
    parity = report.to_json()["parity"]
    assert parity["save"]["value"] == 0
    assert parity["shrink"]["value"] < parity["shrink"]["tolerance"] < 1e-5
    merging = report.heldout.merging
    assert merging.merged["loss"] == report.heldout.measures["loss"].pruned
    assert merging.attached["loss"] == pytest.approx(merging.merged["loss"], abs=0.1)
    assert "Merging the adapter rounds the weights" in report.to_markdown()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    assert loaded.dtype == torch.bfloat16


def test_unreachable_ratio_is_refused_before_training(tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(lpc.UnreachableBudgetError, match="largest reachable ratio is 0"):
        lpc.compress(tiny_llama, data=[[1, 2]], ratio=0.95)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
def test_ratio_outside_the_open_interval_is_refused(ratio: float, tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(lpc.OptionError, match=r"ratio must be (above 0 and below 1|a finite number)"):
        lpc.compress(tiny_llama, data=[[1, 2]], ratio=ratio)


def test_nan_weight_is_named(tiny_llama: PreTrainedModel) -> None:
    with torch.no_grad():
        tiny_llama.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = torch.nan
    with pytest.raises(lpc.ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        lpc.compress(tiny_llama, data=[[1, 2]], ratio=0.3)


def test_text_without_tokenizer_is_refused(tiny_llama: PreTrainedModel, text_file: Path) -> None:
    with pytest.raises(lpc.TokenizerError, match="tokenizer"):
        lpc.compress(tiny_llama, data=text_file, ratio=0.3)


def test_sequence_longer_than_the_context_is_refused(tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(lpc.OptionError, match="context of 128"):
        lpc.compress(tiny_llama, data=[[1] * 600], ratio=0.3, data_options=lpc.DataOptions(sequence_length=200))

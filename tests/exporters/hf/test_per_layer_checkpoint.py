"""Per-layer checkpoints: loaded where there is no lpc, saved again there, exported, and used by lpc's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
import zoo
from conftest import build_tokenizer
from transformers import PreTrainedModel
from uneven import uneven

import lpc
from exporters.hf import SavePass
from exporters.hf.checkpoint import first_different_tensor
from exporters.onnx import export_onnx
from exporters.options import OnnxOptions
from lpc.evaluation import evaluate
from lpc.exporting import export
from lpc.options import BenchmarkOptions, EvaluateOptions
from lpc.speed import benchmark
from passes.errors import UnsupportedModelError
from passes.models import FILE as MODELLING_FILE
from passes.pipeline import Program

NAMES = ("llama", "gemma2", "phi3", "mixtral")

WITHOUT_LPC = """
import sys
sys.modules.update(lpc=None, passes=None, exporters=None)
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

torch.set_num_threads(1)  # as in the tests: with more, sums are rounded otherwise

def check(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = torch.load(folder + "/inputs.pt")
    logits = model(**inputs).logits
    torch.save(logits, folder + "/logits.pt")
    ids = inputs["input_ids"][:1]
    options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    tokens = model.generate(ids, **options)
    assert torch.equal(tokens, model.generate(ids, cache_implementation="static", **options))
    torch.save(tokens, folder + "/tokens.pt")
    bare = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert torch.equal(bare(**inputs).last_hidden_state, model.base_model(**inputs).last_hidden_state)
    model.save_pretrained(folder + "/again")
    again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True).eval()
    assert torch.equal(again(**inputs).logits, logits)
    adapted = get_peft_model(again, LoraConfig(target_modules=["q_proj", "qkv_proj", "o_proj"], r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    worn = adapted.eval()(**inputs).logits
    assert not torch.allclose(worn, logits, atol=1e-3)
    merged = adapted.merge_and_unload(safe_merge=True)(**inputs).logits
    assert torch.allclose(merged, worn, atol=1e-4), (merged - worn).abs().max()

with torch.no_grad():
    for folder in sys.argv[1:]:
        check(folder)
"""


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, Path]]:
    """Checkpoints after a process without lpc has loaded them, written down what they compute, and saved them again."""
    root = tmp_path_factory.mktemp("elsewhere")
    models = {}
    for name in NAMES:
        models[name] = (uneven(name), root / name)
        SavePass(root / name)(Program.start(models[name][0]))
        torch.save(zoo.inputs(name, zoo.ZOO[name]), root / name / "inputs.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(root / "cache")}
    command = [sys.executable, "-c", WITHOUT_LPC, *(str(root / name) for name in NAMES)]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return models


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_process_without_lpc_computes_the_same_bit_for_bit(
    name: str, loaded_elsewhere: dict[str, tuple[PreTrainedModel, Path]]
) -> None:
    model, folder = loaded_elsewhere[name]
    inputs = zoo.inputs(name, zoo.ZOO[name])
    assert torch.equal(torch.load(folder / "logits.pt"), model(**inputs).logits)
    ids = inputs["input_ids"][:1]
    mine = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert torch.equal(torch.load(folder / "tokens.pt"), mine)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_again_loads_with_lpc_and_saves_again(
    name: str, loaded_elsewhere: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    model, folder = loaded_elsewhere[name]
    loaded = lpc.load(folder / "again")
    assert type(loaded) is type(model)
    assert first_different_tensor(model, loaded) is None
    loaded.save_pretrained(tmp_path)
    for file in ("model.safetensors", MODELLING_FILE):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
    mine, theirs = (json.loads((each / "config.json").read_text()) for each in (folder, tmp_path))
    assert theirs == mine


def test_lpc_loads_without_running_the_file(tmp_path: Path) -> None:
    model = uneven("llama")
    model.save_pretrained(tmp_path)
    (tmp_path / MODELLING_FILE).write_text("raise SystemExit('the file was run')\n")
    assert first_different_tensor(model, lpc.load(tmp_path)) is None


def test_per_layer_checkpoints_of_others_load_too_unless_they_skip_parts(tmp_path: Path) -> None:
    """Written by other tools: the stock class's name, no file, and no leave to read global values."""
    model = uneven("stablelm")
    model.save_pretrained(tmp_path)
    (tmp_path / MODELLING_FILE).unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    values = {k: v for k, v in values.items() if k not in ("auto_map", "allow_global_per_layer_attribute_access")}
    values["architectures"] = ["StableLmForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert first_different_tensor(model, lpc.load(tmp_path)) is None
    values["per_layer_config"]["1"]["skip"] = ["mlp"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedModelError, match="skips parts of layers"):
        lpc.load(tmp_path)


def test_pruning_one_again_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedModelError, match=r"already compact, .*per_layer_config.*; prune the source"):
        lpc.compress(uneven("llama"), data=[list(range(64))] * 8, ratio=0.1, steps=1)


@pytest.mark.parametrize(
    ("name", "route"), [("qwen3", "builder"), pytest.param("phi3", "torch", marks=pytest.mark.matrix)]
)
def test_the_onnx_package_has_each_layer_s_own_cache(name: str, route: str, tmp_path: Path) -> None:
    """Verified against torch on the way: prefill, decode, padding, and GenAI's greedy tokens equal to generate's."""
    package = export_onnx(uneven(name), build_tokenizer(), tmp_path, OnnxOptions(greedy_prompts=2, greedy_tokens=6))
    assert package.route == route
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    sizes = {each.name: [axis.dim_value for axis in each.type.tensor_type.shape.dim] for each in graph.input}
    heads = [sizes[f"past_key_values.{layer}.{part}"][1] for layer in (0, 1) for part in ("key", "value")]
    assert heads == [3, 3, 4, 4]
    assert package.no_genai is None
    assert {parity.name: parity.value for parity in package.parity}["genai greedy tokens"] == 0
    described = json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]
    assert (described["num_attention_heads"], described["num_key_value_heads"]) == (6, 3)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_export_benchmark_and_evaluate_take_such_a_checkpoint(tmp_path: Path, text_file: Path) -> None:
    model, hf = uneven("llama"), tmp_path / "out" / "hf"
    SavePass(hf, build_tokenizer())(Program.start(model))
    package = export(hf, tmp_path / "out" / "onnx", OnnxOptions(greedy_prompts=1, greedy_tokens=4))
    assert package.parameters == sum(parameter.numel() for parameter in model.parameters())
    quick = BenchmarkOptions(
        beyond_context=False, repeats=2, warmup=1, threads=(1,), batches=(1,), prefill_tokens=(6,), decode_pasts=(3,)
    )
    assert benchmark(tmp_path / "out", None, quick).runs
    found = evaluate(tmp_path / "out", EvaluateOptions(text=text_file, limit=2))
    assert {each.backend for each in found.runs} == {"hf", "onnx", "genai"}

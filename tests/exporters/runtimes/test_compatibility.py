"""Verdicts on tiny compact models, each against a fact that the rules do not use."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import transformers
import zoo
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.hf import SavePass
from exporters.hf.checkpoint import save_checkpoint
from exporters.onnx import ExportPass, ExportReport
from exporters.options import OnnxOptions
from exporters.runtimes import Verdict, compatibility
from exporters.runtimes.compatibility import TARGETS
from exporters.runtimes.onnx import GENAI, LM_EVAL, ONNXRUNTIME, OPTIMUM, TRITON
from exporters.runtimes.shape import Shape
from exporters.runtimes.verdict import BY_RULE, RUN_HERE, Evidence
from exporters.runtimes.vllm import GPUS, tensor_parallel
from passes.errors import OptionError
from passes.graph import Kind
from passes.models import AUTO_CLASSES, Parity, Task
from passes.models import FILE as MODELLING_FILE
from passes.options import TraceOptions
from passes.pipeline import PassRecord, Pipeline, Program
from passes.shrink import build_compact
from passes.trace import trace

DECODER = ExportReport(kind="decoder", opset=23, route="builder", kv_bytes_per_token=64, no_genai=None)
GREEDY = Parity("genai greedy tokens", 0.0, 0.01)
PREFILL = Parity("onnx prefill", 1e-7, 1e-4)
EXPORTED = Evidence(saved=True, export=DECODER, parity=(PREFILL, GREEDY))


@lru_cache
def compact(
    name: str, heads: int, channels: int = 32, *, uneven: bool = False, custom_code: bool = False
) -> PreTrainedModel:
    """A zoo model with so many head units and channels left; ``uneven``: one head unit less in the last layer."""
    model = zoo.build(name)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=custom_code))
    last = max(dimension.layer for dimension in graph.dimensions)
    kept = {}
    for dimension in graph.dimensions:
        left = channels if dimension.kind is Kind.MLP_CHANNELS else min(heads, dimension.size)
        fewer = uneven and dimension.layer == last and dimension.kind is not Kind.MLP_CHANNELS
        kept[dimension.name] = list(range(left - fewer))
    return build_compact(model, graph, kept)


CASES = {
    "llama, heads divide": lambda: compact("llama", 2),
    "llama, written as mistral": lambda: compact("llama", 3),
    "qwen2": lambda: compact("qwen2", 3),
    "gemma2": lambda: compact("gemma2", 2),
    "bert": lambda: compact("bert", 8),
    "gpt2, channels only": lambda: compact("gpt2", 8),
    "gpt2, fewer heads": lambda: compact("gpt2", 3, custom_code=True),
    "gpt2, by layer": lambda: compact("gpt2", 3, uneven=True, custom_code=True),
}


def verdicts(model: PreTrainedModel, evidence: Evidence = EXPORTED) -> dict[str, Verdict]:
    shape = Shape.of(model)
    return {target.name: target.judge(shape, evidence) for target in TARGETS}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_transformers_says_what_the_auto_class_does_in_fact(case: str, tmp_path: Path) -> None:
    model = CASES[case]()
    save_checkpoint(model, None, tmp_path)
    auto = getattr(transformers, AUTO_CLASSES[Shape.of(model).task])
    ids = torch.arange(8)[None]
    try:
        loaded = auto.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=False).eval()
        works = torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    except RuntimeError:
        works = False
    found = verdicts(model, Evidence())
    stock, remote = found["transformers"], found["transformers, trust_remote_code"]
    assert stock.runs == ("yes" if works else "no"), stock
    assert remote.runs == ("yes" if works else "with file"), remote
    assert (tmp_path / MODELLING_FILE).exists() == (remote.runs == "with file")
    assert stock.evidence == (BY_RULE if works else RUN_HERE)


def test_shape_of_a_mistral_that_was_a_llama() -> None:
    shape = Shape.of(compact("llama", 3))
    assert (shape.model_class, shape.uniform, shape.square, shape.needs_file) == (
        "MistralForCausalLM",
        True,
        False,
        False,
    )
    assert (shape.heads, shape.kv_heads, shape.head_dims) == ((6, 6), (3, 3), (8, 8))
    assert shape.rows == (32, 48)


def test_shape_reads_widths_from_the_parameters() -> None:
    shape = Shape.of(compact("gpt2", 3, custom_code=True))
    assert (shape.layers, shape.hidden_size, shape.heads, shape.head_dim, shape.rows) == (2, 32, (3, 3), 4, (12, 32))
    assert Shape.of(zoo.build("t5")).layers == 4


def test_shape_names_what_differs_by_layer() -> None:
    shape = Shape.of(compact("gpt2", 3, uneven=True, custom_code=True))
    assert (shape.heads, shape.uniform, shape.needs_file) == ((3, 2), False, True)
    assert shape.differs is not None
    assert shape.differs.startswith("transformer.h.*.attn.c_attn.weight: [32, 24], [32, 36]")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_dense_stock_model_is_uniform_and_stock(name: str) -> None:
    shape = Shape.of(zoo.build(name))
    assert (shape.differs, shape.removed, shape.not_stock, shape.needs_file) == (None, (), None, False)


def _emptied() -> PreTrainedModel:
    """A Llama whose first attention block has lost all its heads."""
    model = zoo.build("llama")
    block = model.get_submodule("model.layers.0.self_attn")
    for name in ("q_proj", "k_proj", "v_proj"):
        block.get_submodule(name).weight = nn.Parameter(torch.empty(0, 32))
    block.get_submodule("o_proj").weight = nn.Parameter(torch.empty(32, 0))
    return model


def test_a_removed_sublayer_is_seen_and_refused_where_layers_must_be_alike() -> None:
    shape, found = Shape.of(_emptied()), verdicts(_emptied())
    assert shape.removed == ("model.layers.0.self_attn",)
    assert len(shape.heads) == 1
    for name in ("transformers", "transformers, trust_remote_code", "vLLM", "llama.cpp (GGUF)", OPTIMUM.name):
        assert found[name].runs == "no", found[name]
    assert found[TRITON.name].runs == found[GENAI.name].runs == "yes"


def test_a_missing_parameter_counts_as_a_difference() -> None:
    model = zoo.build("llama")
    model.get_submodule("model.layers.1").mlp = nn.Identity()  # type: ignore[assignment]
    assert Shape.of(model).differs == "model.layers.*.mlp.gate_proj.weight: only in layers 0"


def test_a_class_of_the_user_s_own_is_not_taken_for_stock() -> None:
    class OwnForCausalLM(transformers.LlamaForCausalLM):
        pass

    found = verdicts(OwnForCausalLM(zoo.ZOO["llama"].config()))
    assert found["transformers"].runs == found["transformers, trust_remote_code"].runs == "no"
    assert "OwnForCausalLM is a class of its own" in found["transformers"].reason
    assert found["llama.cpp (GGUF)"].runs == "no"


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_qwen2_fits_other_loaders_only_while_queries_are_as_wide_as_the_hidden_size(heads: int, tmp_path: Path) -> None:
    model = compact("qwen2", heads)
    save_checkpoint(model, None, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        width = weights.get_slice("model.layers.0.self_attn.q_proj.weight").get_shape()[0]
    hidden = json.loads((tmp_path / "config.json").read_text())["hidden_size"]
    found = verdicts(model)
    assert (found["llama.cpp (GGUF)"].runs != "no") == (width == hidden)
    assert (found[OPTIMUM.name].runs != "no") == (width == hidden)
    if width != hidden:
        assert (found["vLLM"].runs, "--model-impl transformers" in found["vLLM"].reason) == ("partly", True)


@pytest.mark.parametrize("channels", [32, 24])
def test_llama_cpp_quantises_all_only_where_every_row_in_the_file_is_a_multiple_of_32(
    channels: int, tmp_path: Path
) -> None:
    model = compact("llama", 2, channels)
    save_checkpoint(model, None, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        rows = {weights.get_slice(name).get_shape()[-1] for name in weights.keys() if "norm" not in name}  # noqa: SIM118
    verdict = verdicts(model)["llama.cpp (GGUF)"]
    odd = {row for row in rows if row % 32}
    assert verdict.runs == ("partly" if odd else "yes")
    assert all(str(row) in verdict.reason for row in odd)


def test_llama_cpp_scales_gemma2_by_its_own_rule() -> None:
    shape = Shape.of(compact("gemma2", 2))
    judge = TARGETS[-1].judge
    assert judge(shape, EXPORTED).runs == "no"
    assert judge(replace(shape, attention_scalar=8), EXPORTED).runs != "no"
    assert judge(replace(shape, attention_scalar=8, layers=46), EXPORTED).runs == "yes"  # 32 // 4 heads
    assert judge(replace(shape, attention_scalar=8, layers=46, heads=(2, 2)), EXPORTED).runs == "no"


def test_tensor_parallel_is_what_vllm_asserts() -> None:
    shape = Shape.of(compact("llama", 3))
    assert tensor_parallel(shape) == (1,)  # six heads, three KV heads
    for heads, groups in ((32, 8), (24, 6), (7, 7), (12, 4), (16, 1)):
        wanted = [n for n in GPUS if heads % n == 0 and (groups % n == 0 if groups >= n else n % groups == 0)]
        assert list(tensor_parallel(replace(shape, heads=(heads,), kv_heads=(groups,)))) == wanted


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({}, "yes"),
        ({"head_dims": (80, 80), "heads": (4, 4), "hidden_size": 320}, "yes"),
        ({"head_dims": (100, 100)}, "partly"),
        ({"head_dims": (512, 512)}, "partly"),
        ({"model_type": "something", "model_class": "SomethingForCausalLM"}, "unverified"),
        ({"model_type": "phi", "model_class": "PhiForCausalLM", "heads": (3, 3)}, "partly"),
        ({"model_type": "stablelm", "model_class": "StableLmForCausalLM", "heads": (3, 3)}, "unverified"),
        ({"model_type": "smollm3", "model_class": "SmolLM3ForCausalLM", "heads": (3, 3)}, "yes"),
        ({"task": Task.SEQ2SEQ_LM}, "no"),
        ({"task": Task.MASKED_LM}, "unverified"),
        ({"not_stock": "made up"}, "no"),
    ],
)
def test_vllm(changes: dict[str, object], runs: str) -> None:
    vllm = next(target for target in TARGETS if target.name == "vLLM")
    verdict = vllm.judge(replace(Shape.of(compact("llama", 2)), **changes), EXPORTED)  # type: ignore[arg-type]
    assert verdict.runs == runs, verdict
    assert not verdict.run_here


def test_onnx_verdicts_are_those_of_the_export(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = compact("llama", 3)
    options = OnnxOptions(greedy_prompts=1, greedy_tokens=4)
    steps = SavePass(tmp_path / "hf", tiny_tokenizer), ExportPass(tmp_path / "onnx", tiny_tokenizer, options)
    history = Pipeline(steps)(Program.start(model)).program.history
    found = {verdict.target: verdict for verdict in compatibility(model, history)}
    assert (tmp_path / "onnx" / "genai_config.json").exists()
    for name in ("transformers", ONNXRUNTIME.name, GENAI.name):
        assert (found[name].runs, found[name].run_here) == ("yes", True), found[name]
    for name in (LM_EVAL.name, TRITON.name):
        assert (found[name].runs, found[name].evidence) == ("yes", BY_RULE), found[name]
    assert found[OPTIMUM.name].runs == "no"


@pytest.mark.parametrize(
    ("export", "parity", "wanted"),
    [
        (None, (), {ONNXRUNTIME.name: "unverified", GENAI.name: "unverified", TRITON.name: "unverified"}),
        (DECODER, (PREFILL,), {ONNXRUNTIME.name: "yes", GENAI.name: "unverified", LM_EVAL.name: "unverified"}),
        (DECODER, (), {ONNXRUNTIME.name: "unverified"}),
        (replace(DECODER, no_genai="GenAI says no"), (PREFILL,), {GENAI.name: "no", LM_EVAL.name: "no"}),
        (replace(DECODER, kind="single"), (PREFILL,), {GENAI.name: "no", ONNXRUNTIME.name: "yes", TRITON.name: "yes"}),
    ],
)
def test_nothing_is_claimed_that_the_export_did_not_verify(
    export: ExportReport | None, parity: tuple[Parity, ...], wanted: dict[str, str]
) -> None:
    found = verdicts(compact("llama", 2), Evidence(export=export, parity=parity))
    assert {name: found[name].runs for name in wanted} == wanted
    assert all(found[name].evidence == "" for name, runs in wanted.items() if runs == "unverified")
    assert not found[LM_EVAL.name].run_here


def test_a_tie_in_the_greedy_tokens_is_named() -> None:
    ties = Evidence(export=DECODER, parity=(PREFILL, replace(GREEDY, value=1e-3)))
    assert "ties within rounding" in verdicts(compact("llama", 2), ties)[GENAI.name].reason
    assert "ties" not in verdicts(compact("llama", 2))[GENAI.name].reason


def test_greedy_tokens_of_every_precision_are_evidence_and_must_all_hold() -> None:
    packages = ("int4", "bf16")
    parity = tuple(replace(each, name=f"{name}: {each.name}") for name in packages for each in (PREFILL, GREEDY))
    found = verdicts(compact("llama", 2), Evidence(export=DECODER, parity=parity))
    assert found[GENAI.name].runs == found[LM_EVAL.name].runs == "yes"
    failed = (*parity[:-1], replace(parity[-1], value=1.0))
    assert verdicts(compact("llama", 2), Evidence(export=DECODER, parity=failed))[GENAI.name].runs == "unverified"


def test_a_save_that_did_not_hold_is_no_evidence() -> None:
    record = PassRecord(name="save", options={}, seconds=0.0, peak_memory_bytes=0, modified=False)
    assert Evidence.of([replace(record, parity=(Parity("save", 0.0, 0.0),))]).saved
    assert not Evidence.of([replace(record, parity=(Parity("save", 0.1, 0.0),))]).saved
    assert not Evidence.of([]).saved


def test_verdicts_are_json_and_have_a_reason_and_a_source() -> None:
    found = compatibility(compact("gpt2", 3, custom_code=True))
    assert len({verdict.target for verdict in found}) == len(TARGETS) == 9
    assert [Verdict(**each) for each in json.loads(json.dumps([asdict(verdict) for verdict in found]))] == list(found)


@pytest.mark.parametrize("changes", [{"runs": "maybe"}, {"reason": ""}, {"source": ""}])
def test_a_verdict_without_reason_source_or_a_known_word_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"maybe|needs a target"):
        Verdict(**{"target": "vLLM", "runs": "yes", "reason": "r", "source": "s", **changes})  # type: ignore[arg-type]

"""What cannot be exported, what GenAI cannot serve, and how that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from onnx_outcome import try_export
from torch import nn
from transformers import GptOssConfig, MambaConfig, MambaForCausalLM, ViTModel
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from exporters.onnx import causal as onnx_causal
from exporters.onnx import export_onnx, takes_positions
from exporters.onnx.experts import NAME, ExpertStep, stacked, traceable_experts
from exporters.onnx.genai import GenaiRefusedError
from exporters.onnx.greedy import greedy_gap
from exporters.onnx.refusals import kind_of
from exporters.onnx.single import takes_token_types
from exporters.onnx.torch_caches import plain_shapes
from exporters.options import OnnxOptions
from passes.errors import UnsupportedModelError
from passes.models import vendor

SMALL = {"vocab_size": 272, "hidden_size": 16, "num_hidden_layers": 1}


@pytest.mark.filterwarnings("ignore")  # Mamba tells that its kernels are not installed
def test_model_without_keys_and_values_is_refused_with_the_reason() -> None:
    model = MambaForCausalLM(MambaConfig(**SMALL, state_size=4)).eval()
    outcome = try_export(model, build_tokenizer())
    assert outcome.worst_parity is None
    assert "MambaForCausalLM (mamba) keeps no cache, not a plain list of keys and values" in str(outcome.refused)


def test_windowed_cache_is_refused_with_the_layer() -> None:
    model = zoo.build("gemma2")
    with torch.no_grad():
        cache = vendor.cache_of(model(torch.ones(1, 3, dtype=torch.int64)))
    with pytest.raises(UnsupportedModelError, match="layer 0 keeps a DynamicSlidingWindowLayer"):
        plain_shapes(model, cache)


def test_classifier_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    model = zoo.build("llama-sequence-classification", pad_token_id=None)
    with pytest.raises(UnsupportedModelError, match="no padding token is defined"):
        export_onnx(model, None, tmp_path)


def test_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = ViTModel(zoo.ZOO["vit"].config()).eval()
    with pytest.raises(UnsupportedModelError, match="ViTModel has no task"):
        export_onnx(model, None, tmp_path)


def test_builder_is_refused_for_what_is_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="knows only causal language models, not BertForMaskedLM"):
        export_onnx(zoo.build("bert"), None, tmp_path, OnnxOptions(route="builder"))


def test_package_says_so_when_genai_refuses_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise GenaiRefusedError("unknown input alibi")

    monkeypatch.setattr(onnx_causal, "verify_greedy", refuse)
    package = export_onnx(build_model("llama"), build_tokenizer(), tmp_path)
    assert package.no_genai == "unknown input alibi"
    assert "genai_config.json" not in package.files
    assert {parity.name for parity in package.parity}.isdisjoint({"genai greedy tokens"})


def test_outcome_gives_the_worst_parity() -> None:
    outcome = try_export(build_model("qwen3"), build_tokenizer(), OnnxOptions(greedy_prompts=0))
    assert outcome.kind == "decoder"
    assert outcome.refused is None
    assert outcome.no_genai is None
    assert 0 < (outcome.worst_parity or 0) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind"), [("gpt2", "decoder"), ("vit", "single"), ("bert", "single"), ("bart", "encoder-decoder")]
)
def test_kind_follows_the_task(name: str, kind: str) -> None:
    assert kind_of(zoo.build(name)) == kind


@pytest.mark.parametrize(
    ("name", "expected"), [("gpt2", True), ("llama", True), ("bloom", False), ("falcon-mha-alibi", False)]
)
def test_positions_are_an_input_where_the_logits_depend_on_them(name: str, expected: bool) -> None:
    assert takes_positions(zoo.build(name)) is expected


def test_token_types_are_an_input_where_there_is_more_than_one() -> None:
    assert takes_token_types(zoo.build("bert"))
    assert not takes_token_types(zoo.build("roberta", type_vocab_size=1))
    assert not takes_token_types(zoo.build("distilbert"))


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@torch.no_grad()
def test_the_steps_of_all_experts_add_up_to_the_eager_mixture(name: str) -> None:
    """Mixtral's, and GPT-OSS's, whose weights are turned and which have biases."""
    stack: Any = zoo.build("mixtral").model.layers[0].mlp.experts if name == "mixtral" else gpt_oss_experts()
    stack.config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(0)
    experts, width = stack.down_proj.shape[0], stack.hidden_size if name == "gpt_oss" else stack.hidden_dim
    hidden, weights = torch.randn(6, width, generator=generator), torch.rand(6, 2, generator=generator)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:2] for _ in range(6)])
    total = torch.zeros_like(hidden)
    for expert in range(experts):
        tokens, place = torch.where(chosen == expert)
        slices = [getattr(stack, each)[expert] for each in stacked(stack)]
        total[tokens] += ExpertStep(stack)(hidden[tokens], weights[tokens, place, None], *slices)
    torch.testing.assert_close(total, stack(hidden, chosen, weights), rtol=1e-5, atol=1e-5)


def gpt_oss_experts() -> nn.Module:
    config = GptOssConfig(hidden_size=16, intermediate_size=24, num_local_experts=4, num_hidden_layers=1)
    torch.manual_seed(0)
    stack = GptOssExperts(config)
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.2)
    return stack


def test_the_models_own_experts_are_back_after_the_block() -> None:
    model = zoo.build("mixtral")
    model.set_experts_implementation("eager")
    with traceable_experts(model) as mixtures:
        assert model.config._experts_implementation == NAME
        model(torch.arange(4)[None])
    assert mixtures.met == [layer.mlp.experts for layer in model.model.layers]
    assert model.config._experts_implementation == "eager"


def test_greedy_gap_is_infinite_when_tokens_are_missing() -> None:
    class Reference:
        sequences = torch.tensor([[5, 1, 2]])
        logits = (torch.tensor([[0.0, 4.0, 3.0]]), torch.tensor([[0.0, 1.0, 2.0]]))

    assert greedy_gap(Reference, [5, 1, 2]) == 0.0
    assert greedy_gap(Reference, [5, 2, 2]) == 0.25
    assert greedy_gap(Reference, [5, 1]) == float("inf")

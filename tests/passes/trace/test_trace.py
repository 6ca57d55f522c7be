from __future__ import annotations

import resource
from dataclasses import replace

import psutil
import pytest
import torch
import zoo
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification, MptConfig
from transformers.models.llama import modeling_llama
from workbench import adapted, build_model, traced

from passes.errors import UnsupportedModelError
from passes.graph import Kind
from passes.models import Probe
from passes.pipeline import Program
from passes.trace import TracePass, trace

GIB = 1 << 30


def test_an_8b_llama_is_traced_without_its_weights() -> None:
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    before = max(psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    graph = trace(config)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < GIB
    assert graph.parameters() == 8_030_261_248
    assert graph.cost().weight_bytes == 2 * 8_030_261_248
    assert graph.cost().kv_cache_bytes == 2 * 2 * 32 * 8 * 128
    assert len(graph.of_kind(Kind.KV_GROUPS)) == len(graph.of_kind(Kind.MLP_CHANNELS)) == 32


@torch.no_grad()
def test_tracing_works_without_gradients() -> None:
    assert len(trace(build_model("llama").config).dimensions) == 4
    assert not torch.is_grad_enabled()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_tracing_leaves_the_model_as_it_is(family: str) -> None:
    model, pristine = build_model(family), build_model(family).state_dict()
    program = traced(model)
    assert program.model is model
    assert program.history[-1].modified is False
    assert all(torch.equal(value, pristine[name]) for name, value in model.state_dict().items())
    assert set(program.traced.shapes) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("family", ["bloom", "mixtral", "t5", "gpt2"])
def test_a_configuration_in_bf16_gives_the_graph_of_fp32(family: str) -> None:
    model = zoo.build(family)
    wanted = trace(model.config, torch.float32, model_type=type(model))
    model.config.dtype = torch.bfloat16
    assert trace(model.config, torch.float32, model_type=type(model)) == wanted


def test_biases_belong_to_their_units() -> None:
    graph = traced(build_model("llama", attention_bias=True, mlp_bias=True)).traced
    parts = {part.parameter for dimension in graph.dimensions for part in dimension.slices if not part.is_weight}
    names = {name.split(".", 3)[3] for name in parts}
    # The biases of o_proj and down_proj are of the residual stream, so no unit owns them.
    owners = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    assert names == {f"{owner}.bias" for owner in owners}


def test_an_unknown_family_is_refused_with_the_known_ones_and_the_remedy() -> None:
    model = AutoModelForCausalLM.from_config(MptConfig(n_layers=1, d_model=32, n_heads=4, vocab_size=272))
    with pytest.raises(UnsupportedModelError, match=r"'mpt'.*llama, mistral,.*qwen2,.*register_attention"):
        traced(model)


def test_a_quantised_model_is_refused() -> None:
    config = build_model("llama").config
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(UnsupportedModelError, match="quantised"):
        trace(config)


def test_layers_that_already_differ_are_refused() -> None:
    config = build_model("llama").config
    config.per_layer_config = {"1": {"intermediate_size": 32}}
    with pytest.raises(UnsupportedModelError, match="per_layer_config"):
        trace(config)


@pytest.mark.parametrize("where", ["model.layers.1.self_attn", "model.layers.0.mlp", "model.norm", ""])
def test_a_parameter_that_the_stock_class_lacks_is_refused(where: str) -> None:
    model = build_model("llama")
    model.get_submodule(where).register_parameter("sink", nn.Parameter(torch.ones(3)))
    with pytest.raises(UnsupportedModelError, match=f"{where}.*sink"):
        traced(model)


def test_a_bias_that_the_configuration_does_not_tell_is_refused() -> None:
    model = build_model("llama")
    model.model.layers[0].self_attn.q_proj.bias = nn.Parameter(torch.ones(64))
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.self_attn\.q_proj\.bias"):
        traced(model)


def test_weights_of_another_shape_than_configured_are_refused() -> None:
    model = build_model("llama")
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 48, bias=False)
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        TracePass()(Program(model, Probe.of(model)))


def test_a_classifier_has_the_dimensions_of_its_trunk() -> None:
    config = build_model("llama").config
    config.num_labels = 2
    classifier = traced(LlamaForSequenceClassification(config)).traced
    causal = traced(build_model("llama")).traced
    assert classifier.dimensions == tuple(replace(d, cache_elements=0) for d in causal.dimensions)
    assert classifier.cost().kv_cache_bytes == 0 < causal.cost().kv_cache_bytes
    assert classifier.shapes["score.weight"] == (2, 32)
    assert set(classifier.shapes) - set(causal.shapes) == {"score.weight"}


def test_a_model_without_a_task_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaPreTrainedModel has no task"):
        trace(build_model("llama").config, model_type=modeling_llama.LlamaPreTrainedModel)


def test_an_adapter_does_not_change_what_is_found() -> None:
    assert traced(adapted(build_model("llama")).model).traced == traced(build_model("llama")).traced


def patched(monkeypatch: pytest.MonkeyPatch, cls: type[nn.Module], name: str, size: int) -> None:
    """From now on every ``cls`` carries one more parameter, as a changed architecture would."""
    original = cls.__init__

    def with_extra(self: nn.Module, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        self.register_parameter(name, nn.Parameter(torch.ones(size)))

    monkeypatch.setattr(cls, "__init__", with_extra)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("cls", [modeling_llama.LlamaAttention, modeling_llama.LlamaMLP])
def test_an_unknown_structure_is_refused(monkeypatch: pytest.MonkeyPatch, cls: type[nn.Module], size: int) -> None:
    config = build_model("llama").config
    patched(monkeypatch, cls, "gain", size)
    with pytest.raises(UnsupportedModelError, match="gain"):
        trace(config)


def test_a_norm_inside_the_mlp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class NormedMLP(modeling_llama.LlamaMLP):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            self.norm = modeling_llama.LlamaRMSNorm(config.intermediate_size)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))

    config = build_model("llama").config
    monkeypatch.setattr(modeling_llama, "LlamaMLP", NormedMLP)
    with pytest.raises(UnsupportedModelError, match=r"mlp\.norm"):
        trace(config)


def test_heads_that_are_not_split_as_configured_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = modeling_llama.LlamaAttention.__init__

    def wider(self: nn.Module, config: LlamaConfig, layer_idx: int) -> None:
        original(self, config, layer_idx)
        self.q_proj = nn.Linear(config.hidden_size, 80, bias=False)

    config = build_model("llama").config
    monkeypatch.setattr(modeling_llama.LlamaAttention, "__init__", wider)
    with pytest.raises(UnsupportedModelError, match=r"q_proj has 80 outputs, expected 64"):
        trace(config)

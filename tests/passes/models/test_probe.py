"""The probe fits every model, and a response looks at what is real and at nothing else."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf
import zoo
from workbench import build_model, relative

from passes.errors import UnsupportedModelError
from passes.models import Probe, Response, Task, positions, respond, task_of

ALL = sorted(zoo.ZOO)
TEXT = [name for name in ALL if name not in zoo.VISION]


@pytest.mark.parametrize("name", ALL)
def test_every_model_answers_its_probe_made_from_a_model_without_weights(name: str) -> None:
    model = zoo.build(name)
    with torch.device("meta"):
        probe = Probe.of(type(model)(model.config))
    response = respond(model, probe)
    assert response.outputs
    assert all(torch.isfinite(value).all() for value in response.outputs.values())
    layers = 2 * 3 if model.config.is_encoder_decoder else 3
    assert len(response.hidden) == layers


@torch.no_grad()
def _bare(model: hf.PreTrainedModel, probe: Probe) -> dict[str, torch.Tensor]:
    """The outputs of the rows one by one, their padding cut off, strung together as a response has them."""
    found: dict[str, list[torch.Tensor]] = {}
    for row, mask in enumerate(probe.inputs["attention_mask"].bool()):
        inputs = {"input_ids": probe.inputs["input_ids"][row][mask][None]}
        if "decoder_input_ids" in probe.inputs:
            inputs["decoder_input_ids"] = probe.inputs["decoder_input_ids"][row][None]
        output = model(**inputs)
        for name in ("logits", "start_logits", "end_logits"):
            if output.get(name) is not None:
                pooled = task_of(model) is Task.SEQUENCE_CLASSIFICATION
                found.setdefault(name, []).append(output[name] if pooled else output[name][0])
    return {name: torch.cat(values) for name, values in found.items()}


@pytest.mark.parametrize("name", TEXT)
def test_the_response_of_a_padded_row_equals_that_of_the_bare_tokens(name: str) -> None:
    model = zoo.build(name)
    probe = Probe.of(model)
    response, bare = respond(model, probe), _bare(model, probe)
    assert response.outputs.keys() == bare.keys()
    for key, value in bare.items():
        assert relative(response.outputs[key], value) < 1e-4, key


def test_the_probe_of_a_causal_model_has_padding_on_both_sides() -> None:
    probe = Probe.of(build_model("llama"))
    mask, ids = probe.inputs["attention_mask"], probe.inputs["input_ids"]
    assert mask[0].all()
    assert mask[1].tolist() == [0] * 5 + [1] * 11
    assert mask[2].tolist() == [1] * 11 + [0] * 5
    assert torch.equal(probe.real, mask.bool())
    assert torch.equal(probe.inputs["position_ids"], positions(mask))
    assert 0 <= int(ids.min()) <= int(ids.max()) < 272
    assert (ids != 256).all()  # padding and end
    assert torch.equal(Probe.of(build_model("llama")).inputs["input_ids"], ids)
    assert not torch.equal(Probe.of(build_model("llama"), seed=1).inputs["input_ids"], ids)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama-sequence-classification", "t5"])
def test_the_probe_of_other_text_models_is_padded_with_their_token_on_the_right_only(name: str) -> None:
    model = zoo.build(name)
    inputs, pad = Probe.of(model).inputs, model.config.pad_token_id
    mask = inputs["attention_mask"]
    assert torch.equal(mask, mask.sort(dim=-1, descending=True).values)
    assert mask.sum() < mask.numel()
    assert torch.equal(inputs["input_ids"] == pad, mask == 0)
    assert "position_ids" not in inputs


def test_a_bloom_gets_no_position_ids() -> None:
    assert "position_ids" not in Probe.of(zoo.build("bloom")).inputs


def test_a_bart_classifier_finds_its_end_token_in_every_row() -> None:
    config = zoo.ZOO["bart"].config(num_labels=3, eos_token_id=255)
    model = hf.BartForSequenceClassification(config).eval()
    probe = Probe.of(model)
    assert ((probe.inputs["input_ids"] == 255).sum(-1) == 1).all()
    assert respond(model, probe).outputs["logits"].shape == (3, 3)


def test_a_classifying_decoder_without_a_padding_token_gets_one_row() -> None:
    model = zoo.build("llama-sequence-classification", pad_token_id=None)
    assert respond(model, Probe.of(model)).outputs["logits"].shape == (1, 5)


def test_a_model_that_takes_neither_text_nor_images_is_refused() -> None:
    class OddForImageClassification(hf.PreTrainedModel):
        config_class = hf.ViTConfig

        def forward(self, waves: torch.Tensor) -> torch.Tensor:
            return waves

    with pytest.raises(UnsupportedModelError, match="takes neither input_ids nor pixel_values"):
        Probe.of(OddForImageClassification(hf.ViTConfig()))


def test_images_come_in_the_dtype_of_the_model() -> None:
    model = zoo.build("vit").to(torch.bfloat16)
    probe = Probe.of(model)
    assert probe.inputs["pixel_values"].shape == (3, 3, 16, 16)
    assert probe.on(model.device, model.dtype)["pixel_values"].dtype == torch.bfloat16
    assert respond(model, probe).outputs["logits"].dtype == torch.bfloat16


def test_positions_count_real_tokens_as_generate_does() -> None:
    model, seen = build_model("llama"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    model.generate(torch.ones_like(mask), attention_mask=mask, max_new_tokens=1)
    real = mask.bool()
    assert positions(mask).tolist() == [[1, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert torch.equal(seen[0][real], positions(mask)[real])


def test_responding_leaves_training_mode_and_gradients_as_they_were() -> None:
    model = build_model("llama").train()
    response = respond(model, Probe.of(model))
    assert model.training
    assert not response.outputs["logits"].requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("parameter", "place"),
    [
        ("model.embed_tokens.weight", "the embedding is the first"),
        ("model.layers.0.mlp.up_proj.weight", "layer 0 is the first"),
        ("model.layers.1.self_attn.v_proj.weight", "layer 1 is the first"),
        ("model.layers.2.mlp.down_proj.weight", "layer 2 is the first"),
        ("lm_head.weight", "only the logits differ"),
    ],
)
def test_the_first_layer_that_differs_is_named(parameter: str, place: str) -> None:
    _check_place(build_model("llama", num_hidden_layers=3, tie_word_embeddings=False), parameter, place)


@pytest.mark.parametrize(
    ("parameter", "place"),
    [
        ("encoder.block.1.layer.1.DenseReluDense.wi.weight", "encoder layer 1 is the first"),
        ("decoder.block.0.layer.1.EncDecAttention.v.weight", "decoder layer 0 is the first"),
    ],
)
def test_the_side_of_an_encoder_decoder_that_differs_is_named(parameter: str, place: str) -> None:
    _check_place(zoo.build("t5"), parameter, place)


@torch.no_grad()
def _check_place(model: hf.PreTrainedModel, parameter: str, place: str) -> None:
    probe = Probe.of(model)
    expected = respond(model, probe)
    model.get_parameter(parameter).add_(0.05)
    actual = respond(model, probe)
    assert not actual.compare("x", expected, 1e-5).holds
    assert actual.first_difference(expected, 1e-5).startswith(place)


def test_the_worst_output_counts_and_a_nan_never_passes() -> None:
    one = torch.ones(3)
    reference = Response({"start_logits": one, "end_logits": one}, {})
    assert Response({"start_logits": one, "end_logits": one * 1.5}, {}).compare("x", reference, 1.0).value == 0.5
    for order in (("start_logits", "end_logits"), ("end_logits", "start_logits")):
        broken = Response(dict(zip(order, (one * math.nan, one), strict=True)), {})
        assert not broken.compare("x", reference, math.inf).holds
    assert Response({"logits": one}, {}).compare("x", reference, 1.0).value == math.inf

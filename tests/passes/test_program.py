from __future__ import annotations

import dataclasses

import pytest
import torch
from workbench import build_model, relative, silence_by_hand, traced

from passes.errors import ModelError
from passes.models import count_parameters
from passes.program import Probe, Program, positions, respond


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_parameter_that_is_not_finite_is_named(value: float, name: str) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinite values"):
        Program.start(model)


def test_the_probe_has_padding_on_both_sides() -> None:
    probe = Probe.random(272)
    assert probe.attention_mask[0].all()
    assert probe.attention_mask[1].tolist() == [0] * 5 + [1] * 11
    assert probe.attention_mask[2].tolist() == [1] * 11 + [0] * 5
    assert 0 <= int(probe.input_ids.min()) <= int(probe.input_ids.max()) < 272
    assert torch.equal(Probe.random(272).input_ids, probe.input_ids)


def test_positions_count_real_tokens_as_generate_does() -> None:
    model, seen = build_model("llama"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    model.generate(torch.ones_like(mask), attention_mask=mask, max_new_tokens=1)
    real = mask.bool()
    assert positions(mask).tolist() == [[1, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert torch.equal(seen[0][real], positions(mask)[real])


@torch.no_grad()
def test_the_response_of_a_padded_row_equals_that_of_the_bare_tokens() -> None:
    model, probe = build_model("llama"), Probe.random(272)
    response = respond(model, probe)
    rows = [probe.input_ids[i][probe.attention_mask[i].bool()] for i in range(3)]
    bare = torch.cat([model(row[None]).logits[0] for row in rows])
    assert relative(response.logits, bare) < 1e-5
    assert len(response.hidden) == 3


def test_responding_leaves_training_mode_and_gradients_as_they_were() -> None:
    model = build_model("llama").train()
    response = respond(model, Probe.random(272))
    assert model.training
    assert not response.logits.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_a_program_under_masks_expects_the_masked_response() -> None:
    program = traced(build_model("llama"))
    kept = {d.name: tuple(range(d.size // 2)) for d in program.traced.dimensions}
    masks = {d.name: torch.arange(d.size) < d.size // 2 for d in program.traced.dimensions}
    expecting = dataclasses.replace(program, masks=masks).expecting_itself()
    reference = respond(silence_by_hand(program.model, kept), program.probe)
    assert relative(expecting.expected.logits, reference.logits) < 1e-5
    assert expecting.model is program.model


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
@torch.no_grad()
def test_the_first_layer_that_differs_is_named(parameter: str, place: str) -> None:
    model = build_model("llama", num_hidden_layers=3, tie_word_embeddings=False)
    probe = Probe.random(272)
    expected = respond(model, probe)
    model.get_parameter(parameter).add_(0.05)
    actual = respond(model, probe)
    assert not actual.compare("x", expected, 1e-5).holds
    assert actual.first_difference(expected, 1e-5).startswith(place)


def test_programs_are_frozen() -> None:
    program = Program.start(build_model("llama"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        program.masks = None


def test_tied_parameters_are_counted_once() -> None:
    tied, untied = (count_parameters(build_model("llama", tie_word_embeddings=tie)) for tie in (True, False))
    assert untied - tied == 272 * 32

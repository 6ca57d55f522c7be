from __future__ import annotations

import dataclasses

import pytest
import torch
import zoo
from workbench import build_model, relative, silence_by_hand, traced

from passes.errors import ModelError
from passes.models import count_parameters, respond
from passes.pipeline import Program


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_parameter_that_is_not_finite_is_named(value: float, name: str) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinite values"):
        Program.start(model)


@pytest.mark.parametrize("name", ["bert-question-answering", "vit", "t5"])
def test_a_program_starts_with_a_model_of_any_task_and_expects_what_it_computes(name: str) -> None:
    model = zoo.build(name)
    program = Program.start(model)
    assert program.expected is not None
    assert program.expected.compare("x", respond(model, program.probe), 0.0).holds


def test_a_program_under_masks_expects_the_masked_response() -> None:
    program = traced(build_model("llama"))
    kept = {d.name: tuple(range(d.size // 2)) for d in program.traced.dimensions}
    masks = {d.name: torch.arange(d.size) < d.size // 2 for d in program.traced.dimensions}
    expecting = dataclasses.replace(program, masks=masks).expecting_itself()
    reference = respond(silence_by_hand(program.model, kept), program.probe)
    assert relative(expecting.expected.outputs["logits"], reference.outputs["logits"]) < 1e-5
    assert expecting.model is program.model


def test_programs_are_frozen() -> None:
    program = Program.start(build_model("llama"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        program.masks = None


def test_tied_parameters_are_counted_once() -> None:
    tied, untied = (count_parameters(build_model("llama", tie_word_embeddings=tie)) for tie in (True, False))
    assert untied - tied == 272 * 32

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch import nn
from workbench import build_model, planned, random_kept, traced

from passes.errors import PostconditionError
from passes.models import Probe, base_model
from passes.shrink import ShrinkPass
from passes.shrink.blockwise import HEAD, course_of, per_token


def test_a_course_is_wide_and_leaves_the_model_as_it_was() -> None:
    model = build_model("llama").bfloat16().train()
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()}
    course = course_of(model, Probe.of(model))
    assert set(course.left) == {"model.layers.0", "model.layers.1"}
    assert {place: hidden.dtype for place, hidden in course.entered.items()} == dict.fromkeys(
        [*course.left, HEAD], torch.float64
    )
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()} == before
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_course_equals_the_model_in_double_precision() -> None:
    model = build_model("qwen2")
    probe = Probe.of(model)
    course = course_of(model, probe)
    hidden = model.double()(**probe.inputs, use_cache=False, output_hidden_states=True).hidden_states
    assert torch.allclose(course.left["model.layers.0"], hidden[1], rtol=1e-6)
    assert torch.allclose(course.entered[HEAD], hidden[-1], rtol=1e-6)


def test_experts_run_in_an_implementation_that_can_and_go_back_to_their_own() -> None:
    model = zoo.build("mixtral")
    before = model.config._experts_implementation
    assert course_of(model, Probe.of(model)).left
    assert model.config._experts_implementation == before != "eager"


def test_a_failing_pass_puts_everything_back() -> None:
    model = build_model("llama")
    model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        course_of(model, Probe.of(model))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(module._forward_hooks for module in model.modules())


def test_a_small_token_counts_as_much_as_a_large_one() -> None:
    expected = torch.tensor([[1000.0, 1.0], [0.001, 0.0]]).double()
    actual = expected.clone()
    actual[1, 0] *= 1.5
    assert per_token(actual, expected, expected) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(("where", "bound"), [("expected", 0.0), ("actual", math.inf)])
def test_what_is_not_finite_passes_only_where_it_is_expected(where: str, bound: float) -> None:
    expected = torch.ones(2, 3).double()
    actual = expected.clone()
    actual[0] = math.nan
    if where == "expected":
        expected[0] = math.nan
    found = per_token(actual, expected, expected)
    assert found == bound if where == "expected" else math.isnan(found)


def test_other_shapes_and_nothing_finite_never_agree() -> None:
    nothing = torch.full((2, 3), math.nan)
    assert per_token(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 4)) == math.inf
    assert per_token(nothing, nothing, nothing) == math.inf


class Nearly(nn.Module):
    """SiLU, but for one part in ten thousand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(x) * (1 + 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arithmetic_that_is_off_by_a_ten_thousandth_is_no_rounding(dtype: torch.dtype) -> None:
    """Nothing but what the layer computes tells it: tensors, settings and configuration are as they should be."""
    program = traced(build_model("llama").to(dtype))
    program = planned(program, random_kept(program.traced, 2, 24, seed=3))
    after = ShrinkPass()(program).program
    base_model(after.model).model.layers[1].mlp.act_fn = Nearly()
    with pytest.raises(PostconditionError, match=r"model\.layers\.1 differs from the masked model's by .*e-0[45] on"):
        ShrinkPass().ensures(program, after)

"""Private names of torch and transformers that the export to ONNX touches: a failure here says which has moved."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import zoo
from moved import Named
from torch import nn
from torch.nn import functional

from exporters.onnx import vendor

named = partial(Named, mend="exporters/onnx/vendor.py")


def experts() -> Any:
    model = zoo.build("mixtral", num_hidden_layers=1)
    return model, [module for module in model.modules() if vendor.is_expert_stack(module)]


def test_is_expert_stack_finds_the_experts_of_a_layer() -> None:
    with named("transformers", "has_gate, has_bias, is_transposed, _apply_gate of stacked experts"):
        model, found = experts()
        assert found == [model.model.layers[0].mlp.experts]


def test_gated_is_the_gate_times_the_value() -> None:
    with named("transformers", "_apply_gate of stacked experts"):
        (stack,) = experts()[1]
        hidden = torch.randn(3, stack.gate_up_proj.shape[1], generator=torch.Generator().manual_seed(0))
        gate, value = hidden.chunk(2, -1)
        torch.testing.assert_close(vendor.gated(stack, hidden), functional.silu(gate) * value)


def test_register_experts_makes_a_function_the_implementation() -> None:
    with named("transformers", "integrations.moe.ALL_EXPERTS_FUNCTIONS"):
        called = []

        def none_of_them(stack: nn.Module, hidden: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            called.append(stack)
            return torch.zeros_like(hidden)

        model, found = experts()
        vendor.register_experts("lpc_test", none_of_them)
        model.set_experts_implementation("lpc_test")
        model(torch.arange(4)[None])
        assert called == found


def test_no_fake_tensor_cache_holds_inside_the_block_only() -> None:
    with named("torch", "_dynamo.config.fake_tensor_cache_enabled"):
        from torch._dynamo import config

        before = config.fake_tensor_cache_enabled
        with vendor.no_fake_tensor_cache():
            assert config.fake_tensor_cache_enabled is False
        assert config.fake_tensor_cache_enabled is before


def test_the_logger_that_misses_torchvision_is_there() -> None:
    with named("torch", vendor.REGISTRATION):
        __import__(vendor.REGISTRATION)
        assert vendor.REGISTRATION in logging.root.manager.loggerDict


def test_instead_takes_the_calls_of_one_function_inside_the_block_only() -> None:
    with named("torch", "overrides.TorchFunctionMode"):
        query = torch.ones(1, 1, 2, 2)
        with vendor.Instead(functional.scaled_dot_product_attention, lambda own, *args: own(*args) + 1):
            inside = functional.scaled_dot_product_attention(query, query, query)
        assert torch.equal(inside, functional.scaled_dot_product_attention(query, query, query) + 1)


def test_exporter_warnings_off_leaves_other_warnings_on() -> None:
    with vendor.exporter_warnings_off():
        warnings.warn_explicit("# The axis name: x", UserWarning, "a.py", 1, "torch.onnx._internal")
        with pytest.raises(UserWarning, match="another"):
            warnings.warn_explicit("another", UserWarning, "a.py", 1, "torch.onnx._internal")

"""Private names of torch and transformers that the export to ONNX touches: a failure here says which has moved."""

from __future__ import annotations

import logging
import warnings
from functools import partial

import pytest
import torch
from moved import Named
from torch.nn import functional

from exporters.onnx import vendor

named = partial(Named, mend="exporters/onnx/vendor.py")


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

"""Private and unstable names of torch and transformers that only the export to ONNX touches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo import config as dynamo_config
from torch.overrides import TorchFunctionMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EXPERTS = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
REGISTRATION = "torch.onnx._internal.exporter._registration"
"""The logger that misses torchvision's operators, which no transformer needs."""


def is_expert_stack(module: object) -> bool:
    """transformers: whether a module is its stack of experts, whose implementation can be exchanged."""
    return all(hasattr(module, name) for name in EXPERTS)


def gated(experts: Any, hidden: torch.Tensor) -> torch.Tensor:
    """transformers: ``_apply_gate``, the gate and the activation of one expert, which each model defines."""
    inner: torch.Tensor = experts._apply_gate(hidden)
    return inner


def register_experts(name: str, function: Callable[..., torch.Tensor]) -> None:
    """transformers: ``ALL_EXPERTS_FUNCTIONS``, its list of implementations of experts, which has no public door."""
    ALL_EXPERTS_FUNCTIONS.register(name, function)


@contextmanager
def no_fake_tensor_cache() -> Iterator[None]:
    """torch: ``torch._dynamo.config``; tracing is a fifth faster without the cache of fake tensors."""
    with dynamo_config.patch(fake_tensor_cache_enabled=False):
        yield


@contextmanager
def exporter_warnings_off() -> Iterator[None]:
    """torch: what ``torch.onnx.export`` says of itself: of axes that have one size, and of its own old names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name: ", UserWarning, "torch.onnx")
        warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec.. is deprecated", FutureWarning, "copyreg")
        yield


class Instead(TorchFunctionMode):
    """torch: inside the block, calls of one of its functions go to ``instead(function, *args)``."""

    def __init__(self, function: Callable[..., Any], instead: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.instead = function, instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        if func is self.function:
            return self.instead(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

"""Private and unstable names of torch and transformers that only the export to ONNX touches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch._dynamo import config as dynamo_config
from torch.overrides import TorchFunctionMode

REGISTRATION = "torch.onnx._internal.exporter._registration"
"""The logger that misses torchvision's operators, which no transformer needs."""


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

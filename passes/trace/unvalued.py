"""Tracing models that look into the values of their inputs, which tensors on the meta device do not have."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Unvalued(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, a number that is asked of a tensor on the meta device is 0: no padding, no global token.

    Which way a model takes then does not matter: what is found there is compared with what runs on values.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchDispatchMode``."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        return func(*args, **(kwargs or {}))

"""Counts what makes the host wait for a device: values that are read into Python, and copies to the CPU."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "unique")
"""Operations whose result, or its shape, Python must know."""


class Waits(TorchDispatchMode):
    """``counts`` says how often each of these was asked for inside, ``operations`` how many there were in all."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.operations += 1
        boolean_index = name in ("index", "index_put_") and any(
            isinstance(each, torch.Tensor) and each.dtype is torch.bool for each in args[1]
        )
        if name in READS or boolean_index:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

"""Precisions of the ONNX package: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from exporters.calls import element_type
from exporters.options import PRECISION_NAMES
from passes.models import rounding_tolerance
from passes.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A type of numbers that a package can be written in.

    ``name`` is what ``OnnxOptions.dtype`` says. ``float_type`` is the type of what the graph computes in, and of its
    logits and cache. ``masked`` stands for minus infinity in it: finite, so that a row whose keys are all masked
    (padding) stays finite and cannot spread NaN through the cache. ``tolerance``: how far onnxruntime may be from torch
    in fp32, relative to the largest value. ``tie``: how near two logits are, likewise, of which greedy decoding may
    choose either. ``writer`` rewrites a graph in place that was just written in ``float_type``, before it is verified,
    where weights are to be stored in other numbers.
    """

    name: str
    float_type: ir.DataType
    masked: float
    tolerance: float
    tie: float
    writer: Callable[[Path], None] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """``float_type``, as torch has it."""
        dtype: torch.dtype = to_torch_dtype(self.float_type)
        return dtype

    def finish(self, *graphs: Path) -> None:
        """Have the writer rewrite the graphs, if there is one."""
        for path in graphs if self.writer is not None else ():
            assert self.writer is not None
            self.writer(path)


PRECISIONS = Registry("ONNX dtype", Precision, "lpc.precisions", name_of=lambda precision: precision.name)
"""All precisions by name; grows with ``register_precision``, and by packages' entry points ``lpc.precisions``."""
PRECISION_NAMES.attach(PRECISIONS)


def register_precision(precision: Precision) -> None:
    """Make a precision of your own available to ``OnnxOptions.dtype``. Raises OptionError if the name is taken."""
    PRECISIONS.add(precision.name, precision)


FLOAT32 = Precision(
    name="float32",
    float_type=ir.DataType.FLOAT,
    masked=-1e30,
    tolerance=1e-4,
    tie=rounding_tolerance(torch.float32),
)
FLOAT16 = Precision(
    name="float16",
    float_type=ir.DataType.FLOAT16,
    masked=-3e4,
    tolerance=rounding_tolerance(torch.float16),
    tie=rounding_tolerance(torch.float16),
)
register_precision(FLOAT32)
register_precision(FLOAT16)


def torch_type(named: str) -> torch.dtype:
    """The same, as torch has it."""
    dtype: torch.dtype = to_torch_dtype(element_type(named))
    return dtype

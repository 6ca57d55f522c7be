"""Precisions of the ONNX package: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from exporters.onnx.dynamic import quantise_dynamic
from exporters.onnx.quantised import quantise, quantise_streamed
from exporters.onnx.stored import store, store_streamed
from exporters.options import PRECISION_NAMES, OnnxOptions
from passes.models import Parity, rounding_tolerance
from passes.registry import Registry

Writer: TypeAlias = Callable[[Path, OnnxOptions], tuple[Parity, ...]]
"""Rewrites the file of a graph in place; returns what it has proven of it (nothing: ``()``)."""

Streamer: TypeAlias = Callable[[Callable[[], ir.Model], Path, OnnxOptions], tuple[Parity, ...]]
"""Writes the file of a graph that is in none yet, a tensor at a time; returns what it has proven of it."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A type of numbers that a package can be written in.

    ``name`` is what ``OnnxOptions.precision`` says. ``float_type`` is the type of what the graph computes in, and of
    its logits and cache. ``masked`` stands for minus infinity in it: finite, so that a row whose keys are all masked
    (padding) stays finite and cannot spread NaN through the cache. ``tolerance``: how far onnxruntime may be from torch
    in fp32, relative to the largest value. ``tie``: how near two logits are, likewise, of which greedy decoding may
    choose either.

    ``writer`` rewrites a graph in place that was just written in ``float_type``, where weights are to be stored in
    other numbers; ``streamer`` does so of a model that is not loaded. ``first``: the precision whose tolerance the
    graph is held to before that; without it only the rewritten graph is compared with torch. With it greedy tokens are
    those of the rewritten graph in onnxruntime, which need not be torch's. ``blocks``: whether weights share scales in
    blocks of ``OnnxOptions.block`` inputs.
    """

    name: str
    float_type: ir.DataType
    masked: float
    tolerance: float
    tie: float
    writer: Writer | None = None
    streamer: Streamer | None = None
    first: Precision | None = None
    blocks: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """``float_type``, as torch has it."""
        dtype: torch.dtype = to_torch_dtype(self.float_type)
        return dtype

    def finish(self, options: OnnxOptions, *graphs: Path) -> tuple[Parity, ...]:
        """Have the writer rewrite the graphs, if there is one; what it has proven."""
        if self.writer is None:
            return ()
        return tuple(parity for path in graphs for parity in self.writer(path, options))


PRECISIONS = Registry("precision", Precision, "lpc.precisions", name_of=lambda precision: precision.name)
"""All precisions by name; grows with ``register_precision``, and by packages' entry points ``lpc.precisions``."""
PRECISION_NAMES.attach(PRECISIONS)


def register_precision(precision: Precision) -> None:
    """Make a precision of your own available to ``OnnxOptions.precision``. Raises OptionError if the name is taken."""
    PRECISIONS.add(precision.name, precision)


FLOAT32 = Precision(
    name="fp32",
    float_type=ir.DataType.FLOAT,
    masked=-1e30,
    tolerance=1e-4,
    tie=rounding_tolerance(torch.float32),
)
FLOAT16 = Precision(
    name="fp16",
    float_type=ir.DataType.FLOAT16,
    masked=-3e4,
    tolerance=rounding_tolerance(torch.float16),
    tie=rounding_tolerance(torch.float16),
)
STORED = {torch.bfloat16: "bf16", torch.float16: "fp16-weights"}
"""The precisions that store weights in half of the bytes that they are computed in."""


def _stored(dtype: torch.dtype) -> Precision:
    rounding = rounding_tolerance(dtype)
    return replace(
        FLOAT32,
        name=STORED[dtype],
        tolerance=rounding,
        tie=rounding,
        writer=partial(store, dtype=dtype),
        streamer=partial(store_streamed, dtype=dtype),
        first=FLOAT32,
    )


def _quantised(bits: int, tolerance: float) -> Precision:
    """``tolerance`` is for weights of any kind, random ones too: the proof is what the writer compares.

    A few logits may move far where perplexity does not: those of SmolLM2-135M pruned by 0.3 by 0.33 in int8, whose
    perplexity is fp32's (37.00, 37.03; docs/onnx.md).
    """
    return replace(
        FLOAT32,
        name=f"int{bits}",
        tolerance=tolerance,
        tie=2e-2,
        writer=partial(quantise, bits=bits),
        streamer=partial(quantise_streamed, bits=bits),
        first=FLOAT32,
        blocks=True,
    )


for each in (
    FLOAT32,
    FLOAT16,
    _stored(torch.bfloat16),
    _stored(torch.float16),
    _quantised(8, tolerance=1.0),
    replace(FLOAT32, name="int8-dynamic", tolerance=0.5, tie=2e-2, writer=quantise_dynamic, first=FLOAT32),
    _quantised(4, tolerance=4.0),
):
    register_precision(each)

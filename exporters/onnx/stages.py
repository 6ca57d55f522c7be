"""The stages of a graph's file: written in a float type and compared with torch, rewritten by its precision, again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporters.onnx.options import precision_of
from exporters.onnx.precision import Precision
from exporters.options import OnnxOptions
from passes.models import Parity


def finished(
    options: OnnxOptions, verify: Callable[[Precision], tuple[Parity, ...]], *graphs: Path
) -> tuple[Parity, ...]:
    """Have the precision rewrite the graphs, if it does, and ``verify`` them as one precision before and another after.

    Raises PostconditionError from whichever comparison fails.
    """
    precision = precision_of(options)
    before = verify(precision.first) if precision.first is not None else ()
    proof = precision.finish(options, *graphs)
    after = verify(precision)
    if before:
        name = f"{precision.name} against torch in fp32"
        after = (Parity(name, max(each.value for each in after), precision.tolerance),)
    return (*before, *proof, *after)

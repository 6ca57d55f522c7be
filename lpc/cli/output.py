"""The output folder of a command: checked before its first step, and held until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from exporters.files import Owned, claimed
from lpc.owned import OUTPUT


def hold(
    context: typer.Context,
    out: Path,
    *,
    force: bool,
    reads: Sequence[str | Path | None],
    writes: Sequence[Path | None] = (),
    owned: Owned = OUTPUT,
    needs_bytes: int = 0,
) -> None:
    """Hold ``out`` until the command of ``context`` ends. Raises OutputError if that cannot be, or not without loss."""
    inputs = [each for each in reads if each is not None]
    others = [each for each in writes if each is not None]
    context.with_resource(claimed(out, force=force, owned=owned, reads=inputs, writes=others, needs_bytes=needs_bytes))


def least_bytes(model: str | Path, ratio: float | None, *, onnx: bool) -> int:
    """What the output will need at least, in bytes: the kept share of the weights, once more if there is ONNX.

    0 if the weights are not here yet.
    """
    weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors")) if Path(model).is_dir() else 0
    kept = 1 - ratio if ratio is not None and 0 < ratio < 1 else 0
    return int(weights * kept * (2 if onnx else 1))

"""The output folder of a command: checked before its first step, and held until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from exporters.files import Owned, claimed
from lpc.owned import output


def hold(
    held: ExitStack,
    out: Path,
    *,
    force: bool,
    reads: Sequence[str | Path | None],
    writes: Sequence[Path | None] = (),
    owned: Owned | None = None,
    needs_bytes: int = 0,
) -> None:
    """Hold ``out`` (by default lpc's own) until the command's stack is left. Raises OutputError if it cannot be."""
    owned = owned or output()
    inputs = [each for each in reads if each is not None]
    others = [each for each in writes if each is not None]
    held.enter_context(claimed(out, force=force, owned=owned, reads=inputs, writes=others, needs_bytes=needs_bytes))


def least_bytes(model: str | Path, ratio: float | None, *, onnx: bool) -> int:
    """What the output will need at least, in bytes: the kept share of the weights, once more if there is ONNX.

    0 if the weights are not here yet.
    """
    weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors")) if Path(model).is_dir() else 0
    kept = 1 - ratio if ratio is not None and 0 < ratio < 1 else 0
    return int(weights * kept * (2 if onnx else 1))

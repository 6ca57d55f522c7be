"""How projections are re-solved."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.option import option
from passes.options.run import left_to_run


@dataclass(frozen=True, kw_only=True)
class CompensateOptions:
    """How much calibration data is used to re-solve projections, and how (docs/recovery.md)."""

    samples: int | None = left_to_run("samples")
    batch_size: int | None = left_to_run("batch_size")
    ridge: float = option(1e-2, least=0, most=1, help="λ of the ridge, in units of the mean squared activation.")
    residual: bool = option(
        True,
        help="Where the structure allows, the target makes good what the residual stream lacks already; else it is "
        "what the dense projection gives.",
    )
    guard: bool = option(
        True, help="Where the data bear labels, take everything back if the model's own loss on them has risen."
    )
    seed: int | None = left_to_run("seed")

    def __post_init__(self) -> None:
        check(self)

"""How projections are re-solved."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.option import option
from passes.options.tune import MOST_SEED


@dataclass(frozen=True, kw_only=True)
class CompensateOptions:
    """How much calibration data is used to re-solve projections, and how (docs/recovery.md)."""

    samples: int | None = option(
        None, least=1, help="Sequences or rows of the data, drawn without replacement; by default the run's."
    )
    batch_size: int | None = option(None, least=1, help="Sequences or rows a batch; by default the run's.")
    ridge: float = option(1e-2, least=0, most=1, help="λ of the ridge, in units of the mean squared activation.")
    residual: bool = option(
        True,
        help="Where the structure allows, the target makes good what the residual stream lacks already; else it is "
        "what the dense projection gives.",
    )
    guard: bool = option(
        True, help="Where the data bear labels, take everything back if the model's own loss on them has risen."
    )
    seed: int | None = option(None, least=0, most=MOST_SEED, help="Draws the sample; by default the run's.")

    def __post_init__(self) -> None:
        check(self)

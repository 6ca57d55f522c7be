"""How weights become unit scores."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.option import option


@dataclass(frozen=True, kw_only=True)
class ImportanceOptions:
    """How weights become unit scores; a criterion's entry says which of these it reads (docs/criteria.md)."""

    form: str = option(
        "square",
        choices=("square", "abs"),
        noun="importance form",
        help="square is the paper's, abs the authors' code's.",
    )
    normalise: bool | None = option(
        None,
        help="Divide each projection's vector of unit scores by its L2 norm before the sum, as the authors' code "
        "does. That makes layers alike: by default it is done in the uniform layout, and not per layer, where they "
        "compete.",
    )
    quadratic: bool = option(
        False,
        help="Keep the term −gB·gA, which paper and code have; it carries the learning rate and so depends on the loss "
        "scale.",
    )
    smoothing: float = option(0.9, noun="smoothing (λ)", least=0, below=1, help="λ of the moving average.")

    def __post_init__(self) -> None:
        check(self)

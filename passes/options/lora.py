"""The adapter that lpc attaches."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.option import option


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The adapter that lpc attaches, on all prunable projections."""

    rank: int = option(32, noun="the LoRA rank", least=1, help="Rows of A and columns of B.")
    alpha: float = option(32, noun="the LoRA alpha", above=0, help="The adapter counts alpha / rank.")
    dropout: float = option(
        0.0, noun="the LoRA dropout", least=0, below=1, help="Share of the adapter's inputs that a training step drops."
    )

    def __post_init__(self) -> None:
        check(self)

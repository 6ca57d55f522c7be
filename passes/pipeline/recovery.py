"""What a recovery left behind."""

from __future__ import annotations

from dataclasses import dataclass

from passes.models import Adapter


@dataclass(frozen=True)
class Recovery:
    """The adapter that was trained on the compact model and merged into it; held-out loss before and after."""

    adapter: Adapter
    before: float
    after: float

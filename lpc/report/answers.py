"""What an instruction model answers, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def answer_rows(answers: Mapping[str, Any]) -> list[list[str]]:
    """Rows of measure, dense and pruned."""
    both = ("dense", "pruned")
    return [
        ["as the dense model's, letter for letter", f"{len(answers['dense'])}", f"{answers['same']}"],
        ["ended by themselves", *(f"{answers[f'{each}_ended']}" for each in both)],
        ["tokens, mean", *(f"{answers[f'{each}_tokens']:.1f}" for each in both)],
        ["runs of three tokens said before", *(f"{answers[f'{each}_repeated']:.1%}" for each in both)],
    ]

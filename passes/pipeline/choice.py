"""Masks, and the scores that they were chosen by, in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from passes.pipeline.program import Program

CHOICE_FILE = "choice.safetensors"


def save_choice(program: Program, folder: Path) -> None:
    """Write a program's masks and scores into a folder."""
    tensors = {f"mask.{name}": mask for name, mask in (program.masks or {}).items()}
    tensors |= {f"score.{name}": score for name, score in (program.scores or {}).items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / CHOICE_FILE)


def with_choice(program: Program, folder: Path) -> Program:
    """The program with the masks and scores that ``save_choice`` wrote."""
    tensors, names = load_file(folder / CHOICE_FILE), [dimension.name for dimension in program.traced.dimensions]
    masks, scores = (
        {n: tensors[f"{kind}.{n}"] for n in names if f"{kind}.{n}" in tensors} for kind in ("mask", "score")
    )
    return replace(program, masks=masks, scores=scores)

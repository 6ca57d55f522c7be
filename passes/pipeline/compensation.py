"""What a compensation did to the weights, as an artifact, and how to undo it for the length of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from passes.errors import MissingFileError, PlanError
from passes.models import replaced

WEIGHTS_FILE = "compensation.safetensors"


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One consuming projection, re-solved on the calibration data.

    ``before`` and ``after``: ‖Y − Ŷ‖ / ‖Y‖ (Frobenius norms over all calibration tokens) of its output Ŷ under the
    masks against what it is to give, Y, both times with everything before it compensated. ``ridge`` is the λ that made
    the system positive definite. With ``changed`` false the old weight was as good and stayed.
    """

    projection: str
    before: float
    after: float
    ridge: float
    changed: bool


@dataclass(frozen=True)
class Compensation:
    """The projections that were solved, in order of depth, and how.

    ``weights`` are the parameters that were changed as they are after it, by plain name, on the CPU; ``originals`` as
    they were, empty if they were not to be kept. ``source`` is the fingerprint of the model before,
    for a plan that is made afterwards.
    """

    name: ClassVar[str] = "compensation"

    solved: tuple[Solved, ...]
    originals: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write the changed weights as a safetensors file; nothing if none has changed."""
        if not self.weights:
            return ()
        save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, folder / WEIGHTS_FILE)
        return (Path(WEIGHTS_FILE),)

    @classmethod
    def load(cls, folder: Path) -> Compensation:
        """The weights that ``save`` wrote, from an output's folder or a file of any name.

        Raises MissingFileError, or PlanError for another kind of file.
        """
        path = folder / WEIGHTS_FILE if folder.is_dir() else folder
        if not path.is_file():
            raise MissingFileError(f"there are no compensated weights {path}: lpc compress writes OUT/{WEIGHTS_FILE}")
        try:
            weights: dict[str, torch.Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise PlanError(f"{path} holds no weights: {error}") from error
        _check_weights(path, weights)
        return cls(solved=(), originals={}, weights=weights)

    def without_originals(self) -> Compensation:
        """The same, once nobody will ask for the dense model any more."""
        return replace(self, originals={})

    @contextmanager
    def undone(self, model: PreTrainedModel | PeftModel) -> Iterator[None]:
        """The model with its original parameters, inside the block. Nothing is copied on one device."""
        with replaced(model, self.originals):
            yield


def _check_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise PlanError for weights that no run can have left."""
    if not weights:
        raise PlanError(f"{path} is empty: take the {WEIGHTS_FILE} that the run wrote")
    for name, weight in weights.items():
        if not weight.is_floating_point() or not torch.isfinite(weight).all():
            raise PlanError(f"{path} holds values in {name} that are not finite numbers: take the file of the run")
        if weight.dim() > 1 and not weight.any():
            raise PlanError(f"{path} holds nothing but zeros in {name}: take the file that the run wrote")

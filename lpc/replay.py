"""Which compensated weights go with a plan that is applied again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel

from passes.errors import PlanError
from passes.graph import Plan
from passes.pipeline import WEIGHTS_FILE, load_weights

logger = logging.getLogger(__name__)


def compensated_weights(
    plan: Plan, folder: Path | None, file: str | Path | None, adapter: PeftModel | str | Path | None, *, worn: bool
) -> Mapping[str, torch.Tensor]:
    """The weights by plain name, from ``file`` or from the ``folder`` that the plan lies in; none if it needs none.

    Raises PlanError if an adapter is ``worn`` that was trained on such weights and they are missing.
    """
    if not plan.compensated:
        _check_adapter(adapter)
        return {}
    beside = folder / WEIGHTS_FILE if folder else None
    if file is not None or (beside is not None and beside.is_file()):
        return load_weights(Path(file or beside or WEIGHTS_FILE))
    if plan.compensated_first and worn:
        raise PlanError(
            "the adapter was trained on compensated weights, and they are not here: give "
            f"compensation=OUT/{WEIGHTS_FILE} (--compensation), or leave the adapter out"
        )
    logger.warning("the plan's model was compensated on data; replayed without %s, it is not", WEIGHTS_FILE)
    return {}


def _check_adapter(adapter: PeftModel | str | Path | None) -> None:
    """Raises PlanError for the adapter of a run that compensated before tuning: it fits that run's plan alone."""
    if adapter is None or isinstance(adapter, PeftModel):
        return
    own = Path(adapter).parent / "plan.json"
    if own.is_file() and Plan.load(own).compensated_first:
        raise PlanError(
            f"the adapter {adapter} was trained on weights that were compensated for {own}: apply that plan, or leave "
            "the adapter out"
        )

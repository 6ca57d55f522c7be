"""Which artifacts go with a plan that is applied again: those that it names, by their sha256."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel

from exporters.files import sha256
from passes.errors import PlanError
from passes.graph import Plan
from passes.models import ADAPTER_FILES, Adapter, check_adapter_folder
from passes.pipeline import WEIGHTS_FILE, Compensation

logger = logging.getLogger(__name__)


def plan_and_weights(
    plan: Plan | str | Path, file: str | Path | None, adapter: PeftModel | str | Path | None, *, worn: bool
) -> tuple[Plan, Mapping[str, torch.Tensor]]:
    """The plan, and the weights that its run re-solved (``compensated_weights``), by default those beside its file."""
    folder = None if isinstance(plan, Plan) else Path(plan) if Path(plan).is_dir() else Path(plan).parent
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    return plan, compensated_weights(plan, folder, file, adapter, worn=worn)


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
        found = Path(file or beside or WEIGHTS_FILE)
        weights = Compensation.load(found).weights
        _check_named(plan, {WEIGHTS_FILE: found / WEIGHTS_FILE if found.is_dir() else found})
        return weights
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


def check_adapter_files(plan: Plan, folder: Path) -> None:
    """Raise PlanError unless a folder holds the adapter that the plan names, MissingFileError if it holds none."""
    check_adapter_folder(folder)
    _check_named(plan, {f"{Adapter.name}/{name}": folder / name for name in ADAPTER_FILES})


def check_worn(plan: Plan, model: PeftModel) -> None:
    """Raise PlanError unless a live model wears the adapter that the plan names; its weights are compared."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / Adapter.of(model).write(Path(folder))[1]
        _check_named(plan, {f"{Adapter.name}/{weights.name}": weights})


def _check_named(plan: Plan, files: Mapping[str, Path]) -> None:
    """Raise PlanError for a file that is not the one of that name in the plan; a plan that names none takes any."""
    for name, path in files.items() if plan.artifacts else ():
        if name not in plan.artifacts:
            raise PlanError(f"the plan's run left no {name}: leave {path} out")
        actual = sha256(path)
        if actual != plan.artifacts[name]:
            raise PlanError(
                f"{path} is not what the plan was made with: its sha256 is {actual[:12]}…, the plan names "
                f"{plan.artifacts[name][:12]}… for {name}; give the one that lies beside the plan"
            )

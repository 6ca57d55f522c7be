"""Early stopping: cells of one goal report their held-out loss to Optuna, which says which of them are hopeless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lpc.options import Cell, StoppingOptions
from passes.errors import OptionError, StoppedError
from passes.pipeline import Watch, Watched

LOSS = "loss"


def check_early_stopping(asked: StoppingOptions | None) -> None:
    """Raise OptionError if cells are to be stopped and Optuna is not installed."""
    if asked is not None and find_spec("optuna") is None:
        raise OptionError("early_stopping needs optuna: pip install 'lpc[sweep]', or leave it out")


@contextmanager
def judged(journal: Path, cell: Cell, asked: StoppingOptions) -> Iterator[Watch]:
    """A Watch that raises StoppedError as soon as a cell is hopeless; inside the block the cell is being tried.

    The journal is a file that any number of processes and machines with a common file system may use.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial, study = _trial(optuna, journal, cell, asked)
    last: list[float] = []

    def watch(seen: Watched) -> None:
        if not seen.final:
            return
        last[:] = [seen.measures[LOSS]]
        trial.report(last[0], seen.step)
        if seen.step < seen.total and trial.should_prune():
            raise StoppedError(
                f"stopped after step {seen.step} of {seen.total}, at a held-out loss of {last[0]:.4g}: behind other "
                f"cells of the goal {cell.goal}"
            )

    states = optuna.trial.TrialState
    try:
        yield watch
    except StoppedError:
        study.tell(trial, state=states.PRUNED)
        raise
    except BaseException:
        study.tell(trial, state=states.FAIL)
        raise
    study.tell(trial, last[0]) if last else study.tell(trial, state=states.FAIL)


def _trial(optuna: Any, journal: Path, cell: Cell, asked: StoppingOptions) -> tuple[Any, Any]:
    """A trial of this cell among those of its goal; one that a killed process left behind is given up."""
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.create_study(
        study_name=cell.goal,
        storage=optuna.storages.JournalStorage(backend),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=asked.first, reduction_factor=asked.factor),
        sampler=optuna.samplers.RandomSampler(),
        load_if_exists=True,
    )
    for old in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if old.user_attrs.get("cell") == cell.name:
            study.tell(old.number, state=optuna.trial.TrialState.FAIL)
    trial = study.ask()
    trial.set_user_attr("cell", cell.name)
    return trial, study

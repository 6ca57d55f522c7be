"""The verb ``evaluate``: run lm-eval, and add what it found to what was found before."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from lpc.evaluation import EVALUATION, Evaluation, Kept
from lpc.evaluation import evaluate as measured
from lpc.options import EvaluateOptions
from lpc.owned import MANIFEST
from lpc.report import record
from passes.errors import OutputError
from passes.pipeline import Progress, silent


def evaluate(
    folder: Path | str,
    options: EvaluateOptions,
    *,
    dense: Path | PreTrainedModel | None = None,
    out: Path | str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the models in ``folder`` with lm-eval and add the results to ``out/eval.json``.

    ``folder`` is an output of ``lpc compress``, a checkpoint or an ONNX folder; ``dense`` is what to compare with, by
    default the source that an output's manifest names. ``out`` is by default ``folder`` if that is an output of lpc,
    whose report and card then show the results; else nothing is kept. Tasks that are done are not run again.

    Returns all that is known of ``out`` now. Raises what ``lpc.evaluation.evaluate`` raises, DataError for an
    ``eval.json`` that cannot be added to, OutputExistsError for a folder that holds something else, OutputError where
    ``out`` is a model's own folder.
    """
    folder = Path(folder)
    own = (folder / MANIFEST).is_file()
    if out is None and not own:
        return measured(folder, options, dense=dense, progress=progress)
    home = Path(out) if out is not None else folder
    is_own = own and home.resolve() == folder.resolve()
    if not is_own and home.resolve() == folder.resolve():
        raise OutputError(f"{folder} is a model and is not written into: choose another folder with --out (out)")
    Kept(folder=home).check(force_new=not is_own)
    known = Evaluation.read(home / EVALUATION)
    found = measured(folder, options, dense=dense, keep=home, progress=progress)
    found = known.added(found) if known is not None else found
    record(home, {EVALUATION: found.to_text()})
    return found

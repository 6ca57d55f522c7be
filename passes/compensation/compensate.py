"""Compensate: re-solve the projections that read removed units, by least squares on calibration activations."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from passes.compensation.guard import compared
from passes.compensation.solve import Resolver, find_sites
from passes.compensation.streams import ModelInputs, Sides, row_of
from passes.errors import DataError, OptionError, PostconditionError, PreconditionError
from passes.graph import COMPENSATED, Kind
from passes.models import (
    Parity,
    Task,
    base_model,
    batches,
    evaluation_mode,
    fingerprint,
    idle_adapter_off,
    masked,
    parameter_at,
    rounding_tolerance,
    sample_rows,
    takes,
    task_of,
)
from passes.options import CompensateOptions
from passes.pipeline import (
    WEIGHTS_FILE,
    Compensation,
    Pass,
    PassRecord,
    PassResult,
    Program,
    RunContext,
    Solved,
    plain,
)
from passes.ranks import Share, told_by_first

logger = logging.getLogger(__name__)

ERROR_SLACK = 1e-6
"""How much the error may seem to rise, relative to itself, by rounding."""


@dataclass(frozen=True)
class CompensateReport:
    """Each projection's error before and after on the calibration data, in order of depth.

    ``skipped`` names the projections that were left as they are, and why. ``layer_by_layer``: whether activations were
    streamed through one layer at a time; ``residual`` names the projections whose target made good what the residual
    stream lacked. ``loss_before`` and ``loss_after`` are the model's own on the first ``compared`` rows of the
    calibration data, where these bear labels; if it rose, everything was ``undone``.
    """

    tokens: int
    projections: tuple[Solved, ...]
    skipped: Mapping[str, str]
    layer_by_layer: bool
    residual: tuple[str, ...] = ()
    loss_before: float | None = None
    loss_after: float | None = None
    undone: bool = False
    compared: int = 0


class CompensatePass(Pass):
    """Re-solves, in order of depth, every projection that reads removed units.

    It is for models that were not tuned since their units were masked: tuning finds a better place than the dense
    model's outputs, and going back to them costs (docs/recovery.md has numbers). ``CompensateOptions.guard`` sees
    to it.

    The inputs X' are those of the pruned model, compensated so far; the target Y is what the same projection gives in
    the dense model: masks off, adapter off, weights as they were. ``passes.algebra.least_squares`` has the formula.
    Only weights of kept units change, and biases where there are any, so that shrinking still cuts what is masked.

    ``data`` yields the model's inputs. ``keep_originals``: the program carries the old weights, for a teacher that is
    to be the dense model (``passes.tuning.distill``).
    """

    name = "compensate"
    batches = True
    reports = CompensateReport

    def __init__(
        self,
        data: Dataset[dict[str, torch.Tensor]],
        options: CompensateOptions = CompensateOptions(),
        *,
        keep_originals: bool = False,
    ) -> None:
        self._data, self._options, self._keep_originals = data, options, keep_originals

    @property
    def options(self) -> Mapping[str, Any]:
        """The options as plain values."""
        return dict(plain(self._options))

    def requires(self, program: Program) -> None:
        """A traced program with masks, not compensated before."""
        if program.graph is None or program.masks is None:
            raise PreconditionError("pass 'compensate' needs masks: run TunePass or ReplayPass first")
        if program.compensation is not None:
            raise PreconditionError("pass 'compensate' has run on this program already")
        whole = [d.name for d in program.graph.dimensions if d.kind.is_depth or d.kind is Kind.HIDDEN]
        if whole:
            raise OptionError(
                f"compensation solves for heads, channels and experts, not where {whole[0]} go: leave it out"
            )

    @torch.no_grad()
    def call(self, program: Program, run: RunContext) -> PassResult:
        """Solve, and write the new weights into the working copy; take them back if the model's loss has risen."""
        assert program.masks is not None
        model, graph, source = program.model, program.traced, fingerprint(program.model)
        run = run.narrowed(self._options)
        options = run.told(self.options)
        with masked(model, graph, program.masks) as hooks, evaluation_mode(model), idle_adapter_off(model):
            labelled = calibration_batches(model, self._data, run)
            guard = self._options.guard and set(task_of(base_model(model)).label_names) <= set(labelled[0])
            sides, rows = Sides(model, hooks, {}), unlabelled(model, labelled)
            sites, skipped = find_sites(sides, graph, program.masks, rows[0])
            resolver = Resolver(sides, Share.of(rows), sites, row_of(rows[0]), residual=self._options.residual)
            resolver.run(self._options.ridge, run.progress)
            share = Share.of(labelled)
            watched = compared(sides, share, resolver.outputs(share.mine)) if guard else None
            undone = told_by_first(watched is not None and not watched.after <= watched.before)
            if undone:
                sides.undo()
        report = CompensateReport(
            resolver.tokens,
            tuple(resolver.solved),
            skipped,
            resolver.layer_by_layer,
            tuple(sorted(resolver.residual)),
            watched.before if watched else None,
            watched.after if watched else None,
            undone,
            watched.rows if watched else 0,
        )
        if undone:
            logger.warning(
                "compensation was taken back: the loss on its own data rose from %.4f to %.4f",
                report.loss_before,
                report.loss_after,
            )
            return PassResult(program, modified=False, report=report)
        originals = sides.originals if self._keep_originals else {}
        weights = solved_weights(model, sides.originals)
        solved = _compensated(program, Compensation(report.projections, originals, weights, source, options))
        parity = Parity("compensate", resolver.difference, rounding_tolerance(graph.dtype))
        return PassResult(solved, modified=bool(sides.originals), report=report, parity=(parity,))

    def keep(self, after: Program, folder: Path) -> bool:
        """The solved weights, if they were not taken back."""
        if after.compensation is not None:
            after.compensation.save(folder)
        return True

    @torch.no_grad()
    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The program with these weights in it."""
        assert isinstance(record.report, CompensateReport)
        if record.report.undone:
            return before
        source, originals, weights = fingerprint(before.model), dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        if (folder / WEIGHTS_FILE).is_file():
            weights = dict(Compensation.load(folder).weights)
        for name, weight in weights.items():
            parameter = parameter_at(before.model, name)
            if self._keep_originals:
                originals[name] = parameter.detach().clone()
            parameter.data = weight.to(parameter)
        return _compensated(before, Compensation(record.report.projections, originals, weights, source, record.options))

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """No projection's error on the calibration data has risen."""
        for solved in after.compensation.solved if after.compensation else ():
            if not solved.after <= solved.before * (1 + ERROR_SLACK):
                raise PostconditionError(
                    f"pass 'compensate' made {solved.projection} worse on its own calibration data: relative error "
                    f"{solved.after:.6f} after {solved.before:.6f}"
                )
        return ()


def _compensated(program: Program, done: Compensation) -> Program:
    """The program whose model was compensated; a plan that it has says so from now on."""
    plan = program.plan and replace(program.plan, options={**program.plan.options, COMPENSATED: done.options})
    return replace(program, plan=plan, compensation=done).expecting_itself()


def calibration_rows(data: Dataset[dict[str, torch.Tensor]], run: RunContext) -> tuple[int, ...]:
    """Which rows a compensation looks at. Raises DataError if there are none."""
    rows = sample_rows(len(data), run.samples, run.seed)  # type: ignore[arg-type]
    if not rows:
        raise DataError("there is no calibration data")
    return rows


def calibration_batches(
    model: PreTrainedModel | PeftModel,
    data: Dataset[dict[str, torch.Tensor]],
    run: RunContext,
) -> list[ModelInputs]:
    """These rows in batches on the model's device, labels included where there are any."""
    more = {"use_cache": False} if takes(base_model(model), "use_cache") else {}
    device = next(model.parameters()).device
    made = batches(data, calibration_rows(data, run), run.batch_size, run.collate, device)
    return [{**batch, **more} for batch in made]


def unlabelled(model: PreTrainedModel | PeftModel, batches: Sequence[ModelInputs]) -> list[ModelInputs]:
    """The batches without labels, unless the inputs follow from these."""
    task = task_of(base_model(model))
    unwanted = () if task is Task.SEQ2SEQ_LM else task.label_names
    return [{name: value for name, value in batch.items() if name not in unwanted} for batch in batches]


def solved_weights(model: PreTrainedModel | PeftModel, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Copies of these parameters, by plain name, on the CPU."""
    return {name: parameter_at(model, name).detach().cpu().clone() for name in names}

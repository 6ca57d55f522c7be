"""Score: rank the units without training, from calibration data alone, and mask the lowest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch.utils.data import Dataset, Subset

from passes.algebra import on_cpu
from passes.budget import LatencyModel, Solver
from passes.criteria import AnyModel, Criterion, Needs, criterion_named, make_criterion, portions, room_on
from passes.decide.balance import ROWS, WAYS, BalanceTried, balanced
from passes.errors import DataError, ModelError, PreconditionError
from passes.graph import PruningGraph
from passes.models import (
    HOST_TOKENS,
    Row,
    Task,
    base_model,
    batches,
    drawn_around,
    heldout_loss,
    idle_adapter_off,
    label_count,
    lean_loss,
    masked,
    pieces,
    sample_rows,
    takes,
    task_of,
)
from passes.options import ScoreOptions, Target
from passes.pipeline import Pass, PassRecord, PassResult, Program, Progress, RunContext, plain, save_choice, with_choice
from passes.ranks import Share, from_first


@dataclass(frozen=True)
class ScoreReport:
    """How many rows were scored, in how many batches, the model's mean loss on those that it was computed of (all, or
    where a criterion needs gradients in part, these), and in how many portions; ``ways`` to share what goes between
    heads and channels, as they were measured (docs/budgets.md).

    Rows and batches are 0, and the loss None, for a criterion that looks at the weights alone.
    """

    rows: int
    batches: int
    loss: float | None
    portions: int = 1
    ways: tuple[BalanceTried, ...] = ()


@dataclass
class _Course:
    """How far it is: the sample's rows for each portion, the dimensions ``to_rank`` once these were seen, and ``last``
    the rows that the ways to share what goes are measured on.
    """

    progress: Progress
    portions: int
    to_rank: int
    last: int
    gone: int = 0
    rows: int = 0

    def tell(self, rows: int) -> None:
        """So many rows of the portion at hand are seen."""
        self.progress("score", self.gone + rows, self.portions * self.rows + self.to_rank + self.last)

    def ranked(self, dimensions: int) -> None:
        """The portion is done, with so many dimensions."""
        self.gone += self.rows + (dimensions if self.to_rank else 0)
        if self.rows:
            self.tell(0)

    def measured(self) -> None:
        """One more way is measured."""
        self.gone += ROWS
        self.tell(0)


class ScorePass(Pass):
    """Scores units on calibration data in evaluation mode, trains nothing, and masks down to the target.

    ``data`` and ``latency`` are as in ``TunePass``. The model runs under the program's masks, if it has any. It comes
    back as it was: the same weights, the same flags, no gradients. The loss is the mean over labels.
    """

    name = "score"
    batches = True
    reports = ScoreReport

    def __init__(
        self,
        target: Target,
        data: Dataset[Row],
        options: ScoreOptions = ScoreOptions(),
        latency: LatencyModel | None = None,
    ) -> None:
        self._target, self._data, self._options, self._latency = target, data, options, latency
        self._needs = criterion_named(options.criterion).needs

    @property
    def options(self) -> Mapping[str, Any]:
        """Target and options as plain values."""
        return {"target": plain(self._target), **plain(self._options)}

    def requires(self, program: Program) -> None:
        """A traced program; with an adapter, if the criterion reads its gradients."""
        if program.graph is None:
            raise PreconditionError("pass 'score' needs a traced program: run TracePass first")
        if self._needs is Needs.ADAPTER and not isinstance(program.model, PeftModel):
            raise PreconditionError(
                f"the criterion {self._options.criterion!r} reads the gradients of an adapter: run AttachPass first"
            )

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Score, and leave scores and masks in the program."""
        graph, model = program.traced, program.model
        solver = Solver.of(self._target, graph, self._latency)
        choices = solver.balances(WAYS) if len(cast(Any, self._data)) else []
        parts = self._portions(graph, next(model.parameters()).device)
        scores: dict[str, torch.Tensor] = {}
        masks = masked(model, graph, program.masks) if program.masks is not None else nullcontext()
        reads_adapter = self._needs is Needs.ADAPTER
        with ExitStack() as stack:
            stack.enter_context(_as_it_was(model, frozen=not reads_adapter))
            if not reads_adapter:
                stack.enter_context(idle_adapter_off(model))
            stack.enter_context(masks)
            stack.enter_context(lean_loss(model))
            ranks = criterion_named(self._options.criterion).held is not None
            course = _Course(run.progress, len(parts), len(graph.dimensions) if ranks else 0, len(choices) * ROWS)
            for part in parts:
                found, report = self._look(model, part, course, run.narrowed(self._options))
                scores |= found
                course.ranked(len(part.dimensions))
        scores = from_first(scores)
        loss = partial(self._loss, model, run.narrowed(self._options))
        chosen, ways = balanced(model, solver, choices, scores, loss, course.measured)
        report = replace(report, portions=len(parts), ways=ways)
        scored = replace(program, masks=from_first(chosen), scores=scores).expecting_itself()
        return PassResult(scored, modified=False, report=report)

    def keep(self, after: Program, folder: Path) -> bool:
        """Masks and scores."""
        save_choice(after, folder)
        return True

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The program under these masks."""
        return with_choice(before, folder).expecting_itself()

    def _portions(self, graph: PruningGraph, device: torch.device) -> tuple[PruningGraph, ...]:
        held = criterion_named(self._options.criterion).held
        if held is None:
            return (graph,)
        return portions(graph, partial(held, graph), self._options.statistics_bytes or room_on(device))

    def _look(
        self, model: AnyModel, graph: PruningGraph, course: _Course, run: RunContext
    ) -> tuple[dict[str, torch.Tensor], ScoreReport]:
        """The scores of one portion of the graph."""
        options = self._options
        importance = replace(options.importance, smoothing=0.0)
        criterion = make_criterion(options.criterion, graph, importance, run.seed)
        try:
            criterion.begin(model)
            report = self._run(model, course, run)
            self._observe(criterion, model)
        finally:
            criterion.end(model)
        return on_cpu(criterion.scores), report

    def _loss(self, model: AnyModel, run: RunContext) -> float:
        """The model's mean loss on the first rows of the sample, as it now is."""
        count = len(cast(Any, self._data))
        rows = sample_rows(count, min(run.samples, ROWS), run.seed)
        with idle_adapter_off(model):
            return heldout_loss(model, Subset(self._data, rows), run.batch_size, run.collate)

    def _observe(self, criterion: Criterion, model: AnyModel) -> None:
        if not criterion.observe(model):
            raise ModelError(
                f"the scores of the criterion {self._options.criterion!r} are not finite: check the data, or load the "
                "model in fp32 or bf16"
            )

    def _run(self, model: AnyModel, course: _Course, run: RunContext) -> ScoreReport:
        """The forward and, where the criterion needs them, the backward passes over the sample."""
        if self._needs is Needs.WEIGHTS:
            return ScoreReport(0, 0, None)
        count = len(cast(Any, self._data))
        rows = sample_rows(count, run.samples, run.seed)
        if not rows:
            raise DataError("the calibration data has no row")
        course.rows = len(rows)
        device, task = next(model.parameters()).device, task_of(base_model(model))
        entry = criterion_named(self._options.criterion)
        quiet = {"use_cache": False} if takes(base_model(model), "use_cache") else {}
        sample = list(batches(self._data, rows, run.batch_size, run.collate, device))
        if device.type == "cpu" and entry.additive:
            sample = [piece for batch in sample for piece in pieces(batch, task, HOST_TOKENS)]
        if task is Task.FEATURE_EXTRACTION and entry.sees_gradients:
            generator = torch.Generator().manual_seed(run.seed)
            sample = [{**batch, "labels": drawn_around(batch["labels"], generator)} for batch in sample]
        labels = [label_count(task, batch) for batch in sample]
        share, losses, done = Share.of(list(zip(sample, labels, strict=True))), list[torch.Tensor](), 0
        for batch, count in share.mine:
            with torch.set_grad_enabled(entry.sees_gradients):
                # each label has the same weight, whatever the batches; criteria take the mean over ranks
                loss = model(**batch, **quiet).loss * (share.ranks * count / max(sum(labels), 1))
            if entry.sees_gradients:
                loss.backward()
            losses.append(loss.detach())
            done += share.ranks * len(next(iter(batch.values())))
            course.tell(min(done, len(rows)))
        total = share.sum(sum(torch.stack(losses).tolist()))[0] / share.ranks
        return ScoreReport(len(rows), -(-len(rows) // run.batch_size), total)


@contextmanager
def _as_it_was(model: AnyModel, *, frozen: bool) -> Iterator[None]:
    """In evaluation mode, and with ``frozen`` asking for no gradient; afterwards with the flags that it had."""
    training = [module for module in model.modules() if module.training]
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        if frozen:
            model.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in asked:
            parameter.requires_grad_(True)

"""Held-out measuring as a pass: before anything is done, with the units gone, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from lpc.evaluation import Quality
from lpc.material import Measurer
from lpc.report import BeforeAfter, Completed, HeldOut, Merging
from passes.errors import OptionError, PreconditionError
from passes.models import masked
from passes.pipeline import Pass, PassRecord, PassResult, Program, RunContext

DENSE, REMOVED, ATTACHED, MERGED, PRUNED = STAGES = ("dense", "removed", "attached", "merged", "pruned")
"""Before anything is done; the dense weights with the units gone and nothing tuned; the masked model with its adapter
attached, and with it merged; what came of it."""

MASKED = (REMOVED, ATTACHED, MERGED)


@dataclass(frozen=True)
class MeasurePass(Pass):
    """Measures the program's model on held-out data and leaves it as it is. Their quality is the record's report."""

    stage: str
    measurer: Measurer = field(metadata={"record": False})
    name = "measure"
    batches = True
    reports = Quality

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise OptionError(f"a measure is taken at one of {', '.join(STAGES)}, got {self.stage!r}")

    def requires(self, program: Program) -> None:
        """Masks, where the units are to be gone."""
        if self.stage in MASKED and program.masks is None:
            raise PreconditionError("pass 'measure' needs masks to take units away: run DecidePass first")

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Measure."""
        with _units_gone(program, tuned=self.stage != REMOVED) if self.stage in MASKED else nullcontext():
            quality = self.measurer(program.model, run.batch_size)
        return PassResult(program, modified=False, report=quality)

    def keep(self, after: Program, folder: Path) -> bool:
        """Nothing but the record."""
        return True


def measures_of(measurer: Measurer) -> Callable[[PreTrainedModel | PeftModel, int], Mapping[str, float]]:
    """A measurer of which only the numbers are wanted, by name."""
    return lambda model, batch_size: measurer(model, batch_size).measures


@contextmanager
def _units_gone(program: Program, *, tuned: bool) -> Iterator[None]:
    """The model under the masks; not ``tuned``: its dense weights, adapter off, what a compensation solved undone."""
    assert program.masks is not None
    model = program.model
    off = model.disable_adapter() if isinstance(model, PeftModel) and not tuned else nullcontext()
    dense = program.compensation.undone(model) if program.compensation and not tuned else nullcontext()
    with off, dense, masked(model, program.traced, program.masks):
        yield


def heldout_of(history: Sequence[PassRecord], context_length: int | None = None) -> HeldOut | None:
    """What the measuring passes of a run found; None without a dense and a final one."""
    scores = {each.options.get("stage"): each.report for each in history if each.name == MeasurePass.name}
    dense, removed, attached, merged, pruned = (scores.get(stage) for stage in STAGES)
    if not isinstance(dense, Quality) or not isinstance(pruned, Quality):
        return None
    between = removed.measures if isinstance(removed, Quality) else {}
    last = merged if isinstance(merged, Quality) else pruned
    completed = tuple(
        Completed(prompt, before, after)
        for (prompt, before), (_, after) in zip(dense.completions, pruned.completions, strict=False)
    )
    merging = Merging(attached.measures, last.measures) if isinstance(attached, Quality) else None
    return HeldOut(
        measures={
            name: BeforeAfter(dense.measures[name], between.get(name), value) for name, value in pruned.measures.items()
        },
        rows=pruned.rows,
        labels=pruned.labels,
        context_length=context_length,
        merging=merging,
        completions=completed,
    )

"""The words of compatibility: a verdict, the evidence it may rest on, and a target with its constraints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from exporters.onnx import ExportReport
from exporters.runtimes.shape import Shape
from passes.errors import OptionError
from passes.models import Parity
from passes.pipeline import PassRecord

Runs = Literal["yes", "with file", "no", "partly", "unverified"]

RUN_HERE, BY_RULE = "run here", "by rule, not run here"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a runtime takes a model.

    ``run_here``: lpc ran this very model in it; otherwise the verdict follows from the runtime's documented constraints
    and the runtime was not started. ``source`` says which run, file, document or issue. Raises OptionError for another
    word than those of ``Runs``, or without a reason and a source.
    """

    target: str
    runs: Runs
    reason: str
    source: str
    run_here: bool = False

    def __post_init__(self) -> None:
        if self.runs not in get_args(Runs):
            raise OptionError(f"runs is {self.runs!r}; it must be one of {', '.join(get_args(Runs))}")
        if not (self.target and self.reason and self.source):
            raise OptionError(f"the verdict on {self.target!r} needs a target, a reason and a source")

    @property
    def evidence(self) -> str:
        """How it is known; nothing of what is unverified."""
        return "" if self.runs == "unverified" else RUN_HERE if self.run_here else BY_RULE


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was verified of this very model: whether its checkpoint was reloaded, and its ONNX package, if any."""

    saved: bool = False
    export: ExportReport | None = None
    parity: tuple[Parity, ...] = ()

    @classmethod
    def of(cls, history: Iterable[PassRecord]) -> Evidence:
        """What the passes ``save`` and ``export`` of a pipeline have verified; ``parity`` is that of export."""
        records = {record.name: record for record in history}
        export = records.get("export")
        report = export.report if export is not None else None
        return cls(
            saved="save" in records and all(parity.holds for parity in records["save"].parity),
            export=report if isinstance(report, ExportReport) else None,
            parity=export.parity if export is not None else (),
        )


@dataclass(frozen=True, kw_only=True)
class Check:
    """One constraint of a runtime.

    ``why_not`` says why a model does not meet it, or None if it does; then the verdict is ``otherwise``. ``run_here``:
    it is found out by running something here.
    """

    needs: str
    source: str
    why_not: Callable[[Shape, Evidence], str | None]
    otherwise: Runs = "no"
    run_here: bool = False


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One runtime: its constraints in order, and ``otherwise`` the verdict that ``passed`` gives when all of them hold.

    ``meaning`` is what its best verdict claims, for the page.
    """

    name: str
    meaning: str
    checks: tuple[Check, ...]
    passed: Callable[[Shape, Evidence], Verdict]

    def judge(self, shape: Shape, evidence: Evidence) -> Verdict:
        """The verdict on a model."""
        for check in self.checks:
            reason = check.why_not(shape, evidence)
            if reason is not None:
                return Verdict(
                    target=self.name,
                    runs=check.otherwise,
                    reason=reason,
                    source=check.source,
                    run_here=check.run_here,
                )
        return self.passed(shape, evidence)

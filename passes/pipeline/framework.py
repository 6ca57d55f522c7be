"""The pass infrastructure: how a pass is written, checked and composed."""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from passes.errors import LpcError, PassError, PostconditionError, PreconditionError
from passes.models import Parity, memory_advice, reason, return_free_memory, smaller_batches
from passes.pipeline.context import DEFAULT_RUN, RunContext
from passes.pipeline.plain import plain
from passes.pipeline.program import Program
from passes.pipeline.records import PassRecord, measured

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassResult:
    """A pass's program, whether its model differs from the one that came in, and the pass's own numbers.

    ``report`` is a frozen dataclass, or None; ``parity`` holds numbers that the pass could only measure on its way.
    """

    program: Program
    modified: bool
    report: object | None = None
    parity: tuple[Parity, ...] = ()


class Pass(ABC):
    """One verb on a program.

    Subclasses implement ``call`` and keep no state between calls; options are dataclass fields or constructor
    arguments, and what the passes of a run share comes with the call. The framework runs ``requires`` before and
    ``ensures`` after, measures, and appends a PassRecord to the program's history.
    """

    name: ClassVar[str]
    reports: ClassVar[type[Any] | None] = None
    """The class of this pass's report, for a pass that keeps its outcome."""
    batches: ClassVar[bool] = False
    """Whether it runs the model on batches of the run's size, so that smaller ones need less memory."""

    def requires(self, program: Program) -> None:  # noqa: B027 - most passes need nothing
        """Raise PreconditionError if the program cannot be given to this pass."""

    @abstractmethod
    def call(self, program: Program, run: RunContext) -> PassResult:
        """Do the work and return the new program."""

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """The parities that must hold between the program that came in and the one that goes out."""
        return ()

    def keep(self, after: Program, folder: Path) -> bool:
        """Write into an empty folder what of the outcome would cost much to make again; False if nothing would.

        A run that goes on from there (``RunContext.checkpoints``) does a pass again that keeps nothing.
        """
        return False

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The program as it was after this pass, from what ``keep`` wrote and the pass's record; bit for bit."""
        return before

    def with_less_memory(self, run: RunContext) -> str:
        """What to change where this pass runs out of memory, for the error that says so."""
        return smaller_batches(run.batch_size) if self.batches else "it needs a device or machine with more memory"

    @property
    def options(self) -> Mapping[str, Any]:
        """The options as plain values, for the record."""
        return plain(self) if dataclasses.is_dataclass(self) else {}

    def __call__(self, program: Program, run: RunContext = DEFAULT_RUN) -> PassResult:
        """Check, run, verify and record. Raises LpcError; anything else becomes a PassError that names the pass."""
        parities: tuple[Parity, ...] = ()
        return_free_memory()
        with measured() as measurement:
            try:
                with memory_advice(f"pass {self.name!r}", lambda: self.with_less_memory(run)):
                    self.requires(program)
                    result = self.call(program, run)
                    parities = (*result.parity, *self.ensures(program, result.program))
            except LpcError:
                raise
            except Exception as error:
                raise PassError(f"pass {self.name!r} failed: {type(error).__name__}: {reason(error)}") from error
        check_parities(self.name, parities)
        record = PassRecord(
            name=self.name,
            options=run.told(self.options),
            seconds=measurement.seconds,
            peak_memory_bytes=measurement.peak_memory_bytes,
            modified=result.modified,
            parity=parities,
            report=result.report,
        )
        logger.info("%s: %.2f s, modified=%s", self.name, measurement.seconds, result.modified)
        return replace(result, program=replace(result.program, history=(*result.program.history, record)))


class PreservingPass(Pass):
    """A pass that must not change what the program computes: its response on the probe stays the same, bit for bit."""

    def requires(self, program: Program) -> None:
        """The program must be traced and know what it computes."""
        if program.graph is None or program.expected is None:
            raise PreconditionError(f"pass {self.name!r} needs a traced program: run TracePass first")

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """The program's response equals the expected one."""
        assert before.expected is not None
        actual = after.respond(before.expected)
        parity = actual.compare(self.name, before.expected, tolerance=0.0)
        if not parity.holds:
            place = actual.first_difference(before.expected, tolerance=0.0)
            raise PostconditionError(f"pass {self.name!r} changed what the model computes: {parity}; {place}")
        return (parity,)


def check_parities(name: str, parities: tuple[Parity, ...]) -> None:
    """Raise PostconditionError naming the pass and the first parity that does not hold."""
    for parity in parities:
        if not parity.holds:
            raise PostconditionError(f"pass {name!r} failed its verification: {parity}")

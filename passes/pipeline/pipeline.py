"""The pipeline: passes in order, as a value that can be looked at, changed, recorded and run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from passes.errors import LpcError, OptionError
from passes.pipeline.context import DEFAULT_RUN, RunContext
from passes.pipeline.framework import Pass, PassResult
from passes.pipeline.program import Program


@dataclass(frozen=True, kw_only=True)
class PassEntry:
    """One pass of a pipeline as it was built: its name, and its options as plain values."""

    name: str
    options: Mapping[str, Any]


@dataclass
class Handed:
    """A program that is handed over: who takes it is then the only one to hold it, so that its model can go."""

    program: Program | None

    def take(self) -> Program:
        """The program, once."""
        program, self.program = self.program, None
        if program is None:
            raise RuntimeError("this program was handed over already")
        return program


class Pipeline(Pass):
    """Passes one after another; itself a pass. An error names the failing pass and those already run.

    It is a value: ``insert`` and ``after`` return new ones.
    """

    name = "pipeline"

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = tuple(passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the passes, in order."""
        return tuple(each.name for each in self.passes)

    @property
    def entries(self) -> tuple[PassEntry, ...]:
        """The passes with their options; those of a pipeline among them stand in its place."""
        found: list[PassEntry] = []
        for each in self.passes:
            found += each.entries if isinstance(each, Pipeline) else [PassEntry(name=each.name, options=each.options)]
        return tuple(found)

    @property
    def options(self) -> Mapping[str, Any]:
        """The names of the passes."""
        return {"passes": list(self.names)}

    def insert(self, added: Pass, *, before: str | None = None, after: str | None = None) -> Pipeline:
        """A pipeline with one pass more, before or after the first pass of that name.

        Raises OptionError unless exactly one place is named, and there is a pass of that name.
        """
        if (before is None) == (after is None):
            raise OptionError("insert needs one place: before=NAME or after=NAME of a pass")
        place = self._place(before or after or "") + (before is None)
        return Pipeline([*self.passes[:place], added, *self.passes[place:]])

    def after(self, name: str) -> Pipeline:
        """What follows the first pass of that name. Raises OptionError if there is none."""
        return Pipeline(self.passes[self._place(name) + 1 :])

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise OptionError(f"the pipeline has no pass {name!r}; it has {', '.join(self.names) or 'none'}")
        return self.names.index(name)

    def __call__(self, program: Program, run: RunContext = DEFAULT_RUN) -> PassResult:
        """Run the passes; each records itself, the pipeline adds no record of its own."""
        return self.run(Handed(program), run)

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Run the passes in order."""
        return self.run(Handed(program), run)

    def run(self, handed: Handed, run: RunContext = DEFAULT_RUN) -> PassResult:
        """Run the passes on a program that nobody else holds: a model is let go as soon as a pass has replaced it."""
        program, modified = handed.take(), False
        for position, each in enumerate(self.passes):
            run.progress(each.name, 0, 1)
            try:
                result = each(program, run)
            except LpcError as error:
                done = ", ".join(self.names[:position]) or "none"
                error.add_note(f"failing pass: {each.name}; already run: {done}")
                raise
            program, modified = result.program, modified or result.modified
            run.progress(each.name, 1, 1)
        return PassResult(program, modified)

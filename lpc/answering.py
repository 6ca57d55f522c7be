"""Asking the fixed prompts as a pass: of an instruction model, before anything is done and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lpc.evaluation import Replies, RepliesCompared
from lpc.material import Answerer
from lpc.measuring import DENSE, PRUNED
from passes.pipeline import Pass, PassRecord, PassResult, Program, RunContext


@dataclass(frozen=True)
class AnswerPass(Pass):
    """Has the program's model answer, and leaves it as it is. The answers are the record's report."""

    stage: str
    answerer: Answerer = field(metadata={"record": False})
    name = "answer"
    reports = Replies

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Ask."""
        return PassResult(program, modified=False, report=self.answerer(program.model))

    def keep(self, after: Program, folder: Path) -> bool:
        """Nothing but the record."""
        return True


def answers_of(history: Sequence[PassRecord]) -> RepliesCompared | None:
    """What the passes of a run were answered; None without a dense and a final model's."""
    found = {each.options.get("stage"): each.report for each in history if each.name == AnswerPass.name}
    dense, pruned = found.get(DENSE), found.get(PRUNED)
    if not isinstance(dense, Replies) or not isinstance(pruned, Replies):
        return None
    return RepliesCompared.of(dense, pruned)

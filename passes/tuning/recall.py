"""Recall: put a snapshot in the place of what the run ended with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict

from passes.errors import PostconditionError, PreconditionError
from passes.models import Adapter, Parity, active_adapter
from passes.pipeline import Pass, PassResult, Program, RunContext, Snapshot


@dataclass(frozen=True)
class RecallPass(Pass):
    """A copy of the model wears the snapshot's adapter, under the snapshot's masks. The program that came in stays.

    Ensures that the adapter is the snapshot's, bit for bit.
    """

    snapshot: Snapshot
    name = "recall"

    @property
    def options(self) -> Mapping[str, Any]:
        """Which snapshot."""
        return {"ratio": self.snapshot.ratio, "step": self.snapshot.step}

    def requires(self, program: Program) -> None:
        """A traced program whose model still wears the adapter that was trained."""
        if program.graph is None or not isinstance(program.model, PeftModel):
            raise PreconditionError("pass 'recall' needs a traced program with its adapter: run it after TunePass")

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Copy the model and put the snapshot into it."""
        assert isinstance(program.model, PeftModel)
        snapshot, model = self.snapshot, copy.deepcopy(program.model)
        set_peft_model_state_dict(model, dict(snapshot.adapter.state), adapter_name=active_adapter(model))
        recalled = replace(program, model=model, masks=snapshot.masks, scores=snapshot.scores, snapshots=())
        return PassResult(recalled.expecting_itself(), modified=True)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """The adapter is the snapshot's."""
        assert isinstance(after.model, PeftModel)
        actual, expected = Adapter.of(after.model).state, self.snapshot.adapter.state
        wrong = sorted(actual.keys() ^ expected.keys())
        wrong = wrong or [name for name, value in actual.items() if not torch.equal(value, expected[name])]
        if wrong:
            raise PostconditionError(f"pass 'recall' did not bring back {wrong[0]} as it was")
        return ()

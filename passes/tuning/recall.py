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
        wear(model, snapshot.adapter)
        recalled = replace(program, model=model, masks=snapshot.masks, scores=snapshot.scores, snapshots=())
        return PassResult(recalled.expecting_itself(), modified=True)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """The adapter is the snapshot's."""
        assert isinstance(after.model, PeftModel)
        check_worn(after.model, self.snapshot.adapter)
        return ()


def wear(model: PeftModel, adapter: Adapter) -> None:
    """Give a model's active adapter the tensors of another of its kind.

    Raises PostconditionError if it does not have them then, bit for bit.
    """
    set_peft_model_state_dict(model, dict(adapter.state), adapter_name=active_adapter(model))
    check_worn(model, adapter)


def check_worn(model: PeftModel, adapter: Adapter) -> None:
    """Raise PostconditionError unless the model wears just this adapter, bit for bit."""
    actual, expected = Adapter.of(model).state, adapter.state
    wrong = sorted(actual.keys() ^ expected.keys())
    wrong = wrong or [name for name, value in actual.items() if not torch.equal(value, expected[name])]
    if wrong:
        raise PostconditionError(f"the adapter's {wrong[0]} was not brought back as it was")

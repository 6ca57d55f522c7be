"""Merge: BA into W0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from passes.errors import ModelError
from passes.models import Adapter
from passes.pipeline import PassResult, PreservingPass, Program, RunContext


@dataclass(frozen=True)
class MergePass(PreservingPass):
    """Adds s·BA to W0 and takes the adapter off. Each sum is made on a copy and checked finite before it is used."""

    name = "merge"

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Merge, if there is an adapter."""
        if not isinstance(program.model, PeftModel):
            return PassResult(program, modified=False)
        adapter = Adapter.of(program.model)
        try:
            merged = cast(PreTrainedModel, program.model.merge_and_unload(safe_merge=True))
        except ValueError as error:
            raise ModelError(f"merging the adapter gives weights that are not finite: {error}") from error
        merged.requires_grad_(False)
        done = program.compensation and program.compensation.without_originals()
        program = replace(program, model=merged, adapter=adapter, compensation=done)
        return PassResult(program.expecting_itself(), modified=True)

"""Attach: wrap the prunable weights with LoRA through peft. With B = 0 the logits stay bit-equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from passes.errors import PostconditionError
from passes.models import Parity, active_adapter, lora_config, lora_weights, scored_by
from passes.options import LoraOptions
from passes.pipeline import PassResult, PreservingPass, Program, RunContext, plain


@dataclass(frozen=True)
class AttachReport:
    """How each dimension will be scored: by its adapter, or by the true gradient of weights that wear none."""

    scored_by: Mapping[str, str]


@dataclass(frozen=True)
class AttachPass(PreservingPass):
    """Gives the model a LoRA adapter; one that the model already wears is kept and goes on from there.

    Base weights never require gradients. ``seed`` fixes the initial A (default: the run's).
    """

    lora: LoraOptions = LoraOptions()
    seed: int | None = None
    name = "attach"

    @property
    def options(self) -> Mapping[str, Any]:
        """The LoRA options and the seed."""
        return {"lora": plain(self.lora), "seed": self.seed}

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Attach, or take over the adapter that is there."""
        brought = isinstance(program.model, PeftModel)
        if isinstance(program.model, PeftModel):
            model = program.model
            _train_only(model, active_adapter(model))
        else:
            with torch.random.fork_rng():
                torch.manual_seed(run.seed if self.seed is None else self.seed)
                model = get_peft_model(program.model, lora_config(self.lora, program.traced, program.model))
            model.train(program.model.training)
        report = AttachReport(MappingProxyType(scored_by(model, program.traced)))
        return PassResult(replace(program, model=model), modified=not brought, report=report)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """The same response, bit for bit; and a new adapter is zero, also where that would be too little to be seen."""
        parities = super().ensures(before, after)
        assert isinstance(after.model, PeftModel)
        for name, projection in lora_weights(after.model).items():
            if not isinstance(before.model, PeftModel) and projection.left.any() and projection.right.any():
                raise PostconditionError(f"pass 'attach' gave {name} an adapter that is not zero")
        return parities


@dataclass(frozen=True)
class DetachPass(PreservingPass):
    """Takes off an adapter that was there to be scored and was never trained: with B = 0 nothing changes."""

    name = "detach"

    def call(self, program: Program, run: RunContext) -> PassResult:
        """The model without its adapter, if it has one."""
        if not isinstance(program.model, PeftModel):
            return PassResult(program, modified=False)
        bare = cast(PreTrainedModel, program.model.unload())
        bare.requires_grad_(False)
        return PassResult(replace(program, model=bare), modified=True)


def _train_only(model: PeftModel, adapter: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name and f".{adapter}." in name)

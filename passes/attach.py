"""Attach: wrap the projections with LoRA through peft. With B = 0 the logits stay bit-equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from passes.adapter import LoraOptions, active_adapter, lora_layers
from passes.errors import OptionError
from passes.infra import PassResult, PreservingPass, plain
from passes.program import Program


@dataclass(frozen=True)
class AttachPass(PreservingPass):
    """Gives the model a LoRA adapter; one that the model already wears is kept and goes on from there.

    Base weights never require gradients. ``seed`` fixes the initial A.
    """

    lora: LoraOptions = LoraOptions()
    seed: int = 0
    name = "attach"

    @property
    def options(self) -> Mapping[str, Any]:
        """The LoRA options and the seed."""
        return {"lora": plain(self.lora), "seed": self.seed}

    def tolerance(self, program: Program) -> float:
        """Bit for bit."""
        return 0.0

    def call(self, program: Program) -> PassResult:
        """Attach, or take over the adapter that is there."""
        brought = isinstance(program.model, PeftModel)
        if isinstance(program.model, PeftModel):
            model = program.model
            _train_only(model, active_adapter(model))
        else:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                model = get_peft_model(program.model, self.lora.config(program.traced))
        self._check_covered(program, model)
        return PassResult(replace(program, model=model), modified=not brought)

    def _check_covered(self, program: Program, model: PeftModel) -> None:
        covered = set(lora_layers(model))
        for dimension in program.traced.dimensions:
            modules = [part.module for part in dimension.weights]
            if not covered.intersection(modules):
                names = ", ".join(module.rpartition(".")[2] for module in modules)
                raise OptionError(
                    f"the adapter covers no projection of {dimension.name}, so its units cannot be scored: "
                    f"train it on at least one of {names}"
                )


def _train_only(model: PeftModel, adapter: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name and f".{adapter}." in name)

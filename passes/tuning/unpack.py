"""Unpack: a base of 8- or 4-bit numbers gives way to one in full precision, under the adapter that was tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from passes.errors import PostconditionError
from passes.models import Adapter, base_model, full_precision, is_packed, vendor
from passes.pipeline import Pass, PassResult, Program, RunContext
from passes.tuning.recall import wear

FAR = 0.5
"""Packed weights differ from those that they were made of by a tenth (4 bits), those of another model by more than
their own length."""


@dataclass(frozen=True)
class UnpackReport:
    """How many weights were packed, and how far the farthest is from the packed one: ‖W − Ŵ‖ / ‖W‖, 0 if it is the
    packed one's own value.
    """

    weights: int
    farthest: float


class UnpackPass(Pass):
    """Puts the weights in full precision in the place of packed ones; scores, masks and adapter stay.

    ``source`` gives the model that the packed one was made of: its own weights are better than what the packing left of
    them. Without it they are what the packed model computes with.
    """

    name = "unpack"
    reports = UnpackReport

    def __init__(self, source: Callable[[], PreTrainedModel] | None = None) -> None:
        self._source = source

    @property
    def options(self) -> Mapping[str, Any]:
        """Where the weights come from."""
        return {"weights": "the source's own" if self._source else "the packed ones'"}

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Unpack, and let the model wear its adapter again."""
        model = program.model
        packed = {name: each for name, each in _linear(base_model(model)).items() if is_packed(each.weight)}
        if not packed:
            return PassResult(program, modified=False, report=UnpackReport(0, 0.0))
        adapter = Adapter.of(model) if isinstance(model, PeftModel) else None
        base = model.unload() if isinstance(model, PeftModel) else model
        dense = self._source() if self._source else None
        farthest = max(_distance(name, each, dense) for name, each in packed.items()) if dense else 0.0
        dense = dense or full_precision(base)
        dense.requires_grad_(False)
        found: PreTrainedModel | PeftModel = dense.eval()
        if adapter is not None:
            found = get_peft_model(dense, adapter.config)
            wear(found, adapter)
        report = UnpackReport(len(packed), farthest)
        return PassResult(replace(program, model=found.eval()).expecting_itself(), modified=True, report=report)

    def ensures(self, before: Program, after: Program) -> tuple[()]:
        """Nothing is packed any more."""
        left = [name for name, each in base_model(after.model).named_parameters() if is_packed(each)]
        if left or hasattr(base_model(after.model).config, "quantization_config"):
            raise PostconditionError(f"pass 'unpack' left {left[0] if left else 'the configuration'} packed")
        return ()


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers by plain name; where they wear an adapter those inside."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name.replace(".base_layer", ""): module for name, module in found.items() if ".lora_" not in name}


@torch.no_grad()
def _distance(name: str, packed: nn.Linear, dense: PreTrainedModel) -> float:
    """‖W − Ŵ‖ / ‖W‖. Raises PostconditionError if the two cannot be the same weight."""
    weight = dense.get_parameter(f"{name}.weight").float()
    far = float((vendor.unpacked_weight(packed).to(weight) - weight).norm() / weight.norm().clamp_min(1e-30))
    if not far <= FAR:
        raise PostconditionError(
            f"pass 'unpack' failed its verification: {name} is {far:.2f} of its length away from the packed one, so "
            "the source is another model"
        )
    return far

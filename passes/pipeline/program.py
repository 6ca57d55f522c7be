"""What flows through the pipeline, and how to ask it what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from passes.errors import LpcError, ModelError
from passes.graph import Masks, Plan, PruningGraph, present
from passes.models import (
    Adapter,
    Probe,
    Response,
    base_model,
    check_adapter,
    check_finite,
    masked,
    memory_advice,
    positions,
    reason,
    respond,
    routers,
    routing,
)
from passes.pipeline.artifacts import Artifact
from passes.pipeline.compensation import Compensation
from passes.pipeline.records import PassRecord
from passes.pipeline.recovery import Recovery
from passes.pipeline.snapshots import Snapshot

__all__ = ["Probe", "Program", "Response", "positions", "respond"]


@dataclass(frozen=True)
class Program:
    """The IR: a model, what is known of it, and what it must still compute.

    ``expected`` is the response that the next meaning-preserving pass must reproduce under the masks. Passes never
    change a Program; the model inside is the pipeline's own working copy. ``scores`` are the importance [units] a
    dimension that the masks were chosen by. ``adapter`` is what was merged into it, ``compensation`` what was solved in
    it, ``recovery`` what was trained on it when it was compact already, ``others`` what else passes have left
    (``leaving``). ``snapshots`` are what tuning left at ratios on its way.
    """

    model: PreTrainedModel | PeftModel
    probe: Probe
    graph: PruningGraph | None = None
    masks: Masks | None = None
    scores: Mapping[str, torch.Tensor] | None = None
    plan: Plan | None = None
    adapter: Adapter | None = None
    snapshots: tuple[Snapshot, ...] = ()
    compensation: Compensation | None = None
    recovery: Recovery | None = None
    others: tuple[Artifact, ...] = ()
    expected: Response | None = None
    history: tuple[PassRecord, ...] = ()

    @classmethod
    def start(cls, model: PreTrainedModel | PeftModel) -> Program:
        """The program of a working copy, ready for the first pass.

        Raises ModelError if it does not run, or if a weight or what it computes is not finite, UnsupportedModelError if
        it wears anything but one plain LoRA, OutOfMemoryError.
        """
        if isinstance(model, PeftModel):
            check_adapter(model)
        check_finite(model)
        name, batch = type(base_model(model)).__name__, Probe.of(base_model(model))
        try:
            with memory_advice(
                f"a first batch through {name}", lambda: "it needs a device or machine with more memory"
            ):
                program = cls(model, batch).expecting_itself()
        except LpcError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {reason(error)}"
            raise ModelError(
                f"this {name} does not run on a small batch of its inputs ({why}): see that it runs by itself first"
            ) from error
        assert program.expected is not None
        program.expected.check_finite(str(base_model(model).dtype))
        return program

    @property
    def traced(self) -> PruningGraph:
        """The graph; only for passes whose ``requires`` has checked that there is one."""
        assert self.graph is not None
        return self.graph

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All that passes have left so far and that belongs into the output."""
        found: tuple[Artifact | None, ...] = (self.adapter, self.compensation, self.recovery, *self.others)
        return tuple(each for each in found if each is not None)

    def leaving(self, artifact: Artifact) -> Program:
        """The same program with one artifact more; it takes the place of one of its name."""
        return replace(self, others=(*(each for each in self.others if each.name != artifact.name), artifact))

    def respond(self, like: Response | None = None) -> Response:
        """What the program computes now: the model under the masks, in evaluation mode.

        With ``like``, tokens go to the experts that they went to there.
        """
        if self.graph is None:
            return respond(self.model, self.probe)
        masks = masked(self.model, self.graph, self.masks) if self.masks is not None else nullcontext()
        with masks, routing(self.model, self._routers(), like.choices if like else None) as choices:
            return replace(respond(self.model, self.probe), choices=choices)

    def _routers(self) -> dict[str, str]:
        """The routers by their names in the dense model; once shrunk, layers are numbered anew."""
        names = routers(self.traced)
        if self.plan is None or self.masks is not None:
            return {name: name for name in names}
        return present(self.traced, self.plan.kept, names)

    def expecting_itself(self) -> Program:
        """The same program, expecting from now on what it computes now."""
        return replace(self, expected=self.respond())

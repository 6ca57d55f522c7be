"""Streaming: what the replay, recompensate, merge and shrink passes do, for one tensor after the other.

All that is structure (graph, compact class, configuration, names and shapes) is worked out on the meta device first. A
tensor is read, counted into the source's fingerprint, re-solved, merged and cut by the very functions of those passes,
and held against an independent gather. No forward pass is run: nothing is proven about what layers compute.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.compensation import RecompensatePass
from passes.decide import ReplayPass
from passes.errors import PlanError
from passes.graph import Plan, PruningGraph
from passes.models import (
    Adapter,
    Fingerprint,
    Parity,
    Probe,
    Unloaded,
    active_adapter,
    check_finite,
    check_finite_tensor,
)
from passes.pipeline import Compensation, PassRecord, Program
from passes.shrink import Gathered, ShrinkPass, build_compact, cutting_of
from passes.trace import TracePass, options_for
from passes.tuning import MergePass, adapted_layers, merge_into


@dataclass
class Streaming:
    """A plan on its way through a checkpoint that is not loaded.

    ``dense`` is the source on the meta device, in the dtype that the run had it in; ``worn`` another one of it that
    wears the adapter, which has its values. ``solved`` are the weights that the run re-solved, by name.

    Raises what the passes raise in ``requires``, among them PlanError where the plan does not fit the model.
    """

    source: Unloaded
    dense: PreTrainedModel
    plan: Plan
    worn: PeftModel | None = None
    solved: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seconds, self._worst, self._epsilon = defaultdict[str, float](float), 0.0, 0.0
        model = self.worn or self.dense
        with self._timed(TracePass.name):
            traced = TracePass(options_for(self.plan.kept))(Program(model, Probe.of(self.dense))).program
        self.graph: PruningGraph = traced.traced
        program = Program(model, traced.probe, self.graph, masks=self.plan.masks(self.graph))
        RecompensatePass(self.solved).requires(program)
        check_finite(nn.ParameterList(p for p in model.parameters() if not p.is_meta))
        self._layers = adapted_layers(self.worn) if self.worn is not None else {}
        self._dtypes = {name: parameter.dtype for name, parameter in self.dense.named_parameters()}
        with self._timed(ShrinkPass.name):
            self.compact = self.dense if self._keeps_all else build_compact(self.dense, self.graph, self.plan.kept)

    @property
    def _keeps_all(self) -> bool:
        return self.plan.target_parameters == self.graph.parameters()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters of the compact model as they come, by name.

        Raises ModelError and PostconditionError for a tensor, and PlanError at the end if the source was another one.
        """
        gathered = Gathered(self.dense, self.compact, self.graph, self.plan.kept)
        with self._timed(ShrinkPass.name):
            gathered.check_names()
            gathered.check_form(self.plan.target_parameters)
            cut = None if self._keeps_all else cutting_of(self.dense, self.compact, self.graph, self.plan.kept)
        whole = Fingerprint(self.dense.config)
        for name, tensor in self._read(whole):
            tensor = self._changed(name, tensor)
            with self._timed(ShrinkPass.name):
                left = cut(name, tensor) if cut is not None else (name, tensor)
                if left is not None:
                    gathered.check_one(*left, tensor)
            del tensor
            if left is not None:
                yield left
            del left  # or it is there still when the next one is read
        if whole.hexdigest() != self.plan.source:
            raise PlanError(
                f"the plan is for the model with fingerprint {self.plan.source[:12]}, this one has "
                f"{whole.hexdigest()[:12]}: load the model that the plan was made for"
            )

    def _read(self, whole: Fingerprint) -> Iterator[tuple[str, torch.Tensor]]:
        """The source's parameters as the run had them, counted into its fingerprint."""
        tensors = self.source.tensors()
        while True:
            with self._timed(ReplayPass.name):
                name, tensor = next(tensors, ("", None))
                if tensor is None:
                    return
                tensor = tensor.to(self._dtypes[name])
                check_finite_tensor(name, tensor)
                whole.add(name, tensor)
            yield name, tensor
            del tensor

    def _changed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor with what was solved and trained, in the order of the run."""
        if self.plan.compensated_first:
            return self._merged(name, self._solved(name, tensor))
        return self._solved(name, self._merged(name, tensor))

    def _solved(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        with self._timed(RecompensatePass.name):
            return self.solved[name].to(tensor) if name in self.solved else tensor

    def _merged(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in self._layers or self.worn is None:
            return tensor
        with self._timed(MergePass.name):
            merged, worst = merge_into(tensor, name, self._layers[name], active_adapter(self.worn))
        self._worst = max(self._worst, worst)
        self._epsilon = max(self._epsilon, torch.finfo(tensor.dtype).eps)
        return merged

    def program(self, peak_memory_bytes: int) -> Program:
        """What has become of it all: the compact model on the meta device, artifacts, and the records of the passes.

        ``peak_memory_bytes`` is that of the whole, which stands in each record.
        """
        solved = (RecompensatePass.name,) if self.solved else ()
        first = self.plan.compensated_first
        names = (TracePass.name, ReplayPass.name, *(solved if first else ()), MergePass.name)
        names = (*names, *(() if first else solved), ShrinkPass.name)
        parities = {MergePass.name: Parity("merge", self._worst, self._epsilon / 2)} if self._layers else {}
        parities[ShrinkPass.name] = Parity("cut", 0.0, 0.0)
        options = {
            TracePass.name: TracePass(options_for(self.plan.kept)).options,
            ReplayPass.name: {"source": self.plan.source},
        }
        changed = {
            RecompensatePass.name: True,
            MergePass.name: bool(self._layers),
            ShrinkPass.name: not self._keeps_all,
        }
        history = tuple(
            PassRecord(
                name=name,
                options=options.get(name, {}),
                seconds=self._seconds[name],
                peak_memory_bytes=peak_memory_bytes,
                modified=changed.get(name, False),
                parity=(parities[name],) if name in parities else (),
            )
            for name in names
        )
        return Program(
            self.compact,
            Probe.of(self.dense),
            self.graph,
            plan=self.plan,
            adapter=Adapter.of(self.worn) if self.worn is not None else None,
            compensation=Compensation((), {}, self.solved) if self.solved else None,
            history=history,
        )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - began

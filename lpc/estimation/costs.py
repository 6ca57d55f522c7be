"""The costs of a run: all that they follow from, and which option to change where they are too high."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from lpc.estimation import memory, work
from lpc.estimation.pace import Pace
from lpc.estimation.result import Bill, StageEstimate
from lpc.estimation.sizes import Sizes
from lpc.estimation.work import Load
from lpc.generation import AT_ONCE
from lpc.options import CompressOptions
from lpc.pipelines import compensation_for
from passes.budget import Solver
from passes.criteria import Needs, criterion_named
from passes.decide import WAYS
from passes.graph import PruningGraph
from passes.options import MEASURES, Target
from passes.tuning import settled

NOMINAL_BYTES = 2e9
"""Bytes a second that merging, cutting, hashing and writing get through on one processor."""
MERGE_BYTES, SHRINK_BYTES, SAVE_BYTES, EXPORT_BYTES = 60.0, 20.0, 16.0, 60.0
"""Bytes that each of these moves an element."""
TEXT_CONTEXT = 256
"""Tokens a sequence of text, where nothing is said."""
MEASURES_TAKEN = 4
"""Of what is held out: dense, removed, attached or merged, pruned."""
GUARDED = 4
"""Batches that the guard of a compensation looks at, at least."""
PROVEN = 10
"""Runs of each layer on one row, by which a compensation finds out what it is made of."""
GENERATE, RANK, TUNE = "generate", "rank", "tune"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """All that the costs of a run follow from."""

    sizes: Sizes
    load: Load
    kept: float

    @classmethod
    def of(cls, graph: PruningGraph, config: PreTrainedConfig, options: CompressOptions, *, on_cpu: bool) -> Costs:
        """The costs of a run with these options."""
        tune = settled(options.tune, graph)
        longest = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or TEXT_CONTEXT)
        load = Load(
            tune=tune,
            rank=options.lora.rank,
            context=options.data_options.sequence_length or min(TEXT_CONTEXT, longest),
            batch=tune.batch_size or options.run.batch_size,
            samples=options.run.samples,
            heldout=options.data_options.heldout_sequences,
            compensated=compensation_for(options.compensate, tune, graph) is not None,
            on_cpu=on_cpu,
            own=_own(options),
            ways=_ways(options.target, graph) if tune.one_shot or not tune.steps else 0,
        )
        return cls(sizes=Sizes.of(graph, config), load=load, kept=_kept(options.target, graph))

    def even(self, rate: float) -> Pace:
        """The pace of a device that gets through so many operations a second, whatever they are."""
        return Pace.even(self.sizes, self.load, rate)

    def way(self, pace: Pace, *, true_gradient: bool = False) -> Bill:
        """The stages at a pace."""
        held = self.memory()
        if true_gradient and TUNE in held:
            held[TUNE] += self.sizes.adapted * self.sizes.itemsize
        flops = self.flops(true_gradient=true_gradient)
        stages = tuple(
            StageEstimate(
                name=name,
                memory_bytes=int(size),
                flops=flops.get(name, 0.0),
                seconds=self.seconds(name, pace, true_gradient=true_gradient),
            )
            for name, size in held.items()
        )
        step = work.step(self.sizes, self.load, share=self.share(true_gradient), true_gradient=true_gradient)
        return Bill(stages=stages, step_flops=step, step_seconds=self.step_seconds(pace, true_gradient=true_gradient))

    @property
    def left(self) -> float:
        """The share of the layers' weights that stays."""
        head = self.sizes.vocabulary * self.sizes.hidden
        return max(0.0, 1 - (1 - self.kept) * self.sizes.parameters / max(1, self.sizes.parameters - head))

    def share(self, true_gradient: bool = False) -> float:
        """The share of the layers' weights that is trained: the compact model's where all goes before tuning."""
        tune = self.load.tune
        return self.left if tune.one_shot and tune.small and not true_gradient else 1.0

    def flops(self, *, true_gradient: bool = False) -> dict[str, float]:
        """Operations by stage."""
        step = work.step(self.sizes, self.load, share=self.share(true_gradient), true_gradient=true_gradient)
        return {
            "measure": MEASURES_TAKEN * work.measure(self.sizes, self.load),
            GENERATE: work.generate(self.sizes, self.load),
            "answer": work.answer(self.sizes, self.load),
            RANK: work.rank_units(self.sizes, self.load),
            "compensate": work.compensate(self.sizes, self.load, kept=self.left),
            TUNE: self.load.tune.steps * step,
        }

    def seconds(self, name: str, pace: Pace, *, true_gradient: bool = False) -> float:
        """Seconds of a stage: what it computes at a pace, and the bytes that it moves."""
        elements, left = self.sizes.parameters, self.kept * self.sizes.parameters
        moved = {
            "load": 2.0 * self.sizes.weight_bytes,
            GENERATE: self.load.context * -(-self.load.own // (AT_ONCE * self.load.batch)) * self.sizes.weight_bytes,
            "merge": MERGE_BYTES * self.sizes.adapted,
            "shrink": SHRINK_BYTES * elements,
            "save": SAVE_BYTES * left,
            "export": EXPORT_BYTES * left,
        }
        computed: dict[str, Callable[[Pace], float]] = {
            "measure": self._measuring,
            GENERATE: lambda pace: work.generate(self.sizes, self.load) / self._operations(pace),
            "answer": lambda pace: work.answer(self.sizes, self.load) / self._operations(pace),
            RANK: self._ranking,
            "compensate": self._compensating,
            TUNE: lambda pace: self.load.tune.steps * self.step_seconds(pace, true_gradient=true_gradient),
        }
        return (computed[name](pace) if name in computed else 0.0) + moved.get(name, 0.0) / NOMINAL_BYTES

    def step_seconds(self, pace: Pace, *, true_gradient: bool = False) -> float:
        """Seconds of a step of tuning."""
        load, sizes = self.load, self.sizes
        token = self.share(true_gradient) * pace.trained + pace.head_trained
        token += pace.forward + pace.head if load.tune.distill is not None else 0
        token += pace.forward + pace.head if true_gradient else 0
        scored = work.scoring(sizes, load) if not true_gradient else 0.0
        return token * load.step_tokens + scored / pace.product

    def _operations(self, pace: Pace) -> float:
        """Operations a second of a forward pass."""
        return self.sizes.forward(self.load.context) / (pace.forward + pace.head)

    def _measuring(self, pace: Pace) -> float:
        """All that is measured on what is held out: dense and removed, once with the adapter, and compact."""
        load = self.load
        layers = (2 + self.share()) * pace.forward + pace.worn
        return load.heldout * load.context * (layers + MEASURES_TAKEN * pace.head)

    def _ranking(self, pace: Pace) -> float:
        load, entry = self.load, criterion_named(self.load.tune.criterion)
        if entry.needs is Needs.WEIGHTS:
            return 0.0
        both = pace.trained if entry.needs is Needs.ADAPTER else pace.frozen
        token = both + pace.head_trained if entry.sees_gradients else pace.forward
        token += pace.head if entry.needs is Needs.ACTIVATIONS else 0
        if load.tune.criterion == "obs":
            token += work.seen(self.sizes, load) / pace.product
            return load.sampled * token + work.eliminated(self.sizes) / pace.eliminate
        return load.sampled * token

    def _compensating(self, pace: Pace) -> float:
        """Both sides through the layers, where what was solved gives its outputs once more; the normal equations, the
        guard, and what is found out on one row.
        """
        load, sizes, kept = self.load, self.sizes, self.left
        again = 2.0 * sizes.solved / (sizes.forward(load.context) - sizes.head)
        token = (2 + again) * pace.forward + work.solving(sizes, kept) / pace.add
        guarded = min(load.sampled, GUARDED * load.batch * load.context)
        found = load.sampled * token + guarded * (2 * pace.head + pace.forward) + PROVEN * load.context * pace.forward
        return found + work.solved(sizes, kept) / pace.solve

    def memory(self) -> dict[str, float]:
        """Bytes by stage."""
        return memory.stages(self.sizes, self.load, self.kept, self.left)

    def peak(self) -> float:
        """Bytes of the stage that holds most."""
        return max(self.memory().values())

    def remedy(self, room: int) -> str | None:
        """The first single option, and to what, with which the run fits into so many bytes; None if none helps."""
        load = self.load
        tried = [(f"--batch-size {n}", replace(load, batch=n)) for n in _halves(load.batch, 1)]
        tried += [(f"--samples {n}", replace(load, samples=n)) for n in _halves(load.samples, 8)]
        tried += [(f"--sequence-length {n}", replace(load, context=n)) for n in _halves(load.context, 32)]
        return next((words for words, changed in tried if replace(self, load=changed).peak() <= room), None)

    def least(self) -> float:
        """Bytes that no option gets below."""
        return replace(self, load=replace(self.load, batch=1, samples=1, context=16)).peak()


def _kept(target: Target, graph: PruningGraph) -> float:
    """The share of the parameters that stays at most, as far as the target says it."""
    shares, cost = [1.0], graph.cost()
    for name in ("parameters", "weight_bytes"):
        amount = target.wanted.asked.get(name)
        if amount is not None:
            dense = getattr(cost, name)
            shares.append(amount if isinstance(amount, float) else MEASURES[name].parsed(amount) / dense)
    return min(shares)


def _own(options: CompressOptions) -> int:
    """How many sequences the model writes itself, where it does."""
    data = options.data_options
    share = data.self_share or 0.0
    return math.ceil(share * min(data.self_sequences, options.rows_read))


def _ways(target: Target, graph: PruningGraph) -> int:
    """How many ways to share what goes are measured; 0 where latencies, which are not known yet, decide with."""
    if "latency" in target.wanted.asked:
        return 0
    return len(Solver.of(target, graph).balances(WAYS))


def _halves(value: int, least: int) -> Iterator[int]:
    while value > least:
        value = max(least, value // 2)
        yield value

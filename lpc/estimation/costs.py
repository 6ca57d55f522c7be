"""The costs of a run: all that they follow from, and which option to change where they are too high."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from lpc.estimation import memory, work
from lpc.estimation.result import Bill, StageEstimate
from lpc.estimation.sizes import Sizes
from lpc.estimation.work import Load
from lpc.generation import AT_ONCE
from lpc.options import CompressOptions
from lpc.pipelines import compensation_for
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
            own=options.data_options.self_sequences,
        )
        return cls(sizes=Sizes.of(graph, config), load=load, kept=_kept(options.target, graph))

    def way(self, rate: float, *, true_gradient: bool = False) -> Bill:
        """The stages at a rate."""
        held = memory.stages(self.sizes, self.load, self.kept)
        if true_gradient and TUNE in held:
            held[TUNE] += self.sizes.adapted * self.sizes.itemsize
        flops = self.flops(true_gradient=true_gradient)
        stages = tuple(
            StageEstimate(
                name=name, memory_bytes=int(size), flops=flops.get(name, 0.0), seconds=self.seconds(name, flops, rate)
            )
            for name, size in held.items()
        )
        step = work.step(self.sizes, self.load, true_gradient=true_gradient)
        return Bill(stages=stages, step_flops=step, step_seconds=step / rate)

    def flops(self, *, true_gradient: bool = False) -> dict[str, float]:
        """Operations by stage."""
        return {
            "measure": MEASURES_TAKEN * work.measure(self.sizes, self.load),
            GENERATE: work.generate(self.sizes, self.load),
            "answer": work.answer(self.sizes, self.load),
            RANK: work.rank_units(self.sizes, self.load),
            "compensate": work.compensate(self.sizes, self.load),
            TUNE: self.load.tune.steps * work.step(self.sizes, self.load, true_gradient=true_gradient),
        }

    def seconds(self, name: str, flops: Mapping[str, float], rate: float) -> float:
        """Seconds of a stage: what it computes at the rate, and the bytes that it moves."""
        elements, left = self.sizes.parameters, self.kept * self.sizes.parameters
        moved = {
            "load": 2.0 * self.sizes.weight_bytes,
            GENERATE: self.load.context * -(-self.load.own // (AT_ONCE * self.load.batch)) * self.sizes.weight_bytes,
            "merge": MERGE_BYTES * self.sizes.adapted,
            "shrink": SHRINK_BYTES * elements,
            "save": SAVE_BYTES * left,
            "export": EXPORT_BYTES * left,
        }
        return flops.get(name, 0.0) / rate + moved.get(name, 0.0) / NOMINAL_BYTES

    def peak(self) -> float:
        """Bytes of the stage that holds most."""
        return max(memory.stages(self.sizes, self.load, self.kept).values())

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


def _halves(value: int, least: int) -> Iterator[int]:
    while value > least:
        value = max(least, value // 2)
        yield value

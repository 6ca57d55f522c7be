"""What LoRAPrune's scores cost a step, against the same step of plain LoRA: seconds and memory, by how sums are formed.

    python benchmarks/scoring.py [--size small|1b|7b] [--dtype bfloat16] [--batch N] [--context N] [--accumulate N]
                                 [--rank N] [--steps N] [--ways NAME,...]

A Llama of random weights and random tokens, adapters on all projections, AdamW on these: forward, backward, scores,
clipping, a step. Ways take turns step by step, so that what slows the machine for a while slows all; rows are medians.
Ways: ``plain`` (no scores), ``torch``, ``compiled`` and ``triton`` where there is a CUDA device, ``taylor``, the true
gradient of each weight that is ranked, and if it is asked for ``naive``, with the gradients of all weights kept beside
it, as LLM-Pruner does. JSON and a table go to benchmarks/out/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.latency.machine import Machine
from lpc.report import table
from lpc.versions import versions
from passes.algebra import Way, triton_works
from passes.criteria import AnyModel, Criterion, LoRAPrune, Taylor
from passes.graph import PruningGraph
from passes.options import ImportanceOptions, LoraOptions
from passes.pipeline import Pipeline, Program
from passes.trace import TracePass
from passes.tuning import AttachPass

OUT = Path(__file__).parent / "out"
PLAIN, TAYLOR, NAIVE = "plain", "taylor", "naive"
SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
VOCABULARY = {"small": 4096, "1b": 32000, "7b": 32000}


@dataclass(frozen=True)
class Row:
    """Median seconds of a step and of the scores in it, and their ratio to plain LoRA's step; peak bytes of a device,
    and how many of them are not plain LoRA's.
    """

    way: str
    step: float
    scores: float
    ratio: float
    peak_bytes: int
    extra_bytes: int


class Naive(Taylor):
    """Taylor, with the gradients of all weights in memory until the scores are taken."""

    def begin(self, model: AnyModel) -> None:
        """Ask for all of them."""
        self._others = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        super().begin(model)
        model.requires_grad_(True)

    def end(self, model: AnyModel) -> None:
        """Ask for them no longer."""
        super().end(model)
        for parameter in self._others:
            parameter.requires_grad_(False)
            parameter.grad = None


class Trained:
    """A model that wears LoRA, and what a step of it is."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = LlamaConfig(**SIZES[arguments.size], vocab_size=VOCABULARY[arguments.size])
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, arguments.dtype))
        with self.device:
            model = LlamaForCausalLM(config)
        torch.set_default_dtype(before)
        model.config.use_cache = False
        program = Pipeline([TracePass(), AttachPass(LoraOptions(rank=arguments.rank))])(Program.start(model)).program
        assert isinstance(program.model, PeftModel)
        self.model, self.graph = program.model.train(), program.traced
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.accumulate = arguments.accumulate
        shape = arguments.batch, arguments.context
        self.ids = torch.randint(0, config.vocab_size, shape, device=self.device)

    def step(self, criterion: Criterion | None) -> tuple[float, float]:
        """Seconds of a whole step, and of the scores in it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = self._now()
        for _ in range(self.accumulate):
            (self.model(input_ids=self.ids, labels=self.ids).loss / self.accumulate).backward()
        between = self._now()
        if criterion is not None:
            criterion.observe(self.model)
        scored = self._now()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self._now() - start, scored - between

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="measured ones of each way; two more warm it up")
    parser.add_argument("--ways", default="", help="names separated by commas; by default all that run here")
    arguments = parser.parse_args()
    trained = Trained(arguments)
    ways = [*filter(None, arguments.ways.split(","))] or [PLAIN, *_ways(), TAYLOR]
    rows = measured(trained, ways, arguments.steps)
    _write(rows, arguments)


def _ways() -> list[str]:
    if not torch.cuda.is_available():
        return [Way.TORCH.value]
    return [Way.TORCH.value, *([Way.COMPILED.value, Way.TRITON.value] if triton_works() else [])]


def measured(trained: Trained, ways: Sequence[str], steps: int) -> list[Row]:
    """A row a way; each says its numbers as soon as they are there."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    peaks = dict.fromkeys(ways, 0)
    makers = {way: _criterion(way, trained.graph) for way in ways}
    for turn in range(steps + 2):
        for way in ways if turn % 2 else reversed(ways):
            criterion = makers[way]()
            if criterion is not None:
                criterion.begin(trained.model)
            found = trained.step(criterion)
            if criterion is not None:
                criterion.end(trained.model)
            if turn >= 2:
                seconds[way].append(found)
                if trained.device.type == "cuda":
                    peaks[way] = max(peaks[way], torch.cuda.max_memory_allocated())
    plain = median(step for step, _ in seconds[ways[0]])
    rows = []
    for way in ways:
        step, scores = (median(column) for column in zip(*seconds[way], strict=True))
        rows.append(Row(way, step, scores, step / plain, peaks[way], peaks[way] - peaks[ways[0]]))
        print(json.dumps(asdict(rows[-1])), flush=True)
    return rows


def _criterion(way: str, graph: PruningGraph) -> Callable[[], Criterion | None]:
    options = ImportanceOptions(normalise=True)
    if way == PLAIN:
        return lambda: None
    made: Criterion
    if way in (TAYLOR, NAIVE):
        made = (Naive if way == NAIVE else Taylor)(graph, options)
    else:
        made = LoRAPrune(graph, options, Way(way))
    return lambda: made


def _write(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    OUT.mkdir(exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else Machine.here().processor
    stem = f"scoring-{arguments.size}-{'cuda' if torch.cuda.is_available() else 'cpu'}"
    values = {"options": vars(arguments), "machine": asdict(Machine.here()), "device": device, "versions": versions()}
    (OUT / f"{stem}.json").write_text(json.dumps({**values, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    tokens = f"{arguments.accumulate} × {arguments.batch} × {arguments.context} tokens a step"
    head = f"{arguments.size}, {arguments.dtype}, rank {arguments.rank}, {tokens}, "
    head += f"{arguments.steps} steps each, {device}, {torch.get_num_threads()} threads"
    lines = [[row.way, f"{row.step:.3f}", f"{row.scores:.4f}", f"{row.ratio:.3f}", *_memory(row)] for row in rows]
    columns = ["way", "step, s", "of it scores, s", "of plain LoRA", "peak GiB", "extra MiB"]
    page = f"{head}\n\n{table(columns, lines)}\n"
    (OUT / f"{stem}.md").write_text(page)
    print(page)


def _memory(row: Row) -> tuple[str, str]:
    return (f"{row.peak_bytes / 2**30:.2f}", f"{row.extra_bytes / 2**20:.0f}") if row.peak_bytes else ("", "")


if __name__ == "__main__":
    main()

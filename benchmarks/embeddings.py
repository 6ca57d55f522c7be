"""An embedding model made smaller in widths, beside the same one cut to fewer layers, tuned alike: likeness and speed.

    python benchmarks/embeddings.py MODEL --work DIR [--text FILE] [--steps 40] [--sentences 1024] [--rounds 15]

Each model is made once and kept in DIR, so that a run that was stopped goes on; then all packages take turns on the
same calls, one thread, in processor time (``--rounds 0``: they are only made; ``--only REGEX``: some of them).
Sentences of the text are ranked, tuned and measured on; which are held out is always the same. The models cut in depth
keep layers evenly spaced up to the last one and are tuned by the same adapters, steps, batches and sentences, towards
the same vectors of the dense model. Writes a table and the numbers into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

import lpc
from exporters.calls import Graph, OnnxFolder, forward_grid
from exporters.latency import processor
from exporters.onnx import export_onnx
from lpc.evaluation import Quality
from lpc.material import Material, prepare, set_aside
from lpc.source import load_source
from passes.models import base_model, count_parameters
from passes.options import RecoverOptions, RunOptions
from passes.pipeline import Program, RunContext
from passes.trace import TracePass
from passes.tuning import RecoverPass

RESULTS = Path(__file__).parent / "results"
TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "text" / "wikitext-2" / "train.txt"
HELD = 300
CALLS = forward_grid((1, 16), (32, 128))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all models have in common: how many sentences, steps, and of what batch."""

    sentences: int
    steps: int
    batch: int = 32

    @property
    def data(self) -> lpc.DataOptions:
        """The data's options: always as many held out."""
        return lpc.DataOptions(sequence_length=128, sentences=self.sentences, heldout_fraction=0.5, heldout_rows=HELD)

    @property
    def run(self) -> RunOptions:
        """The run's."""
        return RunOptions(batch_size=self.batch)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One model: its sizes, its likeness to the dense one on held-out sentences, and the seconds that it took."""

    name: str
    parameters: int
    macs: int
    onnx_bytes: int
    similarity: float
    neighbours: float
    untuned_similarity: float | None
    seconds: float


def sentences_in(text: str, most: int) -> list[str]:
    """Sentences of 20 to 200 characters, evenly from the whole text, each once."""
    parts = (part.strip() for line in text.split("\n") for part in re.split(r"(?<= [.!?]) ", line))
    found = list(dict.fromkeys(part for part in parts if 20 <= len(part) <= 200 and not part.startswith("=")))
    return found[:: max(1, len(found) // most)][:most]


def in_widths(model: Path, texts: Sequence[str], setting: Setting, folder: Path, **how: Any) -> Made:
    """What ``lpc.compress`` makes of the model."""
    begun = time.perf_counter()
    result = lpc.compress(model, list(texts), steps=setting.steps, run=setting.run, data_options=setting.data, **how)
    result.save(folder)
    held, cost = result.report.heldout, result.program.traced.cost(result.plan.kept)
    assert held is not None
    likeness = {name: held.measures[name] for name in ("similarity", "neighbours")}
    return Made(
        name=folder.name,
        parameters=count_parameters(result.model),
        macs=cost.macs,
        onnx_bytes=OnnxFolder.find(folder).file_bytes,
        similarity=likeness["similarity"].pruned,
        neighbours=likeness["neighbours"].pruned,
        untuned_similarity=likeness["similarity"].removed,
        seconds=time.perf_counter() - begun,
    )


def in_depth(model: Path, texts: Sequence[str], setting: Setting, folder: Path, layers: int) -> Made:
    """The model with so many of its layers, tuned towards the dense one's vectors."""
    begun = time.perf_counter()
    run = RunContext.of(setting.run)
    material = vectors(model, texts, setting, run)
    cut_to(model, layers, folder / "hf")
    source = load_source(folder / "hf", run=run)
    program = TracePass()(Program.start(source.model), run).program
    before = material.measure(base_model(program.model), setting.batch)
    if layers < AutoConfig.from_pretrained(model).num_hidden_layers:
        train, aside = set_aside(material.train)
        options = RecoverOptions(steps=setting.steps, patience=setting.steps)
        program = RecoverPass(train, aside, options)(program, replace(run, collate=material.collate)).program
    tuned = base_model(program.model).eval()
    export_onnx(tuned, source.processor, folder / "onnx")
    after: Quality = material.measure(tuned, setting.batch)
    assert after.similarity is not None
    assert after.neighbours is not None
    return Made(
        name=folder.name,
        parameters=count_parameters(tuned),
        macs=program.traced.cost().macs,
        onnx_bytes=OnnxFolder.find(folder).file_bytes,
        similarity=after.similarity,
        neighbours=after.neighbours,
        untuned_similarity=before.similarity,
        seconds=time.perf_counter() - begun,
    )


def vectors(model: Path, texts: Sequence[str], setting: Setting, run: RunContext) -> Material:
    """The same sentences as ``in_widths`` has, with the dense model's vectors."""
    source = load_source(model, run=run)
    material = prepare(source, list(texts), setting.data)
    assert material.generate is not None
    material.generate(Program.start(source.model), run)
    return material


def cut_to(model: Path, layers: int, folder: Path) -> None:
    """A copy of the model's folder with so many of its layers."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"), dirs_exist_ok=True)
    whole: Any = AutoModel.from_pretrained(model)
    stack = whole.encoder.layer
    kept = [round((index + 1) * len(stack) / layers) - 1 for index in range(layers)]
    whole.encoder.layer = torch.nn.ModuleList(stack[index] for index in kept)
    whole.config.num_hidden_layers = layers
    whole.save_pretrained(folder)


Cell = Callable[[Path], Made]


def cells(model: Path, texts: Sequence[str], setting: Setting) -> Mapping[str, Cell]:
    """What is made, by name: at 0.3 of the parameters, at half of the multiplications, and the dense model."""
    whole: int = AutoConfig.from_pretrained(model).num_hidden_layers
    small = lpc.Target(ratio=0.3, multiple=8)
    half = lpc.Target(budget=lpc.Budget(macs=0.5), multiple=8)
    own = lpc.TraceOptions(custom_code=True)

    def widths(target: lpc.Target, **how: Any) -> Cell:
        return lambda folder: in_widths(model, texts, setting, folder, target=target, **how)

    def depth(layers: int) -> Cell:
        return lambda folder: in_depth(model, texts, setting, folder, layers)

    return {
        "dense": depth(whole),
        "half of the MACs, layers": depth(whole // 2),
        "half of the MACs, MLPs": widths(half),
        "half of the MACs, heads and MLPs": widths(half, trace=own),
        "0.3 of the parameters, layers": depth(whole // 3),
        "0.3 of the parameters, MLPs": widths(small),
        "0.3 of the parameters, heads and MLPs": widths(small, trace=own),
    }


def speeds(folders: Mapping[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time of each package on each call, the median of turns that rotate."""
    graphs = {name: Graph(OnnxFolder.find(folder), 1) for name, folder in folders.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in graphs}
    for call in CALLS:
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for turn in range(rounds + 1):
            names = list(graphs)[turn % len(graphs) :] + list(graphs)[: turn % len(graphs)]
            for name in names:
                feeds, begun = graphs[name].feeds(call), time.process_time()
                graphs[name].run(feeds)
                times[name].append(1e3 * (time.process_time() - begun))
        for name, each in times.items():
            found[name][call.key] = median(each[1:])
    return found


def table(made: Sequence[Made], fast: Mapping[str, Mapping[str, float]]) -> str:
    """The models side by side."""
    head = [
        "",
        "parameters",
        "MACs",
        "ONNX",
        "similarity",
        "nearest ten",
        "untuned",
        *(f"{call.batch} × {call.tokens}" for call in CALLS),
    ]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for each in made:
        untuned = "–" if each.untuned_similarity is None else f"{each.untuned_similarity:.3f}"
        rows.append(
            [
                each.name,
                f"{each.parameters / 1e6:.1f} M",
                f"{each.macs / 1e6:.2f} M",
                f"{each.onnx_bytes / 1e6:.0f} MB",
                f"{each.similarity:.3f}",
                f"{each.neighbours:.1%}",
                untuned,
                *(f"{fast[each.name][call.key]:.1f} ms" for call in CALLS),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Make what is missing, time all of it, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="models whose name fits this regular expression")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(sentences=asked.sentences, steps=asked.steps)
    texts = sentences_in(asked.text.read_text(encoding="utf-8"), HELD + asked.sentences)
    made = []
    for name, cell in cells(asked.model, texts, setting).items():
        if not re.search(asked.only, name):
            continue
        folder = asked.work / name
        kept = asked.work / f"{name}.json"
        if not kept.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            kept.write_text(json.dumps({**asdict(setting), **asdict(cell(folder))}))
        values = json.loads(kept.read_text())
        if {key: values[key] for key in asdict(setting)} != asdict(setting):
            raise SystemExit(f"{kept} is of another setting: name another --work, or remove it")
        made.append(Made(**{key: value for key, value in values.items() if key not in asdict(setting)}))
        print(made[-1], flush=True)
    if not asked.rounds:
        return
    fast = speeds({each.name: asked.work / each.name for each in made}, asked.rounds)
    told = table(made, fast)
    said = f"{asked.model.name}, {setting.steps} steps of {setting.batch} sentences, one thread of {processor()}"
    values = {"setting": asdict(setting), "said": said, "models": [asdict(each) for each in made], "ms": fast}
    (RESULTS / "embeddings.json").write_text(json.dumps(values, indent=1) + "\n")
    (RESULTS / "embeddings.md").write_text(f"{said}:\n\n{told}\n")
    print(told)


if __name__ == "__main__":
    main()

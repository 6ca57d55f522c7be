"""Quality on a really pretrained model: the text it was tuned on, other text, zero-shot tasks, answers. Resumable.

    python benchmarks/quality.py --models smollm2 [--ratios 0.2,0.5] [--seeds 0] [--steps 20] [--rate R] [--rows 300]

``LPC_MODELS/smollm2`` is what ``../shared/tools/real_models.py smollm2`` writes, ``LPC_DATA`` has text and tasks. A
cell is a way at a ratio with a seed, tuned on WikiText-2 train as ``lpc.compress`` does, ``--steps`` of 8 × 256 tokens.
Measured are, in the model's own dtype, the perplexity of tokens of WikiText-2 test, TinyStories and LAMBADA, the mean
of acc_norm over ``--rows`` rows of each task (lm-eval) with its standard error, and for a model with a chat template
its answers. Cells that are done are read back from ``benchmarks/out/quality-MODEL-real.jsonl``; one that is refused, or
whose peer is not installed, says why. ``--table`` runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from quality_cells import Recipe
from quality_recipes import AUTHORS, DEFAULT, PAPER, one_shot, tuned
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lpc
from lpc.data import BlockDataset
from lpc.data.text import token_sequences
from lpc.evaluation import RepliesCompared, evaluate, replies, token_perplexity
from lpc.options import EvaluateOptions
from lpc.report import table
from lpc.source import find_tokenizer
from passes.errors import LpcError
from passes.options import ONE_SHOT, CompensateOptions, Layout, RecoverOptions
from passes.pipeline import Pipeline, Program, RunContext, plain
from passes.trace import TracePass
from passes.tuning import RecoverPass

OUT = Path(__file__).parent / "out"
TASKS = ("arc_easy", "arc_challenge", "piqa", "hellaswag", "openbook_qa", "winogrande")
WIKITEXT, STORIES, LAMBADA = TEXTS = ("WikiText-2", "TinyStories", "LAMBADA")
WINDOW, WINDOWS = 512, 50
DENSE, TUNED, OPTIPFAIR = "dense", "dense, tuned", "optipfair, not tuned"

EQUAL = replace(DEFAULT, balance="equal")

RECIPES: Mapping[str, Recipe] = {
    "default": DEFAULT,
    "default, equal shares": EQUAL,
    "default, per-layer": replace(DEFAULT, layout=Layout.PER_LAYER),
    "LoRAPrune as coded": AUTHORS,
    "LoRAPrune as published": PAPER,
    "taylor, tuned alike": tuned("taylor", distilled=False, schedule=ONE_SHOT),
    "wanda, tuned alike": tuned("wanda", distilled=False, schedule=ONE_SHOT),
    "flap, tuned alike": tuned("flap", distilled=False, schedule=ONE_SHOT),
    "calibration only": replace(one_shot("obs"), compensate=CompensateOptions()),
}
"""Ways on the user's text alone."""

SHARES = {
    "default, a quarter its own": (DEFAULT, 0.25),
    "default, equal shares, a quarter its own": (EQUAL, 0.25),
    "default, half its own": (DEFAULT, 0.5),
    "default, all its own": (DEFAULT, 1.0),
}
"""The default with a share of the model's own text."""

WAYS = (DENSE, TUNED, *RECIPES, *SHARES, OPTIPFAIR)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cells of a table have in common; it is in the key of each."""

    steps: int = 20
    samples: int = 128
    length: int = 256
    own: int = 256
    rows: int = 300
    rate: float = 0.0011


@dataclass(frozen=True)
class Real:
    """A model folder, its tokenizer, the text to tune on, and blocks [n, 512] of each text to measure on."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    text: str
    measured: Mapping[str, BlockDataset]
    tasks: Path


def main(name: str, arguments: argparse.Namespace) -> None:
    """Run what is missing of a model's cells and write the table."""
    path = OUT / f"quality-{name}-real.jsonl"
    setting = Setting(steps=arguments.steps or 20, rows=arguments.rows, samples=arguments.samples, rate=arguments.rate)
    if not arguments.table:
        real = load(name)
        for way, ratio, seed in _cells(arguments):
            key = {"way": way, "ratio": ratio, "seed": seed, **plain(setting)}
            if not any(row["key"] == key for row in read(path)):
                row = {"key": key, **_made(real, way, ratio, seed, setting)}
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps({**key, **row.get("texts", {})}), file=sys.stderr, flush=True)
    rows = [row for row in read(path) if plain(setting).items() <= row["key"].items()]
    text = summary(name, rows, setting)
    (OUT / f"quality-{name}-real.md").write_text(text)
    print(text)


def _cells(arguments: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    ratios = [float(each) for each in (arguments.ratios or "0.2,0.5").split(",")]
    seeds = [int(each) for each in arguments.seeds.split(",")]
    for seed, ratio, way in itertools.product(seeds, ratios, [way for way in WAYS if re.search(arguments.only, way)]):
        if way not in (DENSE, TUNED):
            yield way, ratio, seed
        elif ratio == ratios[0] and (way == TUNED or seed == seeds[0]):
            yield way, 0.0, seed


def read(path: Path) -> list[dict[str, Any]]:
    """The finished cells."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def load(name: str) -> Real:
    """A model and its texts; exits with a plain sentence where they are not there."""
    folder = Path(os.environ.get("LPC_MODELS", "../shared/models")) / name
    data = Path(os.environ.get("LPC_DATA", "../shared/data"))
    tokenizer = find_tokenizer(folder) if folder.is_dir() else None
    if tokenizer is None or not data.is_dir():
        sys.exit(
            f"{folder} or {data} is absent: python ../shared/tools/real_models.py {name} {folder}, and set LPC_DATA"
        )
    lambada = [json.loads(line)["context"] for line in (data / "tasks/lambada_openai.jsonl").open()]
    texts = {
        WIKITEXT: [(data / "text/wikitext-2/test.txt").read_text()],
        STORIES: [(data / "text/tinystories/tinystories_heldout_decoded.txt").read_text()],
        LAMBADA: lambada,
    }
    measured = {}
    for each, text in texts.items():
        found = token_sequences(text, tokenizer, sequence_length=WINDOW)
        measured[each] = BlockDataset(found.tensor[:WINDOWS], found.labels[:WINDOWS])
    return Real(folder, tokenizer, (data / "text/wikitext-2/train.txt").read_text(), measured, data / "tasks")


def _made(real: Real, way: str, ratio: float, seed: int, setting: Setting) -> dict[str, Any]:
    """One cell: the seconds it took and what was measured of it; where it cannot be, why."""
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        model = _maker(way)(real, ratio, seed, setting)
    except (LpcError, ImportError) as error:
        return {"refused": f"{type(error).__name__}: {error}"[:400]}
    spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    size = sum(parameter.numel() for parameter in model.parameters())
    return {**spent, "parameters": size, "threads": torch.get_num_threads(), **measure(real, model, setting.rows)}


def _maker(way: str) -> Callable[[Real, float, int, Setting], PreTrainedModel]:
    if way in RECIPES:
        return lambda real, ratio, seed, setting: _compressed(real, RECIPES[way], 0.0, ratio, seed, setting)
    if way in SHARES:
        return lambda real, ratio, seed, setting: _compressed(real, *SHARES[way], ratio, seed, setting)
    return {DENSE: lambda real, *_: lpc.load(real.folder), TUNED: _tuned, OPTIPFAIR: _optipfair}[way]


def _data(share: float, setting: Setting) -> lpc.DataOptions:
    return lpc.DataOptions(
        sequence_length=setting.length, self_share=share, self_sequences=setting.own, self_seconds=604_800
    )


def _compressed(real: Real, recipe: Recipe, share: float, ratio: float, seed: int, setting: Setting) -> PreTrainedModel:
    result = lpc.compress(
        real.folder,
        [real.text],
        target=recipe.target(ratio),
        run=lpc.RunOptions(seed=seed, samples=setting.samples),
        lora=recipe.lora,
        tune=replace(
            recipe.tune,
            steps=setting.steps if recipe.trained else 0,
            learning_rate=recipe.tune.learning_rate or setting.rate,
        ),
        data_options=_data(share, setting),
        compensate=recipe.compensate or False,
    )
    return result.model


def _tuned(real: Real, ratio: float, seed: int, setting: Setting) -> PreTrainedModel:
    """The dense model with the same adapter, rate and steps."""
    found = token_sequences([real.text], real.tokenizer, sequence_length=setting.length)
    train, aside = (BlockDataset(found.tensor[part], found.labels[part]) for part in (slice(64, None), slice(64)))
    options = RecoverOptions(steps=setting.steps, every=setting.steps, lora=DEFAULT.lora, learning_rate=setting.rate)
    passes = Pipeline([TracePass(), RecoverPass(train, aside, options)])
    program = passes(Program.start(lpc.load(real.folder)), RunContext(seed=seed)).program
    assert isinstance(program.model, PreTrainedModel)
    return program.model


def _optipfair(real: Real, ratio: float, seed: int, setting: Setting) -> PreTrainedModel:
    """optipfair's GLU pruning, down to the same parameters by MLP channels alone; nothing is tuned."""
    from optipfair import prune_model

    model = lpc.load(real.folder)
    mlp = sum(p.numel() for name, p in model.named_parameters() if ".mlp." in name)
    share = min(0.95, ratio * sum(p.numel() for p in model.parameters()) / mlp)
    pruned: PreTrainedModel = prune_model(model, pruning_percentage=100 * share, show_progress=False)
    return pruned


def measure(real: Real, model: PreTrainedModel, rows: int) -> dict[str, Any]:
    """Perplexity of each text, accuracy of each task with its standard error, and answers beside the dense model's."""
    texts = {
        name: token_perplexity(model, data.blocks, labels=data.labels).value for name, data in real.measured.items()
    }
    found: dict[str, Any] = {"texts": texts, "tasks": zero_shot(real, model, rows)}
    if real.tokenizer.chat_template is not None:
        dense = replies(lpc.load(real.folder), real.tokenizer)
        compared = plain(RepliesCompared.of(dense, replies(model, real.tokenizer)))
        found["answers"] = {name: value for name, value in compared.items() if name not in ("dense", "pruned")}
    return found


def zero_shot(real: Real, model: PreTrainedModel, rows: int) -> dict[str, tuple[float, float]]:
    """acc_norm of each task, acc where there is none, and its standard error."""
    files = tuple(str(real.tasks / f"{name}.jsonl") for name in TASKS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        real.tokenizer.save_pretrained(folder)
        run = evaluate(folder, EvaluateOptions(tasks=files, limit=rows, backend="hf")).runs[0]
    scores = {(each.task, each.metric): (each.value, each.stderr or 0.0) for each in run.scores}
    return {name: scores.get((name, "acc_norm")) or scores[name, "acc"] for name in TASKS}


def summary(name: str, rows: Sequence[Mapping[str, Any]], setting: Setting) -> str:
    """The table: a line a way and ratio, the means over its seeds."""
    cells: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["key"]["way"], row["key"]["ratio"]), []).append(row)
    head = (
        f"{name}: {setting.steps} steps of 8 × {setting.length} tokens of WikiText-2 at a rate of {setting.rate:g}, "
        f"{setting.samples} sequences ranked, {setting.own} of the model's own; {setting.rows} rows a task; "
        "means over the seeds\n"
    )
    columns = ["way, ratio", "seeds", *TEXTS, "acc_norm", "answers as dense, of 50", "said before", "seconds"]
    order = sorted(cells, key=lambda cell: (cell[1], WAYS.index(cell[0])))
    return head + "\n" + table(columns, [_line(cell, cells[cell]) for cell in order]) + "\n"


def _line(cell: tuple[str, float], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    done = [row for row in rows if "texts" in row]
    title = f"{cell[0]}, {cell[1]}" if cell[1] else cell[0]
    if not done:
        return [title, "0", rows[0]["refused"][:60], *[""] * 6]
    texts = [f"{math.exp(_mean([math.log(row['texts'][text]) for row in done])):.2f}" for text in TEXTS]
    answers = [row["answers"] for row in done if "answers" in row]
    told = [f"{_mean([a['same'] for a in answers]):.1f}", f"{_mean([a['pruned_repeated'] for a in answers]):.1%}"]
    scores = [_accuracy(row["tasks"]) for row in done]
    accuracy = f"{_mean([value for value, _ in scores]):.3f} ±{_mean([error for _, error in scores]):.3f}"
    seconds = f"{_mean([row['seconds'] for row in done]):.0f}"
    return [title, str(len(done)), *texts, accuracy, *(told if answers else ["", ""]), seconds]


def _accuracy(tasks: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """The mean over the tasks and its standard error, the tasks being independent."""
    values, errors = zip(*tasks.values(), strict=True)
    return _mean(values), math.sqrt(sum(error**2 for error in errors)) / len(errors)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

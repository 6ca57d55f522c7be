"""LoRAPrune's own setting (arXiv 2305.18403): LLaMA-7B tuned and pruned on LaMini-instruction. recipes/README.md has
the commands, the published table, and what differs from the authors' run.

    python recipes/loraprune_llama_7b.py --model llama-7b --data lamini.jsonl --ratio 0.5 --method paper --out out
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import lpc
from exporters.files.folder import check_output
from lpc.cli.console import progress_bars, user_errors
from lpc.data.text import token_sequences
from lpc.evaluation import token_perplexity

METHODS = ("paper", "code", "lpc")
BATCH = 128
EPOCHS = 2
SAMPLES = 20_000
ROW_TOKENS = 512
CONTEXT = 2048

PAPER = lpc.ImportanceOptions(form="square", normalise=False, quadratic=True, smoothing=0.9)
AUTHORS_SCHEDULE = lpc.Schedule(warmup=0.1, cooldown=0.1, every=10)
AUTHORS_LORA = lpc.LoraOptions(rank=8, alpha=16, dropout=0.05)
AUTHORS_RATE = 1e-4


def tune_options(method: str, steps: int, micro_batch: int, *, bf16: bool) -> lpc.TuneOptions:
    """The tuning of a method: steps of ``BATCH`` rows, ``micro_batch`` at a time."""
    common: dict[str, Any] = {
        "steps": steps,
        "gradient_accumulation": BATCH // micro_batch,
        "bf16": bf16,
    }
    if method == "lpc":
        return lpc.TuneOptions(**common)
    common |= {"learning_rate": AUTHORS_RATE, "max_grad_norm": 1.0, "schedule": AUTHORS_SCHEDULE, "distill": None}
    if method == "paper":
        return lpc.TuneOptions(criterion="loraprune", importance=PAPER, lr_scheduler="cosine", **common)
    return lpc.TuneOptions(criterion="loraprune-code", lr_scheduler="linear", **common)


def data_options(method: str) -> lpc.DataOptions:
    """The authors' script learns the prompts too (--train_on_inputs); lpc's default learns the answers."""
    authors = lpc.InstructionFormat(mask_prompt=False)
    return lpc.DataOptions(
        sequence_length=ROW_TOKENS, instructions=lpc.InstructionFormat() if method == "lpc" else authors
    )


def read_rows(path: Path, samples: int) -> Sequence[Mapping[str, Any]]:
    """``samples`` rows (0: all), always the same ones, of a .jsonl file or a folder that save_to_disk wrote."""
    if path.is_dir():
        saved = datasets.load_from_disk(str(path))
        chosen = _choose(len(saved), samples)
        return saved if chosen is None else [saved[index] for index in chosen]
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    chosen = _choose(len(rows), samples)
    return rows if chosen is None else [rows[index] for index in chosen]


def _choose(count: int, samples: int) -> list[int] | None:
    return random.Random(0).sample(range(count), samples) if 0 < samples < count else None


def step_count(rows: int) -> int:
    """Optimizer steps for ``EPOCHS`` passes over the rows."""
    return math.ceil(rows * EPOCHS / BATCH)


def perplexities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Path], context: int
) -> dict[str, float]:
    """The authors' measure, by the text's file name: blocks of ``context`` tokens that do not overlap, the rest of the
    text dropped, exp of the mean loss over what a model can know of each: all but its
    first token, and behind a bos that no document begins with all but the next one."""
    found = {}
    for text in texts:
        blocks = token_sequences(text, tokenizer, sequence_length=context, vocab_size=model.config.vocab_size)
        found[text.name] = token_perplexity(model, blocks.tensor, batch_size=1, labels=blocks.labels).value
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prune, save, and measure; returns what is printed."""
    check_output(arguments.out, force=False)
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, use_safetensors=True)
    model = model.to("cuda" if cuda else "cpu").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    context = min(CONTEXT, model.config.max_position_embeddings)
    rows = read_rows(arguments.data, arguments.samples)
    dense = perplexities(model, tokenizer, arguments.text, context)
    with progress_bars() as progress:
        result = lpc.compress(
            model,
            rows,
            arguments.ratio,
            tokenizer=tokenizer,
            batch_size=arguments.micro_batch,
            lora=lpc.LoraOptions() if arguments.method == "lpc" else AUTHORS_LORA,
            tune=tune_options(arguments.method, step_count(len(rows)), arguments.micro_batch, bf16=cuda),
            data_options=data_options(arguments.method),
            progress=progress,
        )
        result.save(arguments.out, export=["hf"], progress=progress)
    pruned = perplexities(result.model, tokenizer, arguments.text, context)
    return {
        "out": str(arguments.out),
        "method": arguments.method,
        "steps": step_count(len(rows)),
        "parameters_removed": result.plan.achieved_ratio,
        "context": context,
        "perplexity": {name: {"dense": dense[name], "pruned": pruned[name]} for name in dense},
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description="LoRAPrune's setting on LLaMA-7B and LaMini; see recipes/README.md")
    parser.add_argument("--model", required=True, help="a folder with safetensors weights, or a name on the hub")
    parser.add_argument("--data", required=True, type=Path, help=".jsonl, or a folder saved by save_to_disk")
    parser.add_argument("--ratio", required=True, type=float, help="share of all parameters to remove")
    parser.add_argument("--out", required=True, type=Path, help="output folder, empty or new")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"rows to take, 0: all (default {SAMPLES})")
    parser.add_argument("--micro-batch", type=int, default=8, help=f"rows at a time, a divisor of {BATCH} (default 8)")
    parser.add_argument("--text", type=Path, action="append", default=[], help="measure the perplexity of this file")
    arguments = parser.parse_args(words)
    if arguments.samples < 0:
        parser.error(f"--samples {arguments.samples}: give a number of rows, or 0 for all")
    if arguments.micro_batch < 1 or BATCH % arguments.micro_batch:
        parser.error(f"--micro-batch {arguments.micro_batch}: it must divide {BATCH}")
    for path in (arguments.data, *arguments.text):
        if not path.exists():
            parser.error(f"there is no {path}")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Run the recipe, and print one JSON object."""
    with user_errors():
        print(json.dumps(run(parse(words)), indent=1))


if __name__ == "__main__":
    main()

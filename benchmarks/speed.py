"""Prefill and decode time of the pruned ONNX package against the dense one, beside the parameter ratio.

    python benchmarks/speed.py [--model FOLDER] [--ratios 0.3,0.5] [--threads N]

Speed does not depend on which units go, so the adapters are tuned for two steps only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from lpc.compression import compress
from lpc.exporting import export
from lpc.options import BenchmarkOptions
from lpc.report import SPEED_HEADER, speed_rows, table
from lpc.source import load_config
from lpc.speed import benchmark
from lpc.versions import versions

OUT = Path(__file__).parent / "out"


def main() -> None:
    models = Path(os.environ.get("LPC_MODELS", "../shared/models"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=models / "wikitext-llama")
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--threads", type=int, nargs="+")
    arguments = parser.parse_args()
    if not arguments.model.is_dir():
        sys.exit(f"{arguments.model} is absent; name a model folder with --model, or set LPC_MODELS")
    transformers_logging.set_verbosity_error()
    vocabulary = load_config(arguments.model).vocab_size
    tokens = torch.randint(0, vocabulary, (64, 256)).tolist()
    found: dict[str, object] = {"model": str(arguments.model), "versions": versions()}
    text = ""
    with tempfile.TemporaryDirectory() as scratch:
        dense = Path(scratch) / "dense"
        export(arguments.model, dense)
        for ratio in map(float, arguments.ratios.split(",")):
            out = Path(scratch) / f"out-{ratio}"
            result = compress(arguments.model, tokens, ratio, steps=2, batch_size=2)
            result.save(out)
            timed = benchmark(out, dense, BenchmarkOptions(threads=arguments.threads))
            share = result.report.pruned.parameters / result.report.dense.parameters
            found[str(ratio)] = {"report": asdict(result.report.pruned), "parameter_ratio": share, **timed.to_json()}
            rows = [[*row, f"{share:.3f}"] for row in speed_rows(timed.to_json())]
            text += f"\nratio {ratio}\n\n" + table([*SPEED_HEADER, "parameter ratio"], rows) + "\n"
    OUT.mkdir(exist_ok=True)
    (OUT / "speed.json").write_text(json.dumps(found, indent=1))
    (OUT / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

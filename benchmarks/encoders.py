"""An embedding model in onnxruntime: sequences a second and what stays of similarities, by precision and by graph.

    python benchmarks/encoders.py MODEL --text FILE --work DIR [--rounds 9]

lpc's packages, and beside them ``torch.onnx.export`` at opset 18 with attention as transformers writes it out (which is
what ONNX files of such models are, as a rule), and lpc's graph and that one behind onnxruntime's transformer optimizer.
What onnxruntime itself fuses when it loads each is said too. All take turns, call by call, in one thread; processor
time is compared. Prints a table, and writes it and the numbers into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer

from exporters.latency import processor
from exporters.options import OnnxOptions
from lpc import export
from lpc.report import table

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("fp32", "int8", "int8-dynamic", "int4")
CALLS = ((1, 32), (1, 128), (8, 128), (32, 64))
"""Rows and tokens."""
SENTENCES, TOKENS = 64, 96
FUSED = [
    "Attention",
    "MultiHeadAttention",
    "SkipLayerNormalization",
    "BiasGelu",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
]


class Called(torch.nn.Module):
    """The model with flat inputs."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> Any:
        """The last hidden states."""
        return self.model(**dict(zip(self.names, tensors, strict=True))).last_hidden_state


def plain(model: Path, tokenizer: Any, path: Path) -> Path:
    """The model by ``torch.onnx.export`` alone."""
    if not path.is_file():
        path.parent.mkdir(parents=True)
        eager = AutoModel.from_pretrained(model, attn_implementation="eager").eval()
        sample = tokenizer(["one two three", "four"], padding=True, return_tensors="pt")
        names, batch, tokens = list(sample), torch.export.Dim("batch"), torch.export.Dim("tokens")
        shapes = (({0: batch, 1: tokens},) * len(names),)
        torch.onnx.export(
            Called(eager, names), tuple(sample.values()), str(path), input_names=names, opset_version=18,
            output_names=["last_hidden_state"], dynamic_shapes=shapes, dynamo=True, verbose=False,
        )  # fmt: skip
    return path


def optimized(source: Path, path: Path, config: Any) -> Path:
    """A graph behind onnxruntime's optimizer for BERT."""
    from onnxruntime.transformers import optimizer

    if not path.is_file():
        path.parent.mkdir(parents=True)
        heads, hidden = config.num_attention_heads, config.hidden_size
        found = optimizer.optimize_model(str(source), "bert", num_heads=heads, hidden_size=hidden, opt_level=0)
        found.save_model_to_file(str(path))
    return path


def graphs(model: Path, tokenizer: Any, work: Path) -> dict[str, Path]:
    """All graphs by name; those that are missing are made."""
    config, found = AutoModel.from_pretrained(model).config, {}
    for precision in PRECISIONS:
        folder = work / precision
        if not (folder / "model.onnx").is_file():
            export(model, folder, OnnxOptions(precision=(precision,)), force=True)
        found[f"lpc {precision}"] = folder / "model.onnx"
    found["lpc fp32, optimizer"] = optimized(found["lpc fp32"], work / "lpc-optimizer" / "model.onnx", config)
    found["torch, opset 18"] = plain(model, tokenizer, work / "torch" / "model.onnx")
    found["torch, optimizer"] = optimized(found["torch, opset 18"], work / "torch-optimizer" / "model.onnx", config)
    return found


def opened(path: Path, loaded: Path) -> onnxruntime.InferenceSession:
    """The graph in one thread; what onnxruntime makes of it when it loads it lies in ``loaded``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(loaded)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def vectors(hidden: Any, mask: Any) -> Any:
    """Means over the real tokens, of length 1."""
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def spearman(one: Any, other: Any) -> float:
    """The correlation of ranks."""
    return float(np.corrcoef(*(each.argsort().argsort() for each in (one, other)))[0, 1])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    tokenizer, load = AutoTokenizer.from_pretrained(given.model), os.getloadavg()[0]
    lines = [line for line in given.text.read_text(encoding="utf-8").splitlines() if len(line) > 200][:SENTENCES]
    found = graphs(given.model, tokenizer, given.work)
    loaded = {name: given.work / f"{number}.onnx" for number, name in enumerate(found)}
    sessions = {name: opened(path, loaded[name]) for name, path in found.items()}

    def feeds(rows: int, tokens: int) -> dict[str, Any]:
        rounded = {"padding": "max_length", "truncation": True, "max_length": tokens, "return_tensors": "np"}
        return {name: np.asarray(each, np.int64) for name, each in tokenizer(lines[:rows], **rounded).items()}

    text = feeds(SENTENCES, TOKENS)
    with torch.no_grad():
        dense = AutoModel.from_pretrained(given.model).eval()(**{k: torch.tensor(v) for k, v in text.items()})
    wanted, pairs = vectors(dense.last_hidden_state.numpy(), text["attention_mask"]), np.triu_indices(len(lines), 1)
    rows: dict[str, dict[str, Any]] = {}
    for name, session in sessions.items():
        own = vectors(session.run(None, text)[0], text["attention_mask"])
        kinds = Counter(node.op_type for node in onnx.load(str(loaded[name]), load_external_data=False).graph.node)
        rows[name] = {
            "bytes": sum(each.stat().st_size for each in found[name].parent.glob("*.onnx*")),
            "similarity": spearman((own @ own.T)[pairs], (wanted @ wanted.T)[pairs]),
            "fused": {kind: kinds[kind] for kind in FUSED if kinds[kind]},
            "nodes": sum(kinds.values()),
        }
    for call in CALLS:
        for name, seconds in timed(sessions, feeds(*call), given.rounds).items():
            rows[name][f"{call[0]} x {call[1]}"] = (call[0] / np.median(seconds[0]), float(np.median(seconds[1])))
    told = f"{given.model.name}: {processor()}, 1 thread, load {load:.1f} before and {os.getloadavg()[0]:.1f} after."
    write(rows, told)


def timed(sessions: dict[str, Any], feeds: dict[str, Any], rounds: int) -> dict[str, tuple[Any, Any]]:
    """Processor seconds of every turn, and what they are of the first session's in the same turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    order = list(sessions)
    for turn in range(rounds + 1):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            start = time.process_time()
            sessions[name].run(None, feeds)
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: (np.array(each), np.array(each) / np.array(seconds[order[0]])) for name, each in seconds.items()}


def write(rows: dict[str, dict[str, Any]], told: str) -> None:
    """The table: sequences a second, and the time of a call relative to lpc's fp32."""
    calls = [f"{rows_} x {tokens}" for rows_, tokens in CALLS]
    heads = ["graph", "MB", "similarity", *calls, "nodes once loaded", "of them"]
    cells = [
        [
            name,
            f"{each['bytes'] / 1e6:.1f}",
            f"{each['similarity']:.4f}",
            *(f"{each[call][0]:.1f}, {each[call][1]:.2f}" for call in calls),
            str(each["nodes"]),
            ", ".join(f"{count} {kind}" for kind, count in each["fused"].items()),
        ]
        for name, each in rows.items()
    ]
    text = f"{told}\n\n{table(heads, cells)}\n"
    (RESULTS / "encoders.json").write_text(json.dumps({"machine": told, "rows": rows}, indent=1) + "\n", "utf-8")
    (RESULTS / "encoders.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()

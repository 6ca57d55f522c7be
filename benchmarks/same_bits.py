"""Whether two states of lpc make the same bits: a hash of every decision and of every file of seven small runs.

    python benchmarks/same_bits.py --out FILE.json [--only RUN ...]
    python benchmarks/same_bits.py --compare A.json B.json

Runs the lpc that is importable, on one thread, and writes the sha256 of the kept units of ``plan.json`` and of every
file in ``hf/`` and ``onnx/``. ``--compare`` prints a table of two such files and exits 1 where they differ. Bits are
comparable on one machine with the same packages; both are in the file, and the comparison says where they differ.

It knows lpc by its public names and its command line alone, so that it can run on a state whose files lie elsewhere.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import argparse
import hashlib
import inspect
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import lpc

PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "peft", "tokenizers", "torch", "transformers")
SETTINGS = ("config.json", "generation_config.json")
"""Files that hold the version of transformers: hashed without it, as canonical JSON. All others are hashed whole."""
VERSIONS = ("transformers_version",)
PARTS, SAME = ("kept units", "hf/", "onnx/"), "same"

RATIO, STEPS, SEED = 0.3, 8, 0
TOKENS = {"vocab_size": 272, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 128}
POSITIONS = {"max_position_embeddings": 128}
DATA_OPTIONS = "data_options" if "data_options" in inspect.signature(lpc.compress).parameters else "text"

Run = Callable[[Path], None]
Rows = list[dict[str, torch.Tensor]]


def demo(out: Path) -> None:
    """What ``make demo`` runs, in a process of its own, with the lpc that is imported here; its timings go unread."""
    home = str(Path(lpc.__file__).parents[1])
    command = [sys.executable, "-m", "lpc", "demo", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home, env={**os.environ, "PYTHONPATH": home})


def stories(**options: Any) -> Run:
    """Stories260K on its own text."""

    def run(out: Path) -> None:
        model = _found("LPC_MODELS", "../shared/models", "stories260K")
        text = _found("LPC_DATA", "../shared/data", "text/tinystories/tinystories_sample_2MiB.txt")
        cut = {"sequence_length": 128, "heldout_sequences": 16}
        compress(model, text, out, cut, samples=32, **options)

    return run


def encoder(out: Path) -> None:
    model = seeded(hf.BertForSequenceClassification(hf.BertConfig(**TOKENS, **SIZES, **POSITIONS, num_labels=5)))
    compress(model, [{**row, "labels": torch.tensor(i % 5)} for i, row in enumerate(rows(64))], out)


def encoder_decoder(out: Path) -> None:
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    widths = {"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    starts = {"decoder_start_token_id": 256, "forced_eos_token_id": 256}
    model = seeded(hf.BartForConditionalGeneration(hf.BartConfig(**TOKENS, **POSITIONS, **layers, **widths, **starts)))
    compress(model, [{**row, "labels": row["input_ids"].flip(0)[:7]} for row in rows(64)], out)


def mixture(out: Path) -> None:
    groups = {"num_key_value_heads": 4, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
    model = seeded(hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**TOKENS, **SIZES, **POSITIONS, **groups, **experts)))
    text = ["The cat sat on the mat, and the dog ran round the tree. " * 60, "Once upon a time there was a king. " * 90]
    compress(model, text, out, {"sequence_length": 32}, tokenizer=bytes_tokenizer())


RUNS: Mapping[str, Run] = {
    "demo": demo,
    "stories260K default": stories(),
    "stories260K per-layer": stories(layout="per-layer"),
    "stories260K loraprune": stories(criterion="loraprune"),
    "encoder (BERT)": encoder,
    "encoder-decoder (BART)": encoder_decoder,
    "MoE (Qwen3-MoE)": mixture,
}


def compress(
    model: Any, data: Any, out: Path, cut: Mapping[str, Any] = {}, *, samples: int = 16, **options: Any
) -> None:
    """The whole way in few steps, saved with its ONNX package."""
    torch.manual_seed(SEED)
    shared: dict[str, Any] = {"samples": samples}
    given: dict[str, Any] = {}
    if hasattr(lpc, "RunOptions"):
        given, shared = {"run": lpc.RunOptions(**shared)}, {}
    given[DATA_OPTIONS] = lpc.DataOptions(**cut, **shared)
    lpc.compress(model, data=data, ratio=RATIO, steps=STEPS, seed=SEED, **given, **options).save(out)


def seeded(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """The model with weights that depend on ``SEED`` alone: norms near 1, all else 0.2 times standard normal."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if norm else 0.2 * noise)
    model.tie_weights()
    return model.eval()


def rows(count: int) -> Rows:
    """Random token ids ``input_ids`` [12] a row, below the special tokens."""
    generator = torch.Generator().manual_seed(SEED)
    return [{"input_ids": torch.randint(2, 256, (12,), generator=generator)} for _ in range(count)]


def bytes_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token a byte, and one more that begins, ends and pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    backend.add_special_tokens([end])
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


def hashes(out: Path) -> dict[str, str]:
    """The sha256 of the kept units and of each file of the checkpoint and of the ONNX package."""
    kept = json.loads((out / "plan.json").read_text(encoding="utf-8"))["kept"]
    files = sorted(path for part in ("hf", "onnx") for path in (out / part).rglob("*") if path.is_file())
    return {
        "kept units": _sha256(_canonical(kept)),
        **{path.relative_to(out).as_posix(): _sha256(_content(path)) for path in files},
    }


def _content(path: Path) -> bytes:
    if path.name not in SETTINGS:
        return path.read_bytes()
    settings = json.loads(path.read_text(encoding="utf-8"))
    return _canonical({name: value for name, value in settings.items() if name not in VERSIONS})


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def measure(names: Sequence[str]) -> dict[str, Any]:
    """Run and hash; the outputs themselves are not kept."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    found = {}
    for name in names:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            RUNS[name](Path(folder) / "out")
            found[name] = hashes(Path(folder) / "out")
        print(f"{name}: {len(found[name])} hashes, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return {"lpc": _commit(), "machine": _machine(), "runs": found}


def _machine() -> dict[str, str]:
    """What bits depend on besides lpc."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": processor or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _commit() -> str:
    """The commit of the imported lpc, with ``+`` where its tree has changes; empty outside a repository."""
    command = ["git", "-C", str(Path(lpc.__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _found(variable: str, default: str, name: str) -> Path:
    path = Path(os.environ.get(variable, default)) / name
    if not path.exists():
        sys.exit(f"{path} is absent; set {variable} to the folder where it is")
    return path


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Print what is the same and what differs, a line a run; whether all is the same."""
    for name in sorted({*first["machine"], *second["machine"]}):
        one, other = first["machine"].get(name), second["machine"].get(name)
        if one != other:
            print(f"Not the same {name}: {one} and {other}; bits may differ by that alone.\n")
    print(f"{first['lpc']} → {second['lpc']}\n\n| run | {' | '.join(PARTS)} |\n|---|{'---|' * len(PARTS)}")
    runs = list(dict.fromkeys([*first["runs"], *second["runs"]]))
    verdicts = {run: _verdicts(first["runs"].get(run, {}), second["runs"].get(run, {})) for run in runs}
    for run, parts in verdicts.items():
        print(f"| {run} | {' | '.join(parts)} |")
    return all(verdict.startswith(SAME) for parts in verdicts.values() for verdict in parts)


def _verdicts(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """For each of ``PARTS``: that all its hashes are the same, or which ones are not."""
    return [_verdict(_part(first, part), _part(second, part)) for part in PARTS]


def _part(hashes: Mapping[str, str], part: str) -> dict[str, str]:
    return {name: value for name, value in hashes.items() if name.startswith(part)}


def _verdict(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    if not first or not second:
        return f"**only in the {'first' if first else 'second'}**" if first or second else "**absent**"
    changed = [name for name in first if name in second and first[name] != second[name]]
    gone = [f"{name} (only in the first)" for name in first if name not in second]
    new = [f"{name} (only in the second)" for name in second if name not in first]
    odd = [*changed, *gone, *new]
    return f"**differs**: {', '.join(odd)}" if odd else f"{SAME} ({len(first)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="run, and write the hashes into this file")
    what.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="two files that --out wrote")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="these runs (default: all)")
    arguments = parser.parse_args()
    if arguments.compare:
        first, second = (json.loads(path.read_text(encoding="utf-8")) for path in arguments.compare)
        sys.exit(0 if compare(first, second) else 1)
    arguments.out.write_text(json.dumps(measure(arguments.only), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

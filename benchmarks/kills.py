"""Kills: does a run that is killed at random moments, and gone on with, end with the bits of one that never stopped?

    python benchmarks/kills.py [--kills N] [--seed S] [--out FILE.json] [--fresh]

Builds a tiny Llama and a text, compresses it once undisturbed with the real command, and notes in which order files and
folders appear. Then, round after round, the same command is killed (SIGKILL) when one of these appears, or a random
while later, started again, killed again further on, and at last left to end. What it wrote must be, file by file, what
the undisturbed run wrote, ``lpc.json`` and the reports apart, which hold seconds; and nothing may be left beside it.
Writes JSON, and prints a table: kills by stage, and how many of their runs ended the same. Exits 1 if one did not.
A round is drawn by its number alone and written when it is over, into ``benchmarks/results/kills.json``, so benchmarks
that were stopped go on, in another checkout too; the table is written when all kills are done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

LPC = Path(__file__).resolve().parents[1]
STEPS, SAVE_EVERY = 12, 3
TIMED = {"lpc.json", "report.html", "report.md"}
POLL_SECONDS = 0.001
LATER_SECONDS = 0.15
"""A kill comes at most so long after what it waits for."""


@dataclass(kw_only=True)
class Round:
    """One run to its end: the stages at which it was killed, seconds, and how it ended."""

    kills: list[str] = field(default_factory=list)
    seconds: float = 0.0
    different: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def same(self) -> bool:
        """Whether it ended with the same bits and left nothing behind."""
        return not self.different and not self.error


def main() -> int:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=LPC / "benchmarks" / "results" / "kills.json")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds that are done")
    asked = parser.parse_args()
    rounds = [] if asked.fresh else kept(asked.out, asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        order, expected = undisturbed(folder)
        while sum(len(each.kills) for each in rounds) < asked.kills:
            draw = random.Random(f"{asked.seed}/{len(rounds)}")
            rounds.append(one_round(folder, order, expected, draw))
            last = rounds[-1]
            how = "same" if last.same else f"{last.error} {last.different}"
            write(asked.out, rounds, asked.seed)
            print(f"round {len(rounds)}: {', '.join(last.kills) or 'no kill'}: {how}", file=sys.stderr, flush=True)
    asked.out.with_suffix(".md").write_text(table(rounds))
    print(table(rounds))
    return int(not all(each.same for each in rounds))


def kept(file: Path, seed: int) -> list[Round]:
    """The rounds of that seed that are done."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    return [Round(**each) for each in found["rounds"]] if found.get("seed") == seed else []


def write(file: Path, rounds: list[Round], seed: int) -> None:
    """The rounds so far."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kills = sum(len(each.kills) for each in rounds)
    found = {"kills": kills, "seed": seed, "rounds": [asdict(each) for each in rounds]}
    file.write_text(json.dumps(found, indent=1) + "\n")


def build(folder: Path) -> None:
    """A tiny random Llama with a tokenizer of bytes, and some text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    tokens = {"vocab_size": 272, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**tokens, **sizes, intermediate_size=64, max_position_embeddings=128)).save_pretrained(
        folder / "model"
    )
    bytes_ = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=bytes_, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_object=backend, **ends).save_pretrained(folder / "model")
    lines = (f"{i}: the quick brown fox {i * 7 % 13} jumps over {i * i} lazy dogs.\n" for i in range(300))
    (folder / "text.txt").write_text("".join(lines))


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The command: always the same one; where the output is there already, it is asked whether anything is left."""
    words = ["compress", "model", "--data", "text.txt", "--ratio", "0.3", "--steps", str(STEPS), "--out", "out"]
    words += ["--save-every", str(SAVE_EVERY), "--sequence-length", "32", "--samples", "8", "--batch-size", "4"]
    words += ["--recover-steps", "4", *(["--resume"] if (folder / "out").exists() else [])]
    environment = {**os.environ, "PYTHONPATH": str(LPC), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "lpc", *words]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def undisturbed(folder: Path) -> tuple[list[str], dict[str, str]]:
    """In which order places appear in the work folder, and the files of the output with their sha256."""
    process, order = start(folder), list[str]()
    while process.poll() is None:
        order += [place for place in sorted(places(folder)) if place not in order]
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit((folder / "log.txt").read_text())
    found = files(folder / "out")
    shutil.rmtree(folder / "out")
    return order, found


def one_round(folder: Path, order: list[str], expected: dict[str, str], draw: random.Random) -> Round:
    """Kill three to six times, ever further on, then let it end."""
    this, began = Round(), time.monotonic()
    stages = sorted({stage(place) for place in order}, key=[stage(place) for place in order].index)
    wanted = sorted(draw.sample(range(len(stages)), k=min(draw.randint(3, 6), len(stages))))
    for at in wanted:
        place = draw.choice([place for place in order if stage(place) == stages[at]])
        killed = kill_at(folder, order[order.index(place) :], draw.random() * LATER_SECONDS)
        if killed is None:
            break
        this.kills.append(killed)
    process = start(folder)
    if process.wait(timeout=600):
        this.error = (folder / "log.txt").read_text()[-2000:]
    found = files(folder / "out")
    this.different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    left = [path.name for path in folder.glob(".*")]
    this.error = this.error or (f"left behind: {left}" if left else "")
    shutil.rmtree(folder / "out", ignore_errors=True)
    for name in left:
        shutil.rmtree(folder / name, ignore_errors=True)
    this.seconds = time.monotonic() - began
    return this


def kill_at(folder: Path, wanted: list[str], later: float) -> str | None:
    """Start, and kill ``later`` seconds after one of these has appeared anew; its stage, None if it ended before."""
    there = places(folder)
    process = start(folder)
    while process.poll() is None:
        now = places(folder)
        new = [place for place in wanted if place in now and place not in there]
        if new:
            time.sleep(later)
            process.kill()
            process.wait()
            return stage(new[0]) if process.returncode < 0 else None
        time.sleep(POLL_SECONDS)
    return None


def places(folder: Path) -> set[str]:
    """All that lies in the work folder, and the output itself, by path."""
    found = {"out"} if (folder / "out").exists() else set()
    return found | set(_walk(folder, ".out.lpc"))


def _walk(folder: Path, name: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder / name))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        yield f"{name}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder, f"{name}/{entry.name}")


def stage(place: str) -> str:
    """What the run was at when a place appeared, in words."""
    parts = place.split("/")[1:]
    if place == "out" or not parts:
        return "output in place"
    if parts[0] != "run":
        return {"new": f"saving {parts[1]}" if len(parts) > 1 else "saving", "lock": "start"}.get(parts[0], "exchange")
    if len(parts) == 1 or not re.match(r"\d\d-|exports", parts[1]):
        return "recipe"
    if parts[1] == "exports":
        return f"kept {parts[2]}" if len(parts) > 2 else "kept"
    inside = "/".join(parts[2:])
    checkpoint = re.search(r"checkpoint-(\d+)", inside)
    return f"{parts[1]}, step {checkpoint[1]}" if checkpoint else parts[1]


def files(folder: Path) -> dict[str, str]:
    """The files of an output with their sha256, but those that hold seconds."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMED)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def table(rounds: list[Round]) -> str:
    """Kills by stage."""
    stages: dict[str, list[bool]] = {}
    for each in rounds:
        for name in each.kills:
            stages.setdefault(name, []).append(each.same)
    lines = ["| killed at | kills | runs that ended with the same bits |", "|---|--:|--:|"]
    lines += [f"| {name} | {len(same)} | {sum(same)} |" for name, same in sorted(stages.items())]
    kills = sum(len(same) for same in stages.values())
    lines.append(f"| all | {kills} in {len(rounds)} runs | {sum(each.same for each in rounds)} of {len(rounds)} runs |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

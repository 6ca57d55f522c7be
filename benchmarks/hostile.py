"""Hostile files: how soon, and with how much memory, is a stranger's file answered?

    python benchmarks/hostile.py [--limit-seconds 10] [--limit-mib 1536]

Makes small files that declare much, never end, or lie, and gives each to the real command in a process of its own. Each
must be answered, by a result or by exit code 2 and one message, within the limits on processor time and resident
memory (wall time says more of what else runs on the machine). Writes ``benchmarks/results/hostile.json`` and
``hostile.md``, the table that docs/trust.md shows. Exits 1 if one is over the limits, or ends in a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "num_hidden_layers": 2} | SIZES
ASKED = ["--data", "text.txt", "--ratio", "0.3", "--steps", "0", "--out", "out"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file, what it is in words, and the words of the command that is given it."""

    what: str
    words: list[str]
    make: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How the command ended: processor and wall seconds, the most resident memory in MiB, and its last line."""

    what: str
    code: int
    seconds: float
    wall: float
    mib: int
    said: str


def config(**entries: object) -> Callable[[Path], None]:
    """A folder with only a configuration."""

    def make(place: Path) -> None:
        (place / "model" / "config.json").write_text(json.dumps({**LLAMA, **entries}))

    return make


def file(name: str, content: bytes) -> Callable[[Path], None]:
    """A folder with a good configuration and this file besides, which may be the configuration."""

    def make(place: Path) -> None:
        config()(place)
        (place / name).write_bytes(content)

    return make


def long(name: str, size: int) -> Callable[[Path], None]:
    """The same with a file of that many zeros, which are not written."""

    def make(place: Path) -> None:
        file(name, b"")(place)
        os.truncate(place / name, size)

    return make


def plan(content: bytes) -> Callable[[Path], None]:
    """A folder with a good configuration and weights, and this as a plan."""

    def make(place: Path) -> None:
        file(WEIGHTS, (2).to_bytes(8, "little") + b"{}")(place)
        (place / "plan.json").write_bytes(content)

    return make


def link(name: str, target: str) -> Callable[[Path], None]:
    """The same with a link in the place of the file."""

    def make(place: Path) -> None:
        config()(place)
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(target)

    return make


INSPECT, COMPRESS = ["inspect", "model"], ["compress", "model", *ASKED]
WEIGHTS, INDEX = "model/model.safetensors", "model/model.safetensors.index.json"
CASES = [
    Case(what="nothing odd, two layers: what the start alone takes", words=INSPECT, make=config()),
    Case(what="a hidden size of 10⁹", words=INSPECT, make=config(hidden_size=10**9)),
    Case(what="10,000 layers", words=INSPECT, make=config(num_hidden_layers=10_000)),
    Case(what="256 layers, which may be", words=INSPECT, make=config(num_hidden_layers=256)),
    Case(what="a million positions, which may be", words=INSPECT, make=config(max_position_embeddings=10**6)),
    Case(what="a configuration 100,000 deep", words=INSPECT, make=file("model/config.json", b"[" * 100_000)),
    Case(what="a configuration of 200 MB", words=INSPECT, make=long("model/config.json", 200_000_000)),
    Case(what="a number of 5,000 digits", words=INSPECT, make=file("model/config.json", b'{"a":' + b"9" * 5000 + b"}")),
    Case(what="code beside the configuration", words=INSPECT, make=config(auto_map={"AutoConfig": "evil.Evil"})),
    Case(what="a name with control characters", words=INSPECT, make=config(model_type="\x1b[2Jllama")),
    Case(what="/dev/zero as weights", words=COMPRESS, make=link(WEIGHTS, "/dev/zero")),
    Case(what="a header of 2⁶⁰ bytes", words=COMPRESS, make=file(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}")),
    Case(
        what="an index that leads out of the folder",
        words=COMPRESS,
        make=file(INDEX, b'{"weight_map": {"a": "../../../etc/passwd"}}'),
    ),
    Case(what="a git-lfs pointer", words=COMPRESS, make=file(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n")),
    Case(what="a pickle", words=COMPRESS, make=file("model/pytorch_model.bin", b"\x80\x04cposix\nsystem\n.")),
    Case(
        what="a plan 100,000 deep",
        words=["apply", "plan.json", "model", "--out", "out"],
        make=plan(b"[" * 10**5),
    ),
]


def asked(case: Case) -> Answer:
    """The answer to one case."""
    place = Path(tempfile.mkdtemp(prefix="lpc-hostile-"))
    (place / "model").mkdir()
    (place / "text.txt").write_text("The cat sat on the mat. " * 100)
    case.make(place)
    began = time.perf_counter()
    child = os.fork()
    if not child:
        os.chdir(place)
        log = os.open("log", os.O_CREAT | os.O_WRONLY, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", COLUMNS="400")
        os.execv(sys.executable, [sys.executable, "-m", "lpc", *case.words])
    _, status, used = os.wait4(child, 0)
    wall, lines = time.perf_counter() - began, (place / "log").read_text(errors="replace").strip().splitlines()
    shutil.rmtree(place)
    said = next((line for line in lines if "Traceback" in line), lines[-1] if lines else "")
    return Answer(
        what=case.what,
        code=os.waitstatus_to_exitcode(status),
        seconds=round(used.ru_utime + used.ru_stime, 1),
        wall=round(wall, 1),
        mib=used.ru_maxrss >> 10,
        said=said[:300],
    )


def table(answers: list[Answer]) -> str:
    """The answers as a table of markdown."""
    lines = ["| a stranger's file | answer | processor time | memory |", "|---|---|--:|--:|"]
    kinds = {0: "right", 2: "refused"}
    lines += [
        f"| {each.what} | {kinds.get(each.code, f'exit code {each.code}')} | {each.seconds} s | {each.mib} MiB |"
        for each in answers
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Ask, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit-seconds", type=float, default=10.0)
    parser.add_argument("--limit-mib", type=int, default=1536)
    limits = parser.parse_args()
    answers = []
    for case in CASES:
        answers.append(asked(case))
        print(answers[-1], flush=True)
    RESULTS.joinpath("hostile.json").write_text(json.dumps([asdict(each) for each in answers], indent=1) + "\n")
    RESULTS.joinpath("hostile.md").write_text(table(answers))
    bad = [
        each
        for each in answers
        if each.seconds > limits.limit_seconds
        or each.mib > limits.limit_mib
        or each.code not in (0, 2)
        or "Traceback" in each.said
    ]
    print(table(answers), *bad, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

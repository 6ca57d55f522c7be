"""What a user mistypes is answered by one whole message and exit code 2, before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

WALK = """
import contextlib, io, json, sys
from lpc.cli import main
answers = []
for words in json.loads(sys.stdin.read()):
    sys.argv = ["lpc", *words]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    heavy = [name for name in ("torch", "transformers", "numpy", "datasets") if name in sys.modules]
    answers.append([code, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(answers))
"""

FOLDERS = ("model", "empty", "full", "none", "huge", "torn")
OK = ["--data", "train.txt", "--ratio", "0.3", "--out", "new"]
WITHOUT_RATIO = ["--data", "train.txt", "--out", "new"]

BAD: list[tuple[list[str], tuple[str, ...]]] = [
    # what, and for how much
    (["compress", "model", *OK, "--self-data", "1.5"], ("--self-data", "at most 1", "got 1.5")),
    (["compress", "model", *OK, "--self-sequences", "1"], ("--self-sequences", "at least 2", "got 1")),
    (["compress", "model", *WITHOUT_RATIO, "--ratio", "0"], ("--ratio", "above 0", "got 0")),
    (["compress", "model", *WITHOUT_RATIO, "--ratio", "1.2"], ("--ratio", "below 1", "1.2", "30 %")),
    (["compress", "model", *WITHOUT_RATIO, "--ratio", "nan"], ("--ratio", "finite", "nan")),
    (["compress", "model", *WITHOUT_RATIO, "--ratio", "30%"], ("--ratio", "a number", "'30%'")),
    (["compress", "model", *OK, "--budget", "macs=0.5"], ("either ratio or budget",)),
    (["compress", "model", *WITHOUT_RATIO, "--budget", "flops=0.5"], ("--budget", "flops", "macs")),
    (["compress", "model", *WITHOUT_RATIO, "--budget", "macs"], ("--budget", "MEASURE=AMOUNT")),
    (["compress", "model", *WITHOUT_RATIO, "--budget", "macs=1.5"], ("macs=1.5", "fraction", "3.5B")),
    (["compress", "model", *WITHOUT_RATIO, "--budget", "latency=12"], ("latency=12", "unit")),
    (["compress", "model", *WITHOUT_RATIO, "--budget", "weight_bytes=7XB"], ("7XB", "7GB")),
    (["compress", "model", *OK, "--workload", "1x128"], ("--workload", "1x128+32")),
    (["compress", "model", *OK, "--workload", "0x128+32"], ("batch", "at least 1", "got 0")),
    (["compress", "model", *OK, "--layout", "unifrom"], ("--layout", "'unifrom'", "did you mean 'uniform'")),
    (["compress", "model", *OK, "--comparison", "all"], ("--comparison", "'all'", "raw, kind, dimension")),
    (["compress", "model", *OK, "--multiple", "0"], ("--multiple", "at least 1")),
    (["compress", "model", *OK, "--protect", "layers.0"], ("layers.0", "per-layer")),
    (["compress", "model", *OK, "--depth", "heads"], ("--depth", "'heads'", "layers, blocks")),
    (["compress", "model", *OK, "--depth", "layers", "--hidden"], ("depth and hidden", "prune one")),
    (["compress", "model", *WITHOUT_RATIO, "--snapshots", "0.1;0.3"], ("--snapshots", "0.1,0.3,0.5")),
    (["compress", "model", *WITHOUT_RATIO, "--snapshots", "0.3,0.1"], ("ascend", "0.3, 0.1")),
    (["compress", "model", *OK, "--snapshot-steps", "5"], ("--snapshots 0.1,0.3",)),
    (["compress", "model", *OK, "--benchmark"], ("--benchmark", "--snapshots")),
    # how to rank and to tune
    (["compress", "model", *OK, "--criterion", "obz"], ("--criterion", "'obz'", "did you mean 'obs'")),
    (["compress", "model", *OK, "--depth-scores", "skip"], ("--depth-scores", "did you mean 'skipped'")),
    (["compress", "model", *OK, "--samples", "0"], ("--samples", "at least 1", "got 0")),
    (["compress", "model", *OK, "--steps", "1e30"], ("--steps", "whole number", "'1e30'")),
    (["compress", "model", *OK, "--steps", "-1"], ("--steps", "at least 0", "-1")),
    (["compress", "model", *OK, "--steps", "9" * 30], ("--steps", "at most 1,000,000,000", "9" * 30)),
    (["compress", "model", *OK, "--steps", "9" * 5000], ("--steps", "whole number")),
    (["compress", "model", *OK, "--seed", "-1"], ("--seed", "at least 0", "-1")),
    (["compress", "model", *OK, "--seed", "4294967296"], ("--seed", "at most 4,294,967,295", "4294967296")),
    (["compress", "model", *OK, "--learning-rate", "0"], ("--learning-rate", "above 0", "got 0")),
    (["compress", "model", *OK, "--learning-rate", "inf"], ("--learning-rate", "finite", "inf")),
    (["compress", "model", *OK, "--learning-rate", "1e30"], ("--learning-rate", "at most 1", "1e+30")),
    (["compress", "model", *OK, "--learning-rate", "fast"], ("--learning-rate", "a number", "'fast'")),
    (["compress", "model", *OK, "--batch-size", "2.5"], ("--batch-size", "whole number", "'2.5'")),
    (["compress", "model", *OK, "--distill", "2"], ("--distill 2", "at most 1")),
    (["compress", "model", *OK, "--recover-steps", "0"], ("--recover-steps", "at least 1")),
    (["compress", "model", *OK, "--resume", "--checkpoints", "none"], ("go on", "none", "--resume")),
    # data and places
    (["compress", "model", *OK, "--sequence-length", "1"], ("--sequence-length", "at least 2")),
    (["compress", "model", *OK, "--prompt-template", "absent.txt"], ("absent.txt", "template")),
    (["compress", "model", *OK, "--prompt-template", "train.txt"], ("{instruction}", "where it goes")),
    (["compress", "absent", *OK], ("absent", "owner/name")),
    (["compress", "empty", *OK], ("empty", "config.json", "save_pretrained")),
    (["compress", "train.txt", *OK], ("train.txt is a file", "folder")),
    (["compress", "model", "--data", "absent.txt", "--ratio", "0.3"], ("absent.txt", "--data")),
    (["compress", "model", "--data", "train.txt", "--ratio", "0.3", "--out", "full"], ("full", "--force")),
    (["compress", "model", "--data", "train.txt", "--ratio", "0.3", "--out", "train.txt"], ("train.txt is a file",)),
    # words that are none
    (["compress", "model", *OK, "--stpes", "3"], ("--stpes", "--steps")),
    (["compress", *OK], ("MODEL",)),
    (["compres", "model"], ("compres", "compress")),
    # the other commands
    (["inspect", "absent"], ("absent", "owner/name")),
    (["inspect", "huge"], ("huge/config.json says num_hidden_layers = 10000", "correct the entry")),
    (["estimate", "huge", "--ratio", "0.3"], ("huge/config.json says num_hidden_layers = 10000",)),
    (["inspect", "torn"], ("torn/config.json", "no JSON")),
    (["diff", "train.txt", "train.txt"], ("no plan that lpc wrote", "train.txt")),
    (["apply", "torn/config.json", "model", "--out", "new"], ("no plan that lpc wrote", "torn/config.json")),
    (["compress", "model", *OK], ("model.safetensors", "save_pretrained")),
    (["inspect", "model", "--depth", "x"], ("--depth", "'x'")),
    (["export", "absent", "--out", "new"], ("absent", "checkpoint")),
    (["export", "model", "--out", "full"], ("full", "--force")),
    (["benchmark", "absent"], ("absent", "output of lpc")),
    (["benchmark", "model", "--against", "absent"], ("absent", "output of lpc")),
    (["benchmark", "model", "--repeats", "0"], ("--repeats", "at least 1", "got 0")),
    (["evaluate", "model"], ("--text", "--tasks")),
    (["evaluate", "absent", "--tasks", "arc_easy"], ("absent", "checkpoint")),
    (["evaluate", "model", "--text", "absent.txt"], ("absent.txt", "--text")),
    (["evaluate", "model", "--tasks", "a", "--backend", "tensorrt"], ("--backend", "'tensorrt'", "genai")),
    (["evaluate", "model", "--tasks", "a", "--limit", "0"], ("--limit", "at least 1")),
    (["evaluate", "model", "--tasks", "a", "--include-path", "absent"], ("absent", "task definitions")),
    (["demo", "--out", "full"], ("full", "--force")),
    (["plan", "model", "--ratio", "0.3"], ("--importance", "scores.safetensors")),
    (["plan", "model", "--ratio", "0.3", "--importance", "absent.safetensors"], ("absent.safetensors", "--importance")),
    (["plan", "model", "--ratio", "0.3", "--importance", "train.txt", "--out", "train.txt"], ("train.txt", "--force")),
    (["apply", "absent.json", "model"], ("absent.json", "plan.json")),
    (["apply", "train.txt", "model", "--adapter", "absent"], ("absent", "beside its plan")),
    (["diff", "absent.json", "train.txt"], ("absent.json", "plan.json")),
]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str
    heavy: list[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    for name in FOLDERS:
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "huge" / "config.json").write_text('{"num_hidden_layers": 10000}')
    (folder / "torn" / "config.json").write_text("[" * 100_000)
    (folder / "full" / "mine").touch()
    (folder / "train.txt").write_text("The cat sat on the mat.")
    return folder


@pytest.fixture(scope="module")
def answers(place: Path) -> list[Answer]:
    """All of them in one process, which stays without torch."""
    words = json.dumps([row[0] for row in BAD])
    run = subprocess.run(
        [sys.executable, "-c", WALK],
        input=words,
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )
    return [Answer(*each) for each in json.loads(run.stdout)]


@pytest.mark.parametrize("index", range(len(BAD)), ids=[" ".join(row[0])[:60] for row in BAD])
def test_bad_words_are_answered_at_once(index: int, answers: list[Answer], place: Path) -> None:
    answer, (words, said) = answers[index], BAD[index]
    assert answer.heavy == []
    assert (answer.code, answer.stdout) == (2, "")
    for part in said:
        assert part in answer.stderr, words
    whole = answer.stderr.strip()
    assert "Traceback" not in whole
    assert not whole.endswith(":")
    assert len(whole) < 2000
    assert {path.name for path in place.iterdir()} == {*FOLDERS, "train.txt"}

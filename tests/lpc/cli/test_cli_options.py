"""What the words of the command line make: options objects, the same as in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lpc.cli.compress import PARTS, options_of
from lpc.cli.words import Given, add_command
from lpc.options import CompressOptions, DataOptions, InstructionFormat
from passes.errors import MissingFileError, OptionError
from passes.options import (
    ONE_SHOT,
    Budget,
    DistillOptions,
    RecoverOptions,
    RunOptions,
    Schedule,
    SnapshotOptions,
    Target,
    TraceOptions,
    TuneOptions,
    Workload,
)


def made(*words: object) -> CompressOptions:
    """The options that the words of ``lpc compress`` ask for; an error is raised as it is."""
    found: list[CompressOptions] = []

    def compress(given: Given) -> None:
        found.append(options_of(given))

    app = typer.Typer()
    add_command(app, compress, [], PARTS)
    ran = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(ran.exception, Exception):
        raise ran.exception
    assert ran.exit_code == 0, ran.output
    return found[0]


def test_without_words_all_is_as_declared() -> None:
    assert made("--ratio", 0.3) == CompressOptions(target=Target(ratio=0.3))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--layout", "per-layer", "--protect", "layers.0", "--protect", "layers.-1", "--multiple", 4],
         {"target": Target(ratio=0.3, layout="per-layer", protect=("layers.0", "layers.-1"), multiple=4)}),
        (["--steps", 7, "--learning-rate", "1e-4", "--seed", 3, "--criterion", "wanda", "--batch-size", 2],
         {"run": RunOptions(seed=3, batch_size=2),
          "tune": TuneOptions(steps=7, learning_rate=1e-4, criterion="wanda")}),
        (["--one-shot"], {"tune": TuneOptions(schedule=ONE_SHOT)}),
        (["--progressive"], {"tune": TuneOptions(schedule=Schedule())}),
        (["--distill", 0], {"tune": TuneOptions(distill=None)}),
        (["--distill", 0.25], {"tune": TuneOptions(distill=DistillOptions(weight=0.25))}),
        (["--no-compensate"], {"compensate": False}),
        (["--compensate"], {"compensate": True}),
        (["--hidden", "--query-heads"], {"trace": TraceOptions(hidden=True, query_heads=True)}),
        (["--samples", 5, "--sequence-length", 32],
         {"run": RunOptions(samples=5), "data_options": DataOptions(sequence_length=32)}),
        (["--device", "cuda:1", "--dtype", "bf16"], {"run": RunOptions(device="cuda:1", dtype="bf16")}),
        (["--trust-remote-code"], {"trust_remote_code": True}),
        (["--recover-steps", 9, "--seed", 4, "--bf16"],
         {"run": RunOptions(seed=4), "tune": TuneOptions(bf16=True), "recover": RecoverOptions(steps=9, bf16=True)}),
        (["--recover-steps", 9, "--distill", 1],
         {"tune": TuneOptions(distill=DistillOptions(weight=1)),
          "recover": RecoverOptions(steps=9, distill=DistillOptions(weight=1))}),
    ],
)  # fmt: skip
def test_words_make_the_options_that_python_makes(words: list[object], options: dict[str, object]) -> None:
    assert made("--ratio", 0.3, *words) == CompressOptions(**{"target": Target(ratio=0.3), **options})


def test_several_budgets_hold_together_at_a_workload() -> None:
    found = made("--budget", "macs=0.5", "--budget", "latency=12ms", "--workload", "2x64+16")
    at = Workload(batch=2, prefill=64, decode=16)
    assert found.target == Target(budget=Budget(macs=0.5, latency="12ms", at=at))


def test_snapshots_bring_their_last_ratio() -> None:
    found = made("--snapshots", "0.1,0.3", "--snapshot-steps", 5)
    assert found.snapshots == SnapshotOptions(ratios=(0.1, 0.3), cooldown=5)
    assert found.target == Target(ratio=0.3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--snapshot-steps", 5], "--snapshots"),
        (["--snapshots", "0.1,0.3", "--compensate"], "for one model"),
        (["--snapshots", "0.1,0.3", "--recover-steps", 3], "for one model"),
        (["--workload", "1x8+8"], "give a --budget latency"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words: list[object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        made("--ratio", 0.3, *words)


def test_a_template_file_is_taken_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Q: {instruction}\nA: ")
    found = made("--ratio", 0.3, "--prompt-template", tmp_path / "prompt.txt")
    assert found.data_options.instructions == InstructionFormat(template="Q: {instruction}\nA: ")
    assert made("--ratio", 0.3).data_options.instructions is None


def test_a_template_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Q:")
    with pytest.raises(OptionError, match=r"has no \{instruction\}"):
        made("--ratio", 0.3, "--prompt-template", tmp_path / "prompt.txt")
    with pytest.raises(MissingFileError, match="no such file"):
        made("--ratio", 0.3, "--prompt-template", tmp_path / "absent.txt")

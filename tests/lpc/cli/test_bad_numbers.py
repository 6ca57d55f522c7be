"""Every number that a command takes, by its declaration: what is no number, or none that makes sense, is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
from test_bad_words import ROOT, WALK, Answer

from lpc.cli import commands, compress, plans
from lpc.cli.words import Part, flags
from passes.options import Option, main_type

COMMANDS: dict[tuple[str, ...], tuple[Part, ...]] = {
    ("compress", "model", "--data", "train.txt", "--out", "new"): compress.PARTS,
    ("inspect", "model"): commands.INSPECT,
    ("export", "model", "--out", "new"): commands.EXPORT,
    ("benchmark", "model"): commands.BENCHMARK,
    ("evaluate", "model"): commands.EVALUATE,
    ("plan", "model", "--importance", "train.txt"): plans.PLAN,
    ("apply", "train.txt", "model"): plans.APPLY,
    ("diff", "train.txt", "train.txt"): plans.DIFF,
    ("demo",): commands.DEMO,
}
NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "", " ", "fast", "1,5", "0x10", "1e", "--3")
NO_WHOLE = ("2.5", "1e30", "1e3", "9" * 5000, "True")
SENSELESS = ("-1", "-0.5", "1e300", "9" * 30)
"""No option of lpc means anything by one of these."""


def numeric(option: Option) -> type | None:
    """``int`` or ``float`` if that is what the words of an option stand for."""
    kind = option.facts.words or main_type(option.type)
    kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
    return kind if kind in (int, float) else None


def bad() -> Iterator[tuple[list[str], str, str]]:
    """Words, the flag that they get wrong, and the value."""
    for words, parts in COMMANDS.items():
        for option in (option for part in parts for option in part.options()):
            kind, flag = numeric(option), flags(option)[0]
            values = (*NO_NUMBERS, *SENSELESS, *(NO_WHOLE if kind is int else ())) if kind else ()
            ratio = [] if flag == "--ratio" or words[0] not in ("compress", "plan") else ["--ratio", "0.3"]
            for value in values:
                yield [*words, *ratio, f"{flag}={value}"], flag, value


CASES = list(bad())
SOME = 7
"""One in so many is asked by ``make test``: two or three values an option, others for the next, all by some."""


@pytest.fixture(scope="module", params=[SOME, pytest.param(1, marks=pytest.mark.matrix)])
def cases(request: pytest.FixtureRequest) -> list[tuple[list[str], str, str]]:
    return CASES[:: request.param]


@pytest.fixture(scope="module")
def answers(cases: list[tuple[list[str], str, str]], tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """All of them in one process, which stays without torch."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "train.txt").write_text("The cat sat on the mat.")
    run = subprocess.run(
        [sys.executable, "-c", WALK],
        input=json.dumps([words for words, _, _ in cases]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "20000"},
    )
    assert sorted(path.name for path in Path(folder).iterdir()) == ["model", "train.txt"]
    return [Answer(*answer) for answer in json.loads(run.stdout)]


def test_every_number_of_every_command_is_asked_and_every_value() -> None:
    some = CASES[::SOME]
    asked = {(words[0], flag) for words, flag, _ in some}
    assert asked == {(words[0], flag) for words, flag, _ in CASES}
    assert {value for *_, value in some} == {*NO_NUMBERS, *NO_WHOLE, *SENSELESS}
    assert {("compress", "--steps"), ("compress", "--distill"), ("benchmark", "--repeats")} <= asked
    assert {("evaluate", "--limit"), ("plan", "--ratio")} <= asked


def test_what_is_no_number_that_makes_sense_is_refused_by_its_flag_and_before_torch(
    cases: list[tuple[list[str], str, str]], answers: list[Answer]
) -> None:
    wrong = [
        (words, answer)
        for (words, flag, value), answer in zip(cases, answers, strict=True)
        if (answer.code, answer.stdout, answer.heavy) != (2, "", [])
        or flag not in answer.stderr
        or "Traceback" in answer.stderr
        or not ("got" in answer.stderr or (value.strip() and value in answer.stderr))
    ]
    said = [f"{words[0]} {words[-1][:40]}: {answer.stderr[:160]}" for words, answer in wrong[:20]]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(said)

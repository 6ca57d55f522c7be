"""The commands on what was written: is it whole (verify), and serve it (serve)."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from lpc.cli import console
from lpc.cli.words import Given, Part
from lpc.options import OutputOptions
from passes.errors import EngineError
from passes.options import Group, check, option
from passes.places import check_file


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How far a verification goes."""

    parity: bool = option(
        True,
        help="Compare the graphs with torch, which loads the checkpoint.",
        group=Group.DATA,
        flag="--parity/--no-parity",
        common=True,
    )


def _engines() -> tuple[str, ...]:
    from lpc.serving import ENGINES

    return tuple(each.name for each in ENGINES)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """By what, and where."""

    engine: str | None = option(
        None,
        choices=_engines,
        help="The server; by default the first of them that is installed and can.",
        group=Group.DATA,
        common=True,
    )
    port: int = option(
        8000, least=0, most=65535, help="The port on loopback; 0 takes a free one.", group=Group.DATA, common=True
    )

    def __post_init__(self) -> None:
        check(self)


VERIFY = (Part(VerifyOptions), Part(OutputOptions, ("json",)))
SERVE = (Part(ServeOptions),)


def verify(given: Given) -> None:
    """Look whether DIR is what was written, and works. One verdict a line; exit code 1 on the first that fails.

    Hashes of every file, onnx's checker, configurations against tensors, and the graphs against torch where the
    checkpoint is beside.
    """
    folder, parity = given.arguments["folder"], given.make(VerifyOptions).parity
    check_file(folder, "an output of lpc, an ONNX package, or a checkpoint")
    from lpc.verifying import Verification, checking

    found, as_json = [], given.make(OutputOptions).json
    for each in checking(folder, parity=parity):
        found.append(each)
        if not as_json:
            console.print_line(f"{each.outcome:11}  {each.check} {each.part}: {each.says}")
    verification = Verification(folder=folder, checks=tuple(found))
    if as_json:
        console.print_json(verification.to_json())
    if not verification.passed:
        sys.exit(1)


def serve(given: Given) -> None:
    """Serve DIR on loopback with an OpenAI-compatible API, by the best engine that is installed. Ctrl-C ends it.

    lpc has no server of its own: it says which one it starts, and what to install if there is none.
    """
    folder, options = given.arguments["folder"], given.make(ServeOptions)
    check_file(folder, "an output of lpc, an ONNX package, or a checkpoint")
    from lpc.serving import serve as run

    with run(folder, engine=options.engine, port=options.port) as serving:
        console.print_line(
            f"{serving.folder} is served by {serving.engine} {serving.version} ({' '.join(serving.command)})"
        )
        console.print_line(f"{serving.url}/chat/completions answers for the model {serving.model!r}; Ctrl-C ends it")
        code = serving.process.wait()
    raise EngineError(f"{serving.engine} {serving.version} ended by itself with code {code}")

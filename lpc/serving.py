"""serve(): an output or a package behind an OpenAI-compatible API on loopback, by an engine that is installed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lpc.owned import MANIFEST
from passes.errors import DataError, EngineError, MissingFileError, OptionError

HOST = "127.0.0.1"
PATIENCE_S = 600.0
POLL_S = 0.1
GENAI_CONFIG = "genai_config.json"
INSTALLED = (
    "import importlib.metadata as m, importlib.util as u, sys\n"
    "missing = [name for name in sys.argv[2:] if u.find_spec(name) is None]\n"
    "sys.exit(1) if missing else print(m.version(sys.argv[1]))"
)
"""Prints the version of a distribution, or fails where one of the modules is not there that it needs."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A server of somebody else's.

    ``part`` of an output is what it serves; ``sign`` is a file that it needs there, and ``target`` its name in the
    output's compatibility. ``program`` lies in the environment of the distribution ``name``, with the modules that it
    ``needs``. ``words`` follow it: made of folder, port and the model's name. ``ready`` answers once it serves.
    """

    name: str
    part: str
    sign: str
    target: str
    program: str
    needs: tuple[str, ...]
    words: Callable[[Path, int, str], Sequence[str]]
    ready: str
    install: str


ENGINES = (
    Engine(
        name="onnx-genai-server",
        part="onnx",
        sign=GENAI_CONFIG,
        target="onnxruntime-genai",
        program="onnx-genai",
        needs=("onnxruntime",),
        words=lambda folder, port, model: ("serve", str(folder), "--addr", f"{HOST}:{port}", "--model-id", model),
        ready="/v1/models",
        install="pip install onnx-genai-server==0.1.0.dev6",
    ),
    Engine(
        name="vllm",
        part="hf",
        sign="config.json",
        target="vLLM",
        program="vllm",
        needs=(),
        words=lambda folder, port, model: (
            *("serve", str(folder), "--host", HOST, "--port", str(port), "--served-model-name", model),
        ),
        ready="/health",
        install="pip install vllm",
    ),
    Engine(
        name="transformers",
        part="hf",
        sign="config.json",
        target="transformers",
        program="transformers",
        needs=("fastapi", "uvicorn", "openai"),
        words=lambda folder, port, model: ("serve", str(folder), "--host", HOST, "--port", str(port)),
        ready="/health",
        install="pip install 'transformers[serving]'",
    ),
)
"""The best first: the one that serves what was compiled, then those that serve the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A server that answers.

    ``url`` is the base of its API, ``model`` what requests call the model, ``folder`` what it serves; ``command`` was
    typed to start it.
    """

    engine: str
    version: str
    url: str
    model: str
    folder: Path
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An engine that is installed, its version and program, and the folder that it would serve."""

    engine: Engine
    version: str
    program: Path
    folder: Path


@contextmanager
def serve(
    folder: str | Path, *, engine: str | None = None, port: int = 8000, log: IO[bytes] | None = None
) -> Iterator[Serving]:
    """Serve a folder while the block runs, by the first of ``ENGINES`` that is installed and can, or the one named.

    It listens on loopback alone, on a free port where ``port`` is 0. ``log`` takes what the server says, by default the
    terminal. Raises MissingFileError if there is nothing to serve, OptionError if no engine is there (and says what to
    install) or the port is taken, EngineError if the server ends before it answers.
    """
    found = best(Path(folder), engine)
    port = _free(port)
    model = Path(os.path.realpath(folder)).name
    command = (str(found.program), *found.engine.words(found.folder, port, model))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(process, f"http://{HOST}:{port}{found.engine.ready}", found)
        yield Serving(
            engine=found.engine.name,
            version=found.version,
            url=f"http://{HOST}:{port}/v1",
            model=model if found.engine.name != "transformers" else str(found.folder),
            folder=found.folder,
            command=command,
            process=process,
        )
    finally:
        _end(process)


def best(folder: Path, name: str | None = None) -> Chosen:
    """The engine that would serve a folder. Raises MissingFileError and OptionError."""
    asked = [each for each in ENGINES if name in (None, each.name)]
    if not asked:
        raise OptionError(f"engine is {name!r}; it must be one of {', '.join(each.name for each in ENGINES)}")
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}")
    homes = {each: home for each in asked if (home := _home(folder, each)) is not None}
    if not homes:
        raise MissingFileError(
            f"{folder} holds neither an ONNX package with a {GENAI_CONFIG} nor a checkpoint to serve"
        )
    refused = {each.name: why for each in homes if name is None and (why := _refusal(folder, each)) is not None}
    fit = [each for each in homes if each.name not in refused]
    told = "".join(f"; {each} would not take it: {why}" for each, why in refused.items())
    if not fit:
        raise OptionError(f"no engine serves {folder}{told}; name one with --engine to try it all the same")
    for each in fit:
        if (at := _installed(each)) is not None:
            return Chosen(engine=each, version=at[1], program=at[0], folder=homes[each])
    ways = " or ".join(f"`{each.install}`" for each in fit)
    raise OptionError(f"nothing that serves {folder} is installed here: {ways}{told}")


def _home(folder: Path, engine: Engine) -> Path | None:
    """The folder that an engine would be given. Raises OptionError where there is one of several precisions."""
    weights = "*.onnx" if engine.part == "onnx" else "*.safetensors"
    for homes in ([folder], [folder / engine.part], sorted(folder.glob(f"{engine.part}/*")), sorted(folder.glob("*"))):
        found = [each for each in homes if (each / engine.sign).is_file() and any(each.glob(weights))]
        if len(found) > 1:
            raise OptionError(f"{folder} holds several to serve: name one, such as {found[0]}")
        if found:
            return found[0]
    return None


def _refusal(folder: Path, engine: Engine) -> str | None:
    """Why an engine does not take the model of an output, by what the output itself says of where it runs."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        verdicts = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("compatibility") or ()
        found = {each["target"]: each["reason"] for each in verdicts if each["runs"] == "no"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / MANIFEST} is not as lpc writes it: {error!r}; lpc verify says more") from error
    return found.get(engine.target)


def _installed(engine: Engine) -> tuple[Path, str] | None:
    """The engine's program and version, in this environment or else on the path, where it has what it needs."""
    for place in (str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)):
        program = shutil.which(engine.program, path=place)
        if program is None:
            continue
        python = shutil.which("python", path=place) or sys.executable
        asked = [python, "-c", INSTALLED, engine.name, *engine.needs]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if answer.returncode == 0:
            return Path(program), answer.stdout.strip()
    return None


def _free(port: int) -> int:
    """The port itself, or a free one for 0. Raises OptionError if it cannot be had."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise OptionError(f"port {port} cannot be had ({error}): choose another one, or 0 for any") from error
        return int(held.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str, found: Chosen) -> None:
    """Wait until the server answers. Raises EngineError if it ends, or does not answer for long."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE_S:
        if process.poll() is not None:
            raise EngineError(
                f"{found.engine.name} {found.version} ended with code {process.returncode} before it served "
                f"{found.folder}: what it said is above"
            )
        try:
            with opener.open(url, timeout=PATIENCE_S):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(POLL_S)
    raise EngineError(f"{found.engine.name} {found.version} did not answer on {url} for {PATIENCE_S:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and have it end if it does not."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""Start every server that is installed, send it prompts, and hold its greedy tokens against torch's.

    make test-servers              installs the servers into an environment of their own, and runs all
    python tests/servers/run.py --servers VENV [--only NAME ...]

Each server writes a line of ``tests/servers/results.json``, from which docs/compatibility.md says what was run when.
Exit code 1 if one answers otherwise than torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "servers"), str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from agreement import genai_greedy, ort_greedy
from asked import MODEL, NEW_TOKENS, Asked, asked
from browser import browsed, chromium_version
from open_inference import by_mlserver, by_triton
from openai_api import completions

from passes.errors import LpcError

RESULTS = Path(__file__).with_name("results.json")
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a server answered: how many of the prompts as torch does; ``how`` says what was asked, with what."""

    server: str
    versions: dict[str, str]
    date: str
    model: str
    how: str
    prompts: int
    equal: int


@dataclass(frozen=True, kw_only=True)
class Server:
    """``answer`` gives tokens, or text, for every prompt; ``packages`` of Python or npm are what it runs with."""

    name: str
    how: str
    packages: tuple[str, ...]
    answer: Callable[[Asked, Path], list[list[int]] | list[str]]


def onnxruntime(asked: Asked, servers: Path) -> list[list[int]]:
    import onnxruntime as ort

    session = ort.InferenceSession(asked.output / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    return [ort_greedy(session, each, NEW_TOKENS, never=set())[len(each) :] for each in asked.prompts]


def genai(asked: Asked, servers: Path) -> list[list[int]]:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(asked.output / "onnx"))
    return [genai_greedy(model, each, NEW_TOKENS)[len(each) :] for each in asked.prompts]


def served(engine: str) -> Callable[[Asked, Path], list[str]]:
    return lambda asked, servers: completions(asked, servers, engine, NEW_TOKENS)


def openvino(asked: Asked, servers: Path) -> list[list[int]]:
    return told([servers / "bin/python", HERE / "openvino_greedy.py", asked.output / "onnx", asked.case])


def transformers_js(asked: Asked, servers: Path) -> list[list[int]]:
    return told(["node", in_node(servers, "transformers_js.mjs"), asked.output / "onnx", asked.case])


def llama_cpp(asked: Asked, servers: Path) -> list[list[int]]:
    from gguf_file import write_gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(asked.output / "hf")
    path = write_gguf(model, asked.output.parent / "model.gguf", asked.tokenizer)
    return told(["node", in_node(servers, "llama_cpp.mjs"), path, asked.case])


def in_node(servers: Path, script: str) -> Path:
    """The script, where node finds its packages."""
    place = servers / "node" / script
    place.write_text((HERE / script).read_text(encoding="utf-8"), encoding="utf-8")
    return place


def told(command: list[str | Path]) -> list[list[int]]:
    """The JSON in the last line of what a program prints."""
    run = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{command[1]} ended with {run.returncode}: {run.stderr.strip()[-2000:]}")
    tokens: list[list[int]] = json.loads(run.stdout.strip().splitlines()[-1])
    return tokens


SERVERS = (
    Server(name="onnxruntime", how="the graph step by step", packages=("onnxruntime",), answer=onnxruntime),
    Server(name="onnxruntime-genai", how="Generator", packages=("onnxruntime-genai",), answer=genai),
    Server(
        name="onnx-genai-server",
        how="`lpc serve`, /v1/completions, whole and streamed",
        packages=("onnx-genai-server", "onnxruntime"),
        answer=served("onnx-genai-server"),
    ),
    Server(
        name="transformers serve",
        how="`lpc serve --engine transformers`, /v1/completions, whole and streamed",
        packages=("transformers", "torch"),
        answer=served("transformers"),
    ),
    Server(name="OpenVINO", how="the graph step by step", packages=("openvino",), answer=openvino),
    Server(
        name="transformers.js",
        how="in Node, AutoModelForCausalLM.generate on `onnx/`",
        packages=("@huggingface/transformers", "onnxruntime-node"),
        answer=transformers_js,
    ),
    Server(
        name="transformers.js in a browser",
        how="`examples/browser.html` in headless Chromium, its button pressed",
        packages=("@huggingface/transformers", "onnxruntime-web", "chromium"),
        answer=browsed,
    ),
    Server(
        name="MLServer",
        how="the Open Inference Protocol over HTTP, the graph step by step",
        packages=("mlserver", "onnxruntime"),
        answer=by_mlserver,
    ),
    Server(
        name="Triton, onnxruntime backend",
        how="the server itself on `lpc export --format triton`, its Python backend calling onnxruntime; over HTTP",
        packages=("nvidia-pytriton", "onnxruntime"),
        answer=by_triton,
    ),
    Server(
        name="llama.cpp (GGUF)",
        how="node-llama-cpp on the checkpoint as GGUF in float32 (tests/gguf_file.py)",
        packages=("node-llama-cpp",),
        answer=llama_cpp,
    ),
)


def versions(server: Server, servers: Path) -> dict[str, str]:
    """The version of each package: npm's, this environment's, or the servers'."""
    ours = server.name in ("onnxruntime", "onnxruntime-genai")
    python = sys.executable if ours else str(servers / "bin/python")
    ask = "import importlib.metadata as m, sys; sys.path.append(sys.argv[2]); print(m.version(sys.argv[1]))"
    found = {}
    for name in server.packages:
        npm = servers / "node/node_modules" / name / "package.json"
        if name == "chromium":
            found[name] = chromium_version()
        elif npm.is_file() and not ours:
            found[name] = json.loads(npm.read_text(encoding="utf-8"))["version"]
        else:
            found[name] = subprocess.run(
                [python, "-c", ask, name, str(servers / "triton")], capture_output=True, text=True, check=True
            ).stdout.strip()
    return found


def run(server: Server, asked: Asked, servers: Path) -> Ran:
    """Ask one server. Raises what stops it from answering."""
    answers = server.answer(asked, servers)
    wanted = asked.tokens if isinstance(answers[0], list) else asked.texts_of(asked.tokens)
    equal = sum(answer == expected for answer, expected in zip(answers, wanted, strict=True))
    return Ran(
        server=server.name,
        versions=versions(server, servers),
        date=date.today().isoformat(),
        model=MODEL,
        how=server.how,
        prompts=len(asked.prompts),
        equal=equal,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=Path, required=True, help="the environment that make test-servers makes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--work", type=Path, default=ROOT / "servers-work", help="where the output is kept")
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    question, bad = asked(given.work.resolve()), 0
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for server in SERVERS:
        if given.only is not None and server.name not in given.only:
            continue
        try:
            ran = run(server, question, given.servers.resolve())
        except (LpcError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"{server.name}: did not answer: {error}")
            bad += 1
            continue
        print(f"{server.name}: {ran.equal} of {ran.prompts} prompts as torch; {ran.versions}")
        bad += ran.equal != ran.prompts
        found[server.name] = asdict(ran)
        RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
    print(f"{len(SERVERS) - bad} passed, {bad} failed" if given.only is None else f"{bad} failed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

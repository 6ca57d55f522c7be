from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

import lpc
from lpc import serving
from lpc.serving import ENGINES, best

SERVER = """#!{python}
import http.server, sys
open({seen!r}, "a").write(" ".join(sys.argv[1:]) + chr(10))
if {dies}: sys.exit(7)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{{}}")
    def log_message(self, *_): pass
words = sys.argv
port = int(words[words.index("--addr") + 1].split(":")[1] if "--addr" in words else words[words.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What engines look for in an output, and no more."""
    for file in ("onnx/model.onnx", "onnx/genai_config.json", "hf/config.json", "hf/model.safetensors"):
        (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / file).write_text("{}")
    return tmp_path / "out"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which nothing is installed; programs that are put there say their version is 1.2."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    put(tmp_path / "bin/python", f"#!{os.path.realpath('/bin/sh')}\necho 1.2")
    return tmp_path / "bin"


PYTHON = sys.executable


def put(program: Path, text: str) -> None:
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)


def server(program: Path, *, dies: bool = False) -> Path:
    """A program that notes its words and answers every request, or ends; the notes."""
    seen = program.with_suffix(".seen")
    put(program, SERVER.format(python=PYTHON, seen=str(seen), dies=dies))
    return seen


def test_nothing_installed_is_said_with_what_to_install(output: Path, installed: Path) -> None:
    with pytest.raises(lpc.OptionError, match=r"pip install onnx-genai-server.* or `pip install vllm` or .*serving"):
        best(output)


def test_the_first_engine_that_is_installed_serves_its_part(output: Path, installed: Path) -> None:
    server(installed / "transformers")
    assert (best(output).engine.name, best(output).folder) == ("transformers", output / "hf")
    server(installed / "onnx-genai")
    assert (best(output).engine.name, best(output).folder) == ("onnx-genai-server", output / "onnx")
    assert best(output, "transformers").version == "1.2"
    assert best(output / "onnx").folder == output / "onnx"
    assert best(output / "hf").engine.name == "transformers"
    put(installed / "python", "#!/bin/sh\nexit 1")  # what it needs is not there
    with pytest.raises(lpc.OptionError, match="nothing that serves"):
        best(output)


def test_an_engine_that_lacks_something_here_may_be_whole_elsewhere(
    output: Path, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "own/python", "#!/bin/sh\nexit 1")
    server(tmp_path / "own/onnx-genai")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "own/python"))
    server(installed / "onnx-genai")
    assert best(output).program == installed / "onnx-genai"


def test_an_engine_that_would_refuse_the_model_is_passed_over(output: Path, installed: Path) -> None:
    server(installed / "vllm")
    assert best(output).engine.name == "vllm"
    verdict = {"target": "vLLM", "runs": "no", "reason": "widths differ"}
    (output / "lpc.json").write_text(json.dumps({"compatibility": [verdict]}))
    with pytest.raises(lpc.OptionError, match="vllm would not take it: widths differ"):
        best(output)
    assert best(output, "vllm").engine.name == "vllm"  # the user's word wins


def test_what_cannot_be_served_is_refused(output: Path, tmp_path: Path, installed: Path) -> None:
    with pytest.raises(lpc.OptionError, match="engine is 'triton'; it must be one of onnx-genai-server, vllm, transf"):
        best(output, "triton")
    with pytest.raises(lpc.MissingFileError, match="there is no folder"):
        best(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(lpc.MissingFileError, match="neither an ONNX package"):
        best(tmp_path / "empty")


def test_one_precision_among_several_is_to_be_named(output: Path, installed: Path) -> None:
    server(installed / "onnx-genai")
    for name in ("fp32", "int4"):
        (output / "onnx" / name).mkdir()
        for file in ("model.onnx", "genai_config.json"):
            (output / "onnx" / name / file).write_text("{}")
    (output / "onnx/model.onnx").unlink()
    with pytest.raises(lpc.OptionError, match=r"holds several to serve: name one, such as .*/onnx/fp32"):
        best(output)
    assert best(output / "onnx/int4").folder == output / "onnx/int4"
    shutil.rmtree(output / "onnx/fp32")
    assert best(output).folder == best(output / "onnx").folder == output / "onnx/int4"


def test_it_answers_on_loopback_while_the_block_runs(output: Path, installed: Path) -> None:
    seen = server(installed / "onnx-genai")
    with lpc.serve(output, port=0) as found:
        with urllib.request.urlopen(f"{found.url}/models") as answer:
            assert answer.read() == b"{}"
        port = found.url.split(":")[2].removesuffix("/v1")
        with pytest.raises(lpc.OptionError, match=f"port {port} cannot be had"), lpc.serve(output, port=int(port)):
            pass
        assert seen.read_text().split() == [
            *("serve", str(output / "onnx"), "--addr", f"127.0.0.1:{port}", "--model-id", "out")
        ]
        assert (found.engine, found.version, found.model) == ("onnx-genai-server", "1.2", "out")
    assert found.process.returncode == -signal.SIGTERM


def test_a_server_that_ends_is_one_error(output: Path, installed: Path) -> None:
    server(installed / "onnx-genai", dies=True)
    with pytest.raises(lpc.EngineError, match=r"onnx-genai-server 1\.2 ended with code 7"), lpc.serve(output, port=0):
        pass


def test_a_server_that_does_not_answer_is_ended(output: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE_S", 0.3)
    put(installed / "onnx-genai", "#!/bin/sh\nexec /bin/sleep 60")
    with pytest.raises(lpc.EngineError, match="did not answer"), lpc.serve(output, port=0):
        pass


def test_serve_command_says_who_serves_and_ends_with_an_interruption(output: Path, installed: Path) -> None:
    server(installed / "onnx-genai")
    words = [PYTHON, "-m", "lpc", "serve", str(output), "--port", "0"]
    place = {**os.environ, "PATH": str(installed), "PYTHONPATH": str(Path(lpc.__file__).parent.parent)}
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=place)
    timer = threading.Timer(60, run.kill)
    timer.start()
    assert run.stdout is not None
    first, second = run.stdout.readline(), run.stdout.readline()
    assert first.startswith(f"{output / 'onnx'} is served by onnx-genai-server 1.2 (")
    assert "/chat/completions answers for the model 'out'" in second
    run.send_signal(signal.SIGINT)
    run.communicate()
    timer.cancel()
    assert run.returncode == 128 + signal.SIGINT


def test_engines_are_named_once() -> None:
    assert len({each.name for each in ENGINES}) == len(ENGINES) == 3

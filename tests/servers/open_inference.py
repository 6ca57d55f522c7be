"""Servers asked by the Open Inference Protocol (KServe's v2) over HTTP, a step of the graph a request."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from agreement import ort_greedy
from asked import NEW_TOKENS, Asked
from openai_api import OPENER

from lpc import export_each

HERE = Path(__file__).parent
SECONDS = 120
TYPES = {"int64": "INT64", "float32": "FP32"}


class Remote:
    """A session whose graph runs behind the protocol: what ``ort_greedy`` asks of one."""

    def __init__(self, path: Path, url: str) -> None:
        known = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs, self.url = known.get_inputs, known.get_outputs, url

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One request."""
        inputs = [
            {"name": name, "shape": value.shape, "datatype": TYPES[str(value.dtype)], "data": value.ravel().tolist()}
            for name, value in feeds.items()
        ]
        answer = asked_for(f"{self.url}/infer", {"inputs": inputs})
        found = {each["name"]: each for each in answer["outputs"]}
        return [np.array(found[name]["data"], np.float32).reshape(found[name]["shape"]) for name in names]


def asked_for(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that a request is answered with."""
    data = None if body is None else json.dumps(body).encode()
    with OPENER.open(urllib.request.Request(url, data, {"content-type": "application/json"}), timeout=SECONDS) as found:
        return json.loads(found.read() or b"null")


def by_mlserver(asked: Asked, servers: Path) -> list[list[int]]:
    """Greedy tokens of all prompts, the graph served by ``mlserver start``."""
    folder, graph = asked.output.parent / "mlserver", asked.output / "onnx/model.onnx"
    folder.mkdir(exist_ok=True)
    http, grpc, metrics = free_ports(3)
    model = {"name": "lpc", "implementation": "mlserver_model.Graph", "parameters": {"uri": str(graph.resolve())}}
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    settings = {"host": "127.0.0.1", **ports, "parallel_workers": 0}
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [str(servers / "bin/mlserver"), "start", str(folder)]
    with running(command, {"PYTHONPATH": str(HERE)}, folder, f"http://127.0.0.1:{http}/v2/models/lpc") as url:
        return greedy(Remote(graph, url), asked)


def by_triton(asked: Asked, servers: Path) -> list[list[int]]:
    """Greedy tokens of all prompts, the repository served by ``tritonserver``.

    It is the server that nvidia-pytriton brings (with a numpy of its own, since it wants one before 2), which has the
    Python backend alone: by that one onnxruntime is called in the place of the backend of that name.
    """
    folder = asked.output.parent / "triton"
    shutil.rmtree(folder, ignore_errors=True)
    export_each(asked.output / "hf", folder / "models", format="triton")
    (model,) = (folder / "models").iterdir()
    own, packages = servers / "triton", next((servers / "lib").glob("python3*")) / "site-packages"
    given, backends = own / "pytriton/tritonserver", folder / "backends"
    shutil.copytree(given / "backends/python", backends / "python")
    version = packages.parent.name.removeprefix("python")
    shutil.copy(given / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    (backends / "onnxruntime").mkdir()
    shutil.copy(HERE / "triton_backend.py", backends / "onnxruntime/model.py")
    (http,) = free_ports(1)
    command = [str(given / "bin/tritonserver"), "--model-repository", str(folder / "models")]
    command += ["--backend-directory", str(backends), "--http-address", "127.0.0.1", "--http-port", str(http)]
    command += ["--allow-grpc", "false", "--allow-metrics", "false"]
    url = f"http://127.0.0.1:{http}/v2/models/{model.name}"
    found = {"PYTHONPATH": f"{own}{os.pathsep}{packages}", "LD_LIBRARY_PATH": str(own / "nvidia_pytriton.libs")}
    with running(command, found, folder, url):
        return greedy(Remote(model / "1/model.onnx", url), asked)


def greedy(session: Remote, asked: Asked) -> list[list[int]]:
    """Of all prompts."""
    return [ort_greedy(session, each, NEW_TOKENS, never=set())[len(each) :] for each in asked.prompts]


@contextmanager
def running(command: list[str], variables: Mapping[str, str], folder: Path, url: str) -> Iterator[str]:
    """The server inside the block, its model at ``url``; what it says is in ``folder/server.log``."""
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
        try:
            wait_for(f"{url}/ready", server, folder / "server.log")
            yield url
        finally:
            server.terminate()
            server.wait()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the model is ready. Raises RuntimeError if the server ends, or after ``SECONDS``."""
    end = time.monotonic() + SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            asked_for(url)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise RuntimeError(f"it is not ready (exit code {server.poll()}): {log.read_text(errors='replace')[-2000:]}")

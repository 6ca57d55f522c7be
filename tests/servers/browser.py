"""Headless Chromium on ``examples/browser.html``, served from loopback with a package and transformers.js beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue

from asked import Asked

HERE, PAGE = Path(__file__).parent, Path(__file__).parents[2] / "examples" / "browser.html"
SECONDS = 600
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Handler(SimpleHTTPRequestHandler):
    """Files, and a place for the page's answer."""

    def __init__(self, *given: object, answers: Queue[dict[str, object]], **more: object) -> None:
        self.answers = answers
        super().__init__(*given, **more)  # type: ignore[arg-type]

    def do_POST(self) -> None:
        self.answers.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *given: object) -> None:
        """Nothing is printed."""


def chromium() -> str:
    """The browser. Raises RuntimeError where none is installed."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise RuntimeError(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    return found


def chromium_version() -> str:
    """As the browser says it: ``Chromium 150.0.7871.100 ...``."""
    said = subprocess.run([chromium(), "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[1]


def browsed(asked: Asked, servers: Path) -> list[str]:
    """What the page shows for each prompt. Raises RuntimeError with what it says if it fails."""
    folder = asked.output.parent / "browser"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in (PAGE, HERE / "chromium.html", asked.case, asked.output / "onnx", servers / "node/node_modules"):
        (folder / path.name).symlink_to(path.resolve())
    answers: Queue[dict[str, object]] = Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, answers=answers, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, profile = f"http://127.0.0.1:{server.server_port}/chromium.html", folder / "profile"
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", url]
    with (folder / "chromium.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as running:
        try:
            answer = answers.get(timeout=SECONDS)
        except Empty:
            answer = {"error": f"no answer in {SECONDS} seconds"}
        finally:
            running.terminate()
            server.shutdown()
    if "found" not in answer:
        raise RuntimeError(f"{PAGE.name} in Chromium: {answer['error']}")
    found: list[str] = answer["found"]  # type: ignore[assignment]
    return found

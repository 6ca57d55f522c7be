"""An OpenAI-compatible server asked over HTTP, with nothing but the standard library."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asked import Asked

from lpc.serving import Serving, serve

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def completions(asked: Asked, servers: Path, engine: str, new: int) -> list[str]:
    """The texts that ``lpc serve`` answers with; whole and streamed answers must be the same."""
    os.environ["PATH"] = f"{servers / 'bin'}{os.pathsep}{os.environ['PATH']}"
    log_file = asked.output.parent / f"{engine}.log"
    with log_file.open("wb") as log, serve(asked.output, engine=engine, port=0, log=log) as serving:
        whole = [answer(serving, text, new) for text in asked.texts]
        streamed = ["".join(pieces(serving, text, new)) for text in asked.texts[:3]]
    if streamed != whole[:3]:
        raise RuntimeError(f"streamed, {engine} says {streamed}, else {whole[:3]}")
    return whole


def answer(serving: Serving, prompt: str, new: int) -> str:
    """One request, one answer."""
    with request(serving, prompt, new) as response:
        text: str = json.load(response)["choices"][0]["text"]
    return text


def pieces(serving: Serving, prompt: str, new: int) -> Iterator[str]:
    """The same as server-sent events."""
    with request(serving, prompt, new, stream=True) as response:
        for line in response:
            kind, _, data = line.decode().strip().partition(":")
            if kind == "data" and data.strip() != "[DONE]":
                yield from (each.get("text") or "" for each in json.loads(data).get("choices", ()))


def request(serving: Serving, prompt: str, new: int, **more: Any) -> Any:
    """The response to a request for a greedy completion."""
    body = {"model": serving.model, "prompt": prompt, "max_tokens": new, "temperature": 0, **more}
    asked = urllib.request.Request(
        f"{serving.url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return OPENER.open(asked, timeout=300)

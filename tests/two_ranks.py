"""Two processes of one run on this machine, as a launcher starts them, and what each of them returns."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def _child(rank: int, port: int, out: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    code = 2
    try:
        found = work(rank, *arguments)
        code = 0
    except Exception as error:  # noqa: BLE001 - whatever it was, the test is told
        found = [type(error).__name__, str(error)]
    (out / str(rank)).write_text(json.dumps(found), encoding="utf-8")
    if code:
        os._exit(code)


def two_ranks(folder: Path, work: Callable[..., Any], *arguments: Any, codes: tuple[int, int] = (0, 0)) -> list[Any]:
    """What ``work(rank, *arguments)`` returned on each rank, through JSON, or the error's name and text if it raised.

    Raises AssertionError if they did not end with these exit codes; 2 is that of an error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    each = [(rank, port, folder, work, arguments) for rank in range(2)]
    processes = [context.Process(target=_child, args=one) for one in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    found = [json.loads((folder / str(rank)).read_text(encoding="utf-8")) for rank in range(2)]
    assert tuple(process.exitcode for process in processes) == codes, found
    return found

"""The terminal: progress bars, tables, errors. The only place that prints."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from passes.errors import LpcError, visible

if TYPE_CHECKING:
    from passes.pipeline import Progress as ProgressCallback

USER_ERROR = 2

stdout = Console()
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def keep_quiet() -> None:
    """From now on only results and errors are told."""
    global _quiet
    _quiet = True
    logging.getLogger().setLevel(logging.ERROR)


_quiet = False


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """A callback that shows a bar a stage on a terminal, and nothing elsewhere; the libraries' own bars are off."""
    from transformers.utils import logging as transformers_logging

    from lpc.cli.interruption import check

    transformers_logging.disable_progress_bar()
    if _quiet or not stderr.is_terminal:
        yield lambda stage, done, total: check()
        return
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            check()
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an LpcError into one message and exit code 2, an interruption into the signal's code; leave others alone."""
    from lpc.cli import interruption

    interruption.listen()
    try:
        yield
    except LpcError as error:
        stderr.print(f"[bold red]lpc: {type(error).__name__}:[/] ", end="")
        stderr.print(str(error), markup=False)
        for note in getattr(error, "__notes__", ()):
            stderr.print(f"  {visible(note)}", markup=False, style="dim")
        sys.exit(USER_ERROR)
    except KeyboardInterrupt as error:
        interruption.end(error)


ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    # Threads that spin while they wait make torch ten times slower as soon as another process wants the same cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def prepare_process() -> None:
    """Keep the libraries' bars and advice off the terminal, their warnings among its lines, and threads from spinning.

    Called before torch is imported; settings of the user's own win.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("torch", "peft", "datasets", "accelerate", "lm_eval", "onnxscript", "onnx_ir", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # peft 0.21 asks transformers for the old name
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning, "transformers")
    logging.captureWarnings(True)
    _log_to_terminal()


class _Plain(logging.Formatter):
    """Records as lines without control characters, since they may quote a file."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record).rstrip())


def _log_to_terminal() -> None:
    """Warnings of all libraries, and the traceback of an error that nobody foresaw, fit for a terminal."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Plain("lpc: %(message)s"))
        root.addHandler(handler)
    sys.excepthook = lambda kind, error, trace: sys.stderr.write(
        visible("".join(traceback.format_exception(kind, error, trace)))
    )


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(values, indent=1, default=str) + "\n")


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table: the first column is left-aligned, the others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    stdout.print(table)


def print_line(text: str) -> None:
    """A line of plain text."""
    stdout.print(visible(text), markup=False, highlight=False, soft_wrap=True)

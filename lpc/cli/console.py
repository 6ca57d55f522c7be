"""The terminal: tables, errors, and with ``lpc.cli.progress`` how far a run is. The only place that prints."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from passes.errors import FinishedError, LpcError, RankError, visible
from passes.ranks import is_first_to_tell, launched

USER_ERROR = 2
LIBRARIES = (
    "torch", "peft", "datasets", "accelerate", "lm_eval", "onnxscript", "onnx_ir", "huggingface_hub", "bitsandbytes",
)  # fmt: skip
"""Those whose warnings advise programmers, not who types a command."""
BORDER = 3
"""Letters beside a cell of a table: a line and two blanks."""

stdout = Console()
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def keep_quiet() -> None:
    """From now on only results and errors are told."""
    global _quiet
    _quiet = True
    logging.getLogger().setLevel(logging.ERROR)


def is_quiet() -> bool:
    """Whether ``keep_quiet`` was called."""
    return _quiet


_quiet = False


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an LpcError into one message and exit code 2, an interruption into the signal's code; leave others alone.

    Of several processes the first one that fails tells it, and the others, which fail by that, end without a word.
    """
    from lpc.cli import interruption

    interruption.listen()
    try:
        yield
    except RankError as error:
        sys.exit(0 if error.kind == FinishedError.__name__ else USER_ERROR)
    except LpcError as error:
        if not is_first_to_tell():
            sys.exit(USER_ERROR)
        stderr.print(f"[bold red]lpc: {type(error).__name__}:[/] ", end="")
        stderr.print(str(error), markup=False)
        for note in getattr(error, "__notes__", ()):
            stderr.print(f"  {visible(note)}", markup=False, style="dim")
        sys.exit(USER_ERROR)
    except KeyboardInterrupt as error:
        interruption.end(error)
    except Exception:
        if not is_first_to_tell():
            sys.exit(USER_ERROR)
        raise


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
    for name in LIBRARIES:
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
    """Warnings of all libraries, and the traceback of an error that nobody foresaw, fit for a terminal.

    Of several processes the first one warns.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.NullHandler() if launched()[0] else logging.StreamHandler()
        handler.setFormatter(_Plain("lpc: %(message)s"))
        root.addHandler(handler)
    sys.excepthook = lambda kind, error, trace: sys.stderr.write(
        visible("".join(traceback.format_exception(kind, error, trace)))
    )


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(values, indent=1, default=str) + "\n")


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table: the first column is left-aligned, the others are numbers. Columns that find no room are put below."""
    widths = [max(len(line[place]) for line in (header, *rows)) + BORDER for place in range(len(header))]
    left = list(range(1, len(header)))
    while True:
        shown, room = [0], stdout.width - 1 - widths[0]
        while left and (len(shown) == 1 or widths[left[0]] <= room):
            room -= widths[left[0]]
            shown.append(left.pop(0))
        table = Table(title=title, title_justify="left", title_style="bold")
        for place in shown:
            table.add_column(header[place], justify="right" if place else "left")
        for row in rows:
            table.add_row(*(Text(visible(row[place])) for place in shown))
        stdout.print(table)
        if not left:
            return


def print_line(text: str) -> None:
    """A line of plain text."""
    stdout.print(visible(text), markup=False, highlight=False, soft_wrap=True)

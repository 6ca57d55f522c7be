"""Ctrl-C and SIGTERM: the command ends within a step, and says in one line what is kept."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from typer.core import TyperGroup

from lpc.cli import console
from passes.ranks import is_first_to_tell, launched

_seen: list[int] = []
"""The signals so far: code that calls back from C may have swallowed the exception."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


class Commands(TyperGroup):
    """The commands; an interruption of one is told before typer ends the process without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Of several processes one says what is wrong with its words."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if getattr(error, "exit_code", 0) == console.USER_ERROR and not is_first_to_tell():
                sys.exit(console.USER_ERROR)
            raise
        except KeyboardInterrupt as interruption:
            end(interruption)


def listen() -> None:
    """Have both signals raise, where nobody has said what they are to do.

    A process that writes nothing, beside the first of its run, is ended by SIGTERM at once, also while it waits.
    """
    for number in (signal.SIGINT,) if launched()[0] else (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def check() -> None:
    """Raise again for a signal that was seen; called once a step."""
    if _seen:
        _raise(_seen[-1])


def end(interruption: KeyboardInterrupt) -> None:
    """Say what is kept, if no other process of the run has told why it ends; end with the code of the signal."""
    notes = getattr(interruption, "__notes__", ("nothing was left behind",))
    number = signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT
    if not launched()[0] and is_first_to_tell():
        console.stderr.print(
            f"lpc: {'terminated' if number == signal.SIGTERM else 'interrupted'}; {'; '.join(notes)}", markup=False
        )
    sys.exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    _raise(number)


def _raise(number: int) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

"""Write docs/errors.md: an answer for every error by name, from the docstrings of ``passes.errors``.

    python scripts/error_page.py

A test holds the page and the docstrings together.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from passes import errors

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
HEAD = """# Errors

Whatever you can mend is an `lpc.LpcError`: on the command line one message and exit code 2, in Python an exception that
is also the builtin that it refines. A message names the value and what to change. Nothing half-written is left behind,
and finished work is kept ([resume.md](resume.md)). This page is made of the docstrings of `passes/errors.py` by
`python scripts/error_page.py`.

| exit code | when |
|---|---|
| 0 | all is well; also where the output that was asked for is there already |
| 1 | `lpc verify` found something wrong; else an error that nobody foresaw, with its traceback: please report it |
| 2 | an `LpcError`, unknown words, a cell of a sweep that failed, or something that `lpc doctor` misses |
| 130 | interrupted (Ctrl-C); what is kept is told, and the same command goes on |
| 143 | terminated (SIGTERM), likewise |

"""


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(_section(kind) for kind in _kinds()) + "\n"


def _kinds() -> list[type[errors.LpcError]]:
    """The classes in the order of the module."""
    found = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.LpcError)]
    return sorted(found, key=lambda kind: inspect.getsourcelines(kind)[1])


def _section(kind: type[errors.LpcError]) -> str:
    parents = ", ".join(f"`{each.__name__}`" for each in kind.__bases__)
    return f"## {kind.__name__}\n\nIs a {parents}.\n\n{inspect.cleandoc(kind.__doc__ or '')}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)

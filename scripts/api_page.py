"""Write docs/api.md: every public name of ``lpc``, for mkdocstrings to fill in.

    python scripts/api_page.py

A test holds the page and the names together.
"""

from __future__ import annotations

from pathlib import Path

import lpc

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
HEAD = """# Python

`import lpc` is light: torch and transformers are imported when a name that needs them is first used. Every command has
its twin here, with typed results. Errors have a [page of their own](errors.md), options [another](options.md).
"""
CONSTANTS = ("CRITERIA", "ONE_SHOT")


def page() -> str:
    """The whole page: functions first, then classes."""
    homes = {name: home for name, home in lpc._HOMES.items() if home != "passes.errors" and name not in CONSTANTS}
    verbs = sorted(name for name in homes if name[0].islower())
    kinds = sorted(name for name in homes if name[0].isupper())
    parts = [HEAD, "## Functions\n", *(f"::: lpc.{name}" for name in verbs)]
    return "\n".join([*parts, "\n## Classes\n", *(f"::: lpc.{name}" for name in kinds)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)

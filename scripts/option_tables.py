"""Put a table of each options dataclass where a page of the documentation says ``<!-- options/NAME -->``.

    python scripts/option_tables.py

The table goes up to ``<!-- end of options -->``. A test holds pages and declarations together.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import exporters.options
import lpc.options
import passes.options
from passes.options import Option, alternatives, declared, main_type, texts_of

ROOMS = (passes.options, exporters.options, lpc.options)
DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"<!-- options/(\w+) -->\n.*?<!-- end of options -->", re.DOTALL)
TYPES = {bool: "yes or no", int: "whole number", float: "number", str: "text", Path: "path"}


def table(kind: type) -> str:
    """A line an option: name, flag, what it may be, default, what it does."""
    rows = [_row(option) for option in declared(kind)]
    lines = [["option", "flag", "value", "default", ""], ["---"] * 5, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _row(option: Option) -> list[str]:
    flag = f"`{option.flag}`".replace("/", "`, `") if option.facts.group is not None else ""
    short = f"**`{option.name}`**" if option.facts.common else f"`{option.name}`"
    return [short, flag, _value(option), _default(option.default), option.facts.help]


def _value(option: Option) -> str:
    if callable(option.facts.choices):
        return "name"
    texts = option.facts.allowed() or texts_of(option.type)
    if texts:
        return ", ".join(f"`{text}`" for text in texts)
    if float in alternatives(option.type) and str in alternatives(option.type):
        return "fraction of dense, or amount: a number or a text with its unit"
    kind = main_type(option.type)
    several = get_origin(kind) is tuple
    kind = get_args(kind)[0] if several else kind
    said = TYPES.get(kind, f"`{kind.__name__}`")
    return " ".join(part for part in (f"{said}s" if several else said, option.facts.range) if part)


def _default(default: Any) -> str:
    if default is MISSING:
        return "must be given"
    if default is None:
        return ""
    if is_dataclass(default):
        return f"`{type(default).__name__}()`"
    return f"`{default}`" if isinstance(default, bool | int | float | str | tuple) else f"`{default!s}`"


def filled(page: str) -> str:
    """The page with each block's table as the declarations are now."""

    def block(found: re.Match[str]) -> str:
        room = next(each for each in ROOMS if hasattr(each, found[1]))
        kind = getattr(room, found[1])
        return f"<!-- options/{found[1]} -->\n{table(kind)}\n<!-- end of options -->"

    return BLOCK.sub(block, page)


def main() -> None:
    """Fill the pages that have such blocks."""
    for path in DOCS.glob("*.md"):
        page = path.read_text(encoding="utf-8")
        if filled(page) != page:
            path.write_text(filled(page), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()

"""Put the tables of ``benchmarks/results`` where the documentation shows them.

    python benchmarks/tables_in_docs.py

A page says ``<!-- results/NAME.md -->``, then comes the file as it is, then ``<!-- end of results -->``. A test holds
pages and files together.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
BLOCK = re.compile(r"<!-- results/(\S+) -->\n.*?<!-- end of results -->", re.DOTALL)


def filled(page: str) -> str:
    """The page with each block's file as it is now."""

    def block(found: re.Match[str]) -> str:
        text = (HERE / "results" / found[1]).read_text().strip()
        return f"<!-- results/{found[1]} -->\n{text}\n<!-- end of results -->"

    return BLOCK.sub(block, page)


def main() -> None:
    """Fill the pages that have such blocks."""
    for path in (HERE.parent / "docs").glob("*.md"):
        page = path.read_text()
        if filled(page) != page:
            path.write_text(filled(page))
            print(path)


if __name__ == "__main__":
    main()

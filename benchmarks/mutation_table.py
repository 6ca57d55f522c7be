"""The table of planted faults, made of what ``benchmarks/mutations.py`` wrote.

    python benchmarks/mutation_table.py [benchmarks/results/mutations-MODEL.json ...]

writes it beside each file; ``benchmarks/tables_in_docs.py`` puts it into docs/trust.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def table(result: dict[str, Any]) -> str:
    """A row a pass: what it says where nothing is planted, the faults planted in it, and how many it caught."""
    rows = [row for row in result["rows"] if row["planted_in"]]
    clean = next(row for row in result["rows"] if not row["planted_in"])
    sound = dict(part.split(": ", 1) for part in clean["said"].split("; ")) if clean["caught_by"] is None else {}
    dtype = result["dtype"].removeprefix("torch.")
    caught = sum(row["caught_by"] == row["planted_in"] for row in rows)
    head = f"{result['model']}, {dtype}: {caught} of {len(rows)} planted faults caught by the pass they were planted in"
    lines = ["| pass | nothing planted | planted | caught there |", "|---|---|---|---:|"]
    for stage in dict.fromkeys(row["planted_in"] for row in rows):
        own = [row for row in rows if row["planted_in"] == stage]
        faults = "; ".join(row["fault"] for row in own)
        found = sum(row["caught_by"] == stage for row in own)
        lines.append(f"| {stage} | {sound.get(stage, 'refused')} | {faults} | {found} of {len(own)} |")
    return "\n".join([head, "", *lines])


def main() -> None:
    """Write the tables."""
    given = [Path(word) for word in sys.argv[1:]] or sorted(RESULTS.glob("mutations-*.json"))
    for path in given:
        text = table(json.loads(path.read_text(encoding="utf-8")))
        path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()

"""Tables of the quality benchmark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lpc.report import table

Row = Mapping[str, Any]
GRID_COLUMNS = (
    "one-shot",
    "one-shot, compensated",
    "one-shot, tuned",
    "one-shot, tuned, compensated",
    "one-shot, tuned, distilled",
    "one-shot, tuned, distilled, compensated",
    "progressive",
    "progressive, compensated",
    "progressive, distilled",
    "progressive, distilled, compensated",
)


def by_recipe(rows: Iterable[Row]) -> dict[tuple[str, float], list[Row]]:
    """The cells of each recipe and ratio."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row["key"]["recipe"], row["key"]["ratio"]), []).append(row)
    return found


def spread(rows: Sequence[Row]) -> str:
    """Held-out perplexity as mean (lowest–highest) over the seeds, with their number if it is not three."""
    values = [row["perplexity"] for row in rows]
    if not values:
        return ""
    text = f"{statistics.mean(values):.2f}"
    if len(values) > 1:
        text += f" ({min(values):.2f}–{max(values):.2f})"
    return text if len(values) == 3 else f"{text}, {len(values)} seed{'s' if len(values) > 1 else ''}"


def seconds(rows: Sequence[Row]) -> str:
    """Mean processor and wall seconds of a cell."""
    return f"{statistics.mean(r['cpu_seconds'] for r in rows):.0f} / {statistics.mean(r['seconds'] for r in rows):.0f}"


def recipes_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A line a recipe, a column a ratio."""
    cells, ratios = by_recipe(rows), sorted({row["key"]["ratio"] for row in rows})
    lines = []
    for name in names:
        own = [cells.get((name, ratio), []) for ratio in ratios]
        if any(own):
            lines.append([name, *(spread(each) for each in own), seconds([row for each in own for row in each])])
    return table(["recipe", *map(str, ratios), "seconds, processor / wall"], lines)


def half_range(rows: Sequence[Row]) -> str:
    """Held-out perplexity as mean ± half of the range over the seeds, with their number if it is not three."""
    values = [row["perplexity"] for row in rows]
    if len(values) < 2:
        return spread(rows)
    text = f"{statistics.mean(values):.2f} ±{(max(values) - min(values)) / 2:.2f}"
    return text if len(values) == 3 else f"{text}, {len(values)} seeds"


def grid_table(rows: Sequence[Row], criteria: Sequence[str]) -> str:
    """A line a criterion, a column a treatment, ± half of the range; the last line is the mean time of a cell."""
    cells = by_recipe(rows)
    columns = {column: [cells.get((f"{name}, {column}", 0.35), []) for name in criteria] for column in GRID_COLUMNS}
    lines = [[name, *(half_range(columns[column][i]) for column in GRID_COLUMNS)] for i, name in enumerate(criteria)]
    together = {column: [row for each in own for row in each] for column, own in columns.items()}
    lines.append(["seconds", *(seconds(rows) if rows else "" for rows in together.values())])
    return table(["criterion", *GRID_COLUMNS], lines)


def rises_table(rows: Sequence[Row], names: Sequence[str], dense: float) -> str:
    """The rise of log-perplexity over dense, in the mean over the seeds, and relative to both of the authors' runs."""
    cells, ratios = by_recipe(rows), sorted({row["key"]["ratio"] for row in rows})

    def rise(name: str, ratio: float) -> float:
        values = [math.log(row["perplexity"] / dense) for row in cells.get((name, ratio), [])]
        return statistics.mean(values) if values else math.nan

    lines = []
    for name in names:
        own = [rise(name, ratio) for ratio in ratios]
        parts = [[f"{mine:.3f}", *_shares(mine, ratio, rise)] for mine, ratio in zip(own, ratios, strict=True)]
        if not all(math.isnan(mine) for mine in own):
            lines.append([name, *("" if math.isnan(m) else " / ".join(p) for m, p in zip(own, parts, strict=True))])
    return table(["rise; of the authors'; of theirs at their rate", *map(str, ratios)], lines)


def _shares(mine: float, ratio: float, rise: Any) -> list[str]:
    shares = [mine / rise(name, ratio) for name in ("authors", "authors, own rate")]
    return ["–" if math.isnan(share) else f"{share:.2f}" for share in shares]

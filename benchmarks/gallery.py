"""The gallery of the documentation, from a sweep; what ``lpc evaluate`` added to its cells' reports is in it.

    lpc sweep docs/gallery/sweep.yaml --out OUT                       # an hour of two cores
    lpc evaluate OUT/CELL --tasks quick --task-data DIR               # each cell, where accuracies are wanted
    python benchmarks/gallery.py OUT                                  # writes docs/gallery

Of each cell the report (Markdown) and the card, of the sweep its report (HTML and Markdown) and its numbers, and one
picture, ``trade-off.svg``, for which ``pip install vl-convert-python``. Numbers are the files' own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import altair as alt

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
CARDS = {"report.md": "report.md", "hf/README.md": "card.md"}
SWEEP = ("report.html", "report.md", "sweep.json")


def main() -> None:
    """Copy the reports, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the output of lpc sweep")
    sweep: Path = parser.parse_args().sweep
    told = json.loads((sweep / "sweep.json").read_text())
    for name in SWEEP:
        copied(sweep, sweep / name, GALLERY / name)
    for cell in told["cells"]:
        if cell["outcome"]["state"] != "finished":
            print(f"{cell['name']}: {cell['outcome']['state']}, left out")
            continue
        for name, to in CARDS.items():
            place = GALLERY / cell["name"] / to
            place.parent.mkdir(exist_ok=True)
            copied(sweep, sweep / cell["name"] / name, place)
    picture(told["runs"], told["quality"]).save(GALLERY / "trade-off.svg")


def copied(sweep: Path, file: Path, to: Path) -> None:
    """The file, with the place of the sweep as its reader would have it."""
    text = file.read_text().replace(f"{sweep.resolve()}/", "out/").replace(f"{sweep.resolve().parent}/", "")
    to.write_text(text)


def picture(runs: list[dict[str, Any]], quality: str) -> Any:
    """Held-out quality against parameters, the dense model at the right end."""
    rows = [
        {"parameters": run["parameters"] / 1e6, quality: run["measures"][quality], "removed": f"−{run['ratio']:.0%}"}
        for run in runs
    ]
    rows = [{**row, "removed": "dense" if row["removed"] == "−0%" else row["removed"]} for row in rows]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("parameters:Q", title="parameters, millions", scale=alt.Scale(zero=False, nice=False, padding=30)),
        y=alt.Y(f"{quality}:Q", title=f"held-out {quality}", scale=alt.Scale(nice=False, type="log", padding=30)),
    )
    marks = base.mark_line(color="#3f51b5") + base.mark_point(color="#3f51b5", filled=True, size=60)
    return (marks + base.mark_text(dy=-12).encode(text="removed:N")).properties(
        width=480, height=260, background="white"
    )


if __name__ == "__main__":
    main()

"""The page: verdict, pictures, proofs and provenance, put into one HTML file with everything that it needs inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader

from lpc.report.page.verdict import lines, sentence
from lpc.report.render import compatibility_rows

if TYPE_CHECKING:
    from lpc.report.page.charts import Chart

SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
SHOWN_FILES = 40
SHOWN_ANSWERS = 4


def run_page(
    manifest: Mapping[str, Any],
    benchmark: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """``report.html`` of a run: of what the manifest holds and, where they are there, benchmark and evaluation.

    It loads nothing: style, scripts and data are inside. Every string that comes from a model or from data is escaped,
    by the template and, inside the data of pictures, as JSON that cannot end a script.
    """
    from lpc.report.page.charts import run_charts  # Altair takes a second, which no other command is to wait for

    name = _name(manifest["source"]["path"])
    return _page(
        "run.html.jinja",
        run_charts(manifest),
        title=f"{name}, compressed by lpc",
        name=name,
        manifest=manifest,
        sentence=sentence(manifest),
        lines=lines(manifest, benchmark, evaluation),
        proofs=[(step, f"{p['value']:.1e}", f"{p['tolerance']:.0e}") for step, p in manifest["parity"].items()],
        runtimes=compatibility_rows(manifest),
        words=_words(manifest),
        files=list((manifest.get("files") or {}).items())[:SHOWN_FILES],
        options=json.dumps(manifest.get("pipeline") or [], indent=1, default=str),
    )


def _words(manifest: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """Completions of held-out text, and the first answers of an instruction model."""
    answers = manifest.get("answers") or {"dense": [], "pruned": []}
    both = list(zip(answers["dense"], answers["pruned"], strict=True))[:SHOWN_ANSWERS]
    said = [{"prompt": dense["prompt"], "dense": dense["text"], "pruned": pruned["text"]} for dense, pruned in both]
    return [*((manifest.get("heldout") or {}).get("completions") or ()), *said]


def family_page(family: Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """``report.html`` of a family: its table, a row a model, and quality against each cost."""
    from lpc.report.page.charts import trade_offs

    name, members = _name(family["source"]), family["members"]
    ratios = ", ".join(f"{each['ratio']:g}" for each in members if each["ratio"])
    return _page(
        "family.html.jinja",
        trade_offs(family),
        title=f"{name}, a family by lpc",
        name=name,
        family=family,
        sentence=f"One run, a model at each of the ratios {ratios}, in {family['layout']} widths.",
        header=header,
        rows=rows,
        links={str(each["ratio"]): f"{each['folder']}/report.html" for each in members if each["ratio"]},
    )


def comparison_page(
    comparison: Mapping[str, Any],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    sentence: str = "Runs side by side; nothing was measured for this page.",
    links: Mapping[str, str] | None = None,
) -> str:
    """A page of runs side by side: their table and, where all measured one quality, that against each cost.

    ``links`` are those of rows, by their first cell.
    """
    from lpc.report.page.charts import trade_offs

    runs, quality = comparison["runs"], comparison["quality"]
    shared = [name for name in runs[0]["latency_ms"] if all(name in run["latency_ms"] for run in runs)]
    members = [{**run, "latency_ms": {name: run["latency_ms"][name] for name in shared}} for run in runs]
    pictures = trade_offs({"quality": quality, "members": members}) if quality is not None else []
    sources = list(dict.fromkeys(_name(run["source"]) for run in runs))
    return _page(
        "family.html.jinja",
        pictures,
        title=f"{', '.join(sources)}: runs compared by lpc",
        name=", ".join(sources),
        family={"source": ", ".join(dict.fromkeys(run["source"] for run in runs)), "family": f"{len(runs)} models"},
        sentence=sentence,
        header=header,
        rows=rows,
        links=links or {},
    )


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _page(template: str, pictures: Sequence[Chart], **values: Any) -> str:
    loader = FunctionLoader(_asset)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(
        pictures={picture.name: picture for picture in pictures},
        specs=_inert({picture.name: picture.spec for picture in pictures}),
        style=_asset("page.css"),
        scripts=[_asset(f"vega/{script}") for script in SCRIPTS],
        draw=_asset("draw.js"),
        **values,
    )


def _inert(values: Any) -> str:
    """JSON that is safe inside a script element: it has no character that HTML gives a meaning."""
    text = json.dumps(values, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _asset(name: str) -> str:
    return (files("lpc") / "assets" / "report" / name).read_text(encoding="utf-8")

"""The pictures of the report: Vega-Lite specifications by Altair, from what the manifest holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from lpc.report.front import pareto_front
from lpc.report.render import WORDS

ROW_PIXELS = 13
"""Of one layer in the picture of what stays."""
BAR_PIXELS = 20
SLIDE = 0.05
NAMED = 8
"""With more points than these only those on the front bear their names."""


@dataclass(frozen=True)
class Chart:
    """A picture with its caption; ``spec`` is Vega-Lite's JSON."""

    name: str
    caption: str
    spec: Mapping[str, Any]


def run_charts(manifest: Mapping[str, Any]) -> list[Chart]:
    """Every picture of a run for which there are numbers, in reading order."""
    return [*_kept(manifest), *_importance(manifest), *_course(manifest), *_stages(manifest)]


def trade_offs(family: Mapping[str, Any]) -> list[Chart]:
    """Quality against each cost of a family's models; a slider picks models."""
    return list(_trade_offs(family))


def words_of(width: str) -> str:
    """A width's name for people."""
    return " ".join(WORDS.get(word, word) for word in width.replace(".", "_").split("_"))


def _kept(manifest: Mapping[str, Any]) -> Iterator[Chart]:
    """Layers down, widths across, the kept share as colour."""
    rows = [
        {
            "layer": "all" if each["layer"] < 0 else str(each["layer"]),
            "width": words_of(each["width"]),
            "share": each["kept"] / each["dense"],
            "kept": f"{each['kept']:,} of {each['dense']:,}",
        }
        for each in manifest.get("dimensions", ())
    ]
    if not rows:
        return
    layers = len({row["layer"] for row in rows})
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("width:N", title=None, axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("layer:N", title="layer", sort=None),
        tooltip=[
            alt.Tooltip("layer:N"),
            alt.Tooltip("width:N"),
            alt.Tooltip("kept:N", title="kept"),
            alt.Tooltip("share:Q", format=".1%", title="share"),
        ],
    )
    scale = alt.Scale(domain=[0, 1], scheme="blues")
    marks = base.mark_rect().encode(color=alt.Color("share:Q", title="kept", scale=scale, legend=None))
    shade = alt.condition("datum.share > 0.6", alt.value("white"), alt.value("black"))
    marks = alt.layer(marks, base.mark_text(fontSize=9).encode(text=alt.Text("share:Q", format=".0%"), color=shade))
    yield _chart("kept", "What stays, layer by layer. Hover for numbers.", marks, height=max(layers * ROW_PIXELS, 60))


def _importance(manifest: Mapping[str, Any]) -> Iterator[Chart]:
    """A width a picture: the spread of its units' scores by layer, and the greatest score that went."""
    ranked = [each for each in manifest.get("dimensions", ()) if each.get("importance") and each["layer"] >= 0]
    for width in dict.fromkeys(each["width"] for each in ranked):
        rows = [_spread(each) for each in ranked if each["width"] == width]
        if any(row["middle"] <= 0 for row in rows):
            rows = [row for row in rows if row["middle"] > 0 and row["low"] > 0]
        if len(rows) < 2:
            continue
        base = alt.Chart(_data(rows)).encode(x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)))
        log = alt.Scale(type="log", nice=False)
        tips = [alt.Tooltip("layer:Q")]
        tips += [alt.Tooltip(f"{name}:Q", format=".2e") for name in ("low", "middle", "high", "cut")]
        band = base.mark_area(opacity=0.3).encode(
            y=alt.Y("low:Q", title="importance", scale=log, axis=alt.Axis(format=".0e", values=_powers(rows))),
            y2="high:Q",
        )
        line = base.mark_line(point=True).encode(y=alt.Y("middle:Q", scale=log), tooltip=tips)
        gone = [row for row in rows if row["cut"]]
        cut = (
            alt.Chart(_data(gone))
            .mark_point(shape="stroke", size=160, strokeWidth=2, color="#d1242f")
            .encode(x="layer:Q", y=alt.Y("cut:Q", scale=log), tooltip=tips)
        )
        caption = (
            f"Importance of {words_of(width)} by layer, on a logarithmic scale: the middle unit, the band from the "
            "tenth to the ninetieth percentile, and in red the most important unit that went."
        )
        yield _chart(f"importance-{width}", caption, alt.layer(band, line, *([cut] if gone else [])), height=200)


def _powers(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The powers of ten between the least and the greatest of the values; an axis with all its marks is unreadable."""
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _spread(dimension: Mapping[str, Any]) -> dict[str, Any]:
    """Of one layer: the tenth, fiftieth and ninetieth percentile of its scores, and the cut."""
    deciles: Sequence[float] = dimension["importance"]
    cut = dimension["cut"] if dimension["cut"] and dimension["cut"] > 0 else None
    return {
        "layer": dimension["layer"],
        "low": deciles[1] if deciles[1] > 0 else deciles[5],
        "middle": deciles[5],
        "high": deciles[9],
        "cut": cut,
    }


def _course(manifest: Mapping[str, Any]) -> Iterator[Chart]:
    """Tuning, step by step: the loss, the learning rate, how much of each width was there, and what came back."""
    report = next((p["report"] for p in manifest["passes"] if p["name"] == "tune" and p.get("report")), None)
    if not report or not report.get("losses"):
        return
    caption = "Training loss, in nats a token; with distillation its share is in it."
    yield _chart("loss", caption, _over_steps(report["losses"], "training loss"), height=200)
    if len(report.get("heldout") or ()) > 1:
        caption = "Loss on the held-out data while tuning."
        yield _chart("heldout", caption, _over_steps(report["heldout"], "held-out loss"), height=160)
    if len(report.get("rates") or ()) > 1:
        yield _chart("rate", "The learning rate.", _over_steps(report["rates"], "learning rate"), height=120)
    dense = {name: width["dense"] for name, width in manifest["widths"].items()}
    gone = [
        {"step": event["step"], "width": words_of(name), "share": kept / dense[name]}
        for event in report.get("events", ())
        for name, kept in event["widths"].items()
        if name in dense
    ]
    if len({row["step"] for row in gone}) < 2:
        return
    steps = alt.Chart(_data(gone)).mark_line(interpolate="step-after")
    steps = steps.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("share:Q", title="kept", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("width:N", title=None),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("width:N"), alt.Tooltip("share:Q", format=".1%")],
    )
    yield _chart("removed", "How much of each width was kept while tuning.", steps, height=160)
    back = [(event["step"], event["revived"]) for event in report["events"]]
    if any(count for _, count in back):
        caption = "Units that were masked and came back, at each event."
        yield _chart("revived", caption, _over_steps(back, "came back"), height=120)


def _over_steps(course: Sequence[Sequence[float]], title: str) -> alt.Chart:
    """A line over steps."""
    rows = [{"step": step, "value": value} for step, value in course]
    line: alt.Chart = alt.Chart(_data(rows)).mark_line(point=len(rows) < 40)
    return line.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4~g", title=title)],
    )


def _stages(manifest: Mapping[str, Any]) -> Iterator[Chart]:
    """Seconds and peak memory of each pass that took a second or more, else of the longest."""
    numbered = [
        {
            "stage": f"{place + 1}. {each['name']}{_stage(each)}",
            "place": place,
            "seconds": each["seconds"],
            "gib": each["peak_memory_bytes"] / 2**30,
        }
        for place, each in enumerate(manifest["passes"])
    ]
    longest = sorted(numbered, key=lambda row: float(row["seconds"]), reverse=True)[:5]
    rows = [row for row in numbered if row["seconds"] >= 1 or row in longest]
    if not rows:
        return
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y("stage:N", title=None, sort=alt.EncodingSortField("place")),
        tooltip=[
            alt.Tooltip("stage:N"),
            alt.Tooltip("seconds:Q", format=".1f"),
            alt.Tooltip("gib:Q", format=".2f", title="peak GiB"),
        ],
    )
    for name, field, title in (("seconds", "seconds", "seconds"), ("memory", "gib", "peak memory, GiB")):
        bars = base.mark_bar().encode(x=alt.X(f"{field}:Q", title=title))
        yield _chart(name, f"{title[0].upper()}{title[1:]}, by stage.", bars, height=len(rows) * BAR_PIXELS)


def _stage(record: Mapping[str, Any]) -> str:
    stage = record.get("options", {}).get("stage")
    return f" ({stage})" if stage else ""


def _trade_offs(family: Mapping[str, Any]) -> Iterator[Chart]:
    """Quality against cost, a point a member; a slider picks one."""
    quality = family["quality"]
    rows = [
        {
            "ratio": each["ratio"],
            "name": each.get("name") or (str(each["ratio"]) if each["ratio"] else "dense"),
            "quality": each["measures"][quality],
            "parameters": each["parameters"],
            "bytes": each["weight_bytes"],
            **{f"ms {name}": value for name, value in each["latency_ms"].items()},
        }
        for each in family["members"]
    ]
    costs = [("parameters", "parameters", "~s"), ("bytes", "weight bytes", "~s")]
    costs += [(f"ms {name}", f"ms, {name}", "~g") for name in family["members"][0]["latency_ms"]]
    for number, (field, title, form) in enumerate(costs):
        # Vega-Lite reads dots and brackets in a field's name as a path.
        plain = [{"cost": row[field], **{k: row[k] for k in ("ratio", "name", "quality")}} for row in rows]
        front = pareto_front({row["name"]: (row["cost"], row["quality"]) for row in plain}, quality)
        plain = [{**row, "front": row["name"] in front} for row in plain]
        most = math.ceil(max(row["ratio"] for row in rows) / SLIDE) * SLIDE
        slider = alt.binding_range(min=0, max=round(most, 2), step=SLIDE, name="removed share up to ")
        member = alt.param(name="ratio", value=round(most, 2), bind=slider)
        base = alt.Chart(_data(plain)).encode(
            x=alt.X("cost:Q", title=title, axis=alt.Axis(format=form), scale=alt.Scale(zero=False, padding=20)),
            y=alt.Y("quality:Q", title=f"held-out {quality}", scale=alt.Scale(zero=False, padding=20)),
            tooltip=[
                alt.Tooltip("name:N", title="member"),
                alt.Tooltip("cost:Q", title=title, format=",.4~g"),
                alt.Tooltip("quality:Q", title=quality, format=".4g"),
            ],
        )
        points = base.mark_point(filled=True, size=90).encode(
            opacity=alt.condition("datum.ratio <= ratio", alt.value(1), alt.value(0.2))
        )
        line = base.mark_line().transform_filter("datum.front")
        named = base if len(plain) <= NAMED else base.transform_filter("datum.front")
        chart = alt.layer(line, points, named.mark_text(dy=-12).encode(text="name:N")).add_params(member)
        caption = f"Held-out {quality} against {title}; the line joins those that no other beats in both."
        yield _chart(f"trade-{number}", caption, chart, height=240)


def _data(rows: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Data(values=rows)  # type: ignore[no-untyped-call]


def _chart(name: str, caption: str, chart: Any, *, height: Any) -> Chart:
    """As wide as the page lets it be."""
    spec = chart.properties(width="container", height=height).to_dict()
    return Chart(name, caption, {key: value for key, value in spec.items() if key != "config"})

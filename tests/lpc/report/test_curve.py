from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpc.report import Panel, Point, draw

SVG = "{http://www.w3.org/2000/svg}"
values = st.floats(1e-3, 1e12, allow_nan=False)
clouds = st.lists(st.tuples(values, values), min_size=1, max_size=6)


def parsed(panels: list[Panel], quality: str = "perplexity") -> ET.Element:
    return ET.fromstring(draw(panels, quality))


def points(*pairs: tuple[float, float]) -> tuple[Point, ...]:
    return tuple(Point(x, y, f"p{number}", dense=not number) for number, (x, y) in enumerate(pairs))


@settings(deadline=None)
@given(clouds=st.lists(clouds, min_size=1, max_size=5))
def test_all_points_of_all_panels_are_drawn_inside_the_picture(clouds: list[list[tuple[float, float]]]) -> None:
    root = parsed([Panel(f"cost {number}", points(*cloud)) for number, cloud in enumerate(clouds)])
    width, height = (float(root.get(name)) for name in ("width", "height"))
    groups = root.findall(f"{SVG}g")
    assert len(groups) == len(clouds)
    for cloud, group in zip(clouds, groups, strict=True):
        left, top = map(float, re.findall(r"-?[\d.]+", group.get("transform")))
        circles = group.findall(f"{SVG}circle")
        assert len(circles) == len(cloud)
        assert [circle.get("class") for circle in circles] == ["dense"] + ["point"] * (len(cloud) - 1)
        for circle in circles:
            assert 0 < left + float(circle.get("cx")) < width
            assert 0 < top + float(circle.get("cy")) < height
        line = group.find(f"{SVG}polyline").get("points").split()
        assert line == [f"{circle.get('cx')},{circle.get('cy')}" for circle in circles]


def test_costs_run_to_the_right_and_quality_up_in_proportion() -> None:
    root = parsed([Panel("ms", points((10, 5), (20, 7), (40, 6)))])
    x, y = ([float(each.get(name)) for each in root.iter(f"{SVG}circle")] for name in ("cx", "cy"))
    assert (x[2] - x[1]) / (x[1] - x[0]) == pytest.approx(2, abs=0.01)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(0.5, abs=0.01)
    assert x[0] < x[1]
    assert y[0] > y[1]


def test_ticks_are_round_and_stand_where_points_of_that_value_would() -> None:
    root = parsed([Panel("ms", points((100, 5), (200, 7), (150, 6)))])
    group = root.find(f"{SVG}g")
    labels = {t.text: float(t.get("x")) for t in group.findall(f"{SVG}text") if t.get("text-anchor") == "middle"}
    circles = [float(circle.get("cx")) for circle in group.findall(f"{SVG}circle")]
    assert [labels["100"], labels["200"], labels["150"]] == circles
    assert {"100", "150", "200", "ms"} <= labels.keys()


def test_names_and_axes_are_labelled_and_escaped() -> None:
    texts = [each.text for each in parsed([Panel("a < b & c", points((1, 2)))], "q & <r>").iter(f"{SVG}text")]
    assert {"a < b & c", "q & <r>", "p0"} <= set(texts)


def test_both_modes_have_colours_of_their_own() -> None:
    style = parsed([Panel("ms", points((1, 2)))]).find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for name in ("text", ".name", ".grid", ".axis", ".line", ".point", ".dense"):
        assert f"{name} {{" in light
        assert f"{name} {{" in dark


def test_nothing_to_draw_is_an_error() -> None:
    for panels in ([], [Panel("ms", ())]):
        with pytest.raises(ValueError, match="needs panels with points"):
            draw(panels, "perplexity")

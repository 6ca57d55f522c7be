"""A curve as SVG: one quality against several costs, a panel a cost. Plain text, readable on light and dark paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 340, 230
"""Of one panel with its axes, in pixels; panels stand in two columns."""
LEFT, RIGHT, TOP, BOTTOM = 44, 48, 20, 46
"""Room around a panel's plot."""
MARGIN = 0.12
"""Free room at each end of an axis, as a share of the values' range."""
TICKS = 5
"""At most that many intervals on an axis."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #444 }
.name { font-weight: 600; fill: #1f2328 }
.grid { stroke: #d8dee4 } .axis { stroke: #8c959f }
.line { fill: none; stroke: #0969da; stroke-width: 2 }
.point { fill: #0969da } .dense { fill: #fff; stroke: #0969da; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #b1bac4 } .name { fill: #f0f6fc }
  .grid { stroke: #30363d } .axis { stroke: #6e7681 }
  .line { stroke: #58a6ff } .point { fill: #58a6ff } .dense { fill: #0d1117; stroke: #58a6ff }
}
"""


@dataclass(frozen=True)
class Point:
    """A model: its cost, its quality, and what it is called. The dense one is drawn hollow."""

    x: float
    y: float
    name: str
    dense: bool = False


@dataclass(frozen=True)
class Panel:
    """The points over one cost, whose name with its unit stands at the axis."""

    cost: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class _Axis:
    """A linear map of values to pixels."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        """An axis with some room at both ends."""
        low, high = min(values), max(values)
        room = (high - low) * MARGIN or abs(high) * MARGIN or 1.0
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Round values on the axis: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        return [number * step for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def draw(panels: Sequence[Panel], quality: str) -> str:
    """The SVG file's text. ``quality`` names the vertical axis. Raises ValueError without panels or points."""
    if not panels or not all(panel.points for panel in panels):
        raise ValueError("a curve needs panels with points")
    columns = min(2, len(panels))
    width, height = columns * WIDTH, math.ceil(len(panels) / columns) * HEIGHT + TOP
    body = [line for place, panel in enumerate(panels) for line in _panel(panel, *divmod(place, columns))]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(quality)} against {escape(', '.join(panel.cost for panel in panels))}</title>",
            f"<style>{STYLE}</style>",
            f'<text class="name" x="8" y="16">{escape(quality)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, row: int, column: int) -> Iterator[str]:
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    x = _Axis.over([point.x for point in panel.points], left, right)
    y = _Axis.over([point.y for point in panel.points], bottom, top)
    yield f'<g transform="translate({column * WIDTH} {row * HEIGHT + TOP})">'
    for tick in y.ticks:
        yield f'<line class="grid" x1="{left}" x2="{right}" y1="{y.at(tick)}" y2="{y.at(tick)}"/>'
        yield f'<text x="{left - 6}" y="{y.at(tick) + 4}" text-anchor="end">{tick:.6g}</text>'
    yield f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    for tick in x.ticks:
        yield f'<line class="axis" x1="{x.at(tick)}" x2="{x.at(tick)}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text x="{x.at(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:.6g}</text>'
    middle = (left + right) / 2
    yield f'<text class="name" x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(panel.cost)}</text>'
    yield from _points(panel.points, x, y)
    yield "</g>"


def _points(points: Sequence[Point], x: _Axis, y: _Axis) -> Iterator[str]:
    places = " ".join(f"{x.at(point.x)},{y.at(point.y)}" for point in points)
    yield f'<polyline class="line" points="{places}"/>'
    cheapest, dearest = min(points, key=lambda point: point.x), max(points, key=lambda point: point.x)
    # Above a line that falls to the right, and above one that rises, there is room on opposite sides.
    side, shift = ("start", 7) if cheapest.y > dearest.y else ("end", -7)
    for point in points:
        kind, across, down = "dense" if point.dense else "point", x.at(point.x), y.at(point.y)
        yield f'<circle class="{kind}" cx="{across}" cy="{down}" r="4"/>'
        yield f'<text x="{across + shift:.1f}" y="{down - 6:.1f}" text-anchor="{side}">{escape(point.name)}</text>'

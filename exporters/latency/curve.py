"""Seconds as a function of a kept count: measured at a few counts, monotone, piecewise linear between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from passes.errors import DataError


@dataclass(frozen=True)
class Curve:
    """``seconds[i]`` at ``counts[i]`` units, both ascending; no units take no time.

    Below the first count the line through the first two points goes on, but not below 0: a block has a cost that does
    not go with its units, and saves it only by going as a whole. Raises DataError for points that are none.
    """

    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.counts or len(self.counts) != len(self.seconds):
            raise DataError(f"a curve needs as many seconds as counts, got {self.counts} and {self.seconds}")
        if self.counts[0] < 1 or any(left >= right for left, right in zip(self.counts, self.counts[1:], strict=False)):
            raise DataError(f"the counts of a curve must be positive and ascending, got {self.counts}")
        rising = all(left <= right for left, right in zip((0.0, *self.seconds), self.seconds, strict=False))
        if not rising or not self.seconds[-1] < float("inf"):
            raise DataError(f"the seconds of a curve must be finite and must not fall, got {self.seconds}")

    @classmethod
    def fitted(cls, measured: Mapping[int, float]) -> Curve:
        """The monotone curve nearest to what was measured, in least squares; noise below 0 is 0."""
        counts = tuple(sorted(measured))
        return cls(counts, tuple(isotonic([max(0.0, measured[count]) for count in counts])))

    def __call__(self, count: float) -> float:
        """Seconds at this count; beyond the last, those of the last."""
        if count <= 0:
            return 0.0
        if count >= self.counts[-1] or len(self.counts) == 1:
            return self.seconds[-1]
        right = max(1, bisect_left(self.counts, count))
        (x0, x1), (y0, y1) = self.counts[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return max(0.0, y0 + (y1 - y0) * (count - x0) / (x1 - x0))


def isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to ``values`` in least squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            before, more = pools.pop()
            mean, size = (before * more + mean * size) / (size + more), size + more
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]

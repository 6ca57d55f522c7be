"""XᵀX of many rows, a batch at a time: half of it is formed, since it is symmetric, and nothing as large beside it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from passes.algebra.products import add_upper, sums_in

BLOCK = 512
"""Columns whose products with all later ones are formed at a time."""


class Gram:
    """Sums over rows [width]: how many (``count``, []), their ``total`` [width], both fp64, and their ``products``.

    The products [width, width] are fp32 of values in half precision and of wide ones, else fp64.
    """

    def __init__(self, values: torch.Tensor) -> None:
        """Of rows [n, width]."""
        width, device = values.shape[1], values.device
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self._products = torch.zeros(width, width, dtype=sums_in(values.dtype, width), device=device)
        self.add(values)

    @property
    def width(self) -> int:
        """Of a row."""
        return len(self.total)

    @property
    def products(self) -> torch.Tensor:
        """Σ x xᵀ [width, width]; more rows may be added afterwards."""
        for above in self._blocks():
            self._products[above.stop :, above] = self._products[above, above.stop :].T
        return self._products

    def add(self, values: torch.Tensor) -> None:
        """Take in more rows [n, width]."""
        self.count += len(values)
        self.total += values.sum(0, dtype=torch.float32 if values.dtype.itemsize < 4 else torch.float64)
        add_upper(self._products, values, self._blocks())

    def second_moment(self, *, centred: bool) -> torch.Tensor:
        """XᵀX / n [width, width] in fp64, of the deviations from the mean if ``centred``."""
        count = self.count.clamp_min(1)
        moment, mean = self.products.double() / count, self.total / count
        return moment.sub_(torch.outer(mean, mean)) if centred else moment

    def _blocks(self) -> Iterator[slice]:
        many = -(-self.width // BLOCK)
        size = -(-self.width // many)
        return (slice(start, min(start + size, self.width)) for start in range(0, self.width, size))

"""Portions: a graph in parts, when what ranking it must hold at once would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from passes.criteria import least_over_ranks
from passes.graph import Dimension, PruningGraph

HOST_BYTES = 8 * 2**30
"""What statistics may take where free memory cannot be asked for reliably: in the host's."""


def room_on(device: torch.device) -> int:
    """Bytes that statistics may take: half of what is free on a CUDA device, else 8 GiB; the least of all ranks."""
    room = HOST_BYTES
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator holds and nobody uses is not free to the driver, but free to us.
        room = (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // 2
    return least_over_ranks(room, device)


def portions(graph: PruningGraph, held: Callable[[Dimension], int], room: int) -> tuple[PruningGraph, ...]:
    """The graph in as few runs of its dimensions as hold at most ``room`` bytes each, or one dimension that needs more.

    ``held`` says the bytes that ranking a dimension holds. The order of the dimensions stays.
    """
    found: list[list[Dimension]] = []
    taken = 0
    for dimension in graph.dimensions:
        needed = held(dimension)
        if not found or taken + needed > room:
            found.append([])
            taken = 0
        found[-1].append(dimension)
        taken += needed
    if len(found) <= 1:
        return (graph,)
    return tuple(replace(graph, dimensions=tuple(part)) for part in found)

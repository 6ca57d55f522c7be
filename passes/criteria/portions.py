"""Portions: a graph in parts, when what ranking it must hold at once would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from passes.graph import Dimension, PruningGraph
from passes.ranks import least_over_ranks

T = TypeVar("T")

HOST_BYTES = 8 * 2**30
"""What statistics may take where free memory cannot be asked for reliably: in the host's."""


HOST_WORK_BYTES = 2**28


def room_on(device: torch.device) -> int:
    """Bytes that statistics may take: half of what is free on a CUDA device, else 8 GiB; the least of all ranks."""
    room = HOST_BYTES
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator holds and nobody uses is not free to the driver, but free to us.
        room = (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // 2
    return least_over_ranks(room)


def room_to_work(device: torch.device) -> int:
    """Bytes that working on statistics may take beside them: half of what they leave free on a CUDA device, else
    256 MiB, since on a processor more at a time is not faster; the least of all ranks.
    """
    return room_on(device) if device.type == "cuda" else HOST_WORK_BYTES


def portions(graph: PruningGraph, held: Callable[[Dimension], int], room: int) -> tuple[PruningGraph, ...]:
    """The graph in as few runs of its dimensions as hold at most ``room`` bytes each, or one dimension that needs more.

    ``held`` says the bytes that ranking a dimension holds. The order of the dimensions stays.
    """
    found = runs(graph.dimensions, held, room)
    if len(found) <= 1:
        return (graph,)
    return tuple(replace(graph, dimensions=part) for part in found)


def runs(items: Sequence[T], held: Callable[[T], int], room: int) -> list[tuple[T, ...]]:
    """The items in as few runs as hold at most ``room`` bytes each, or one that needs more."""
    found: list[list[T]] = []
    taken = 0
    for item in items:
        needed = held(item)
        if not found or taken + needed > room:
            found.append([])
            taken = 0
        found[-1].append(item)
        taken += needed
    return [tuple(part) for part in found]

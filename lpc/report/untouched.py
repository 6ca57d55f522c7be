"""What of a model pruning cannot touch, in words."""

from __future__ import annotations

from passes.graph import Kind, PruningGraph


def untouched(graph: PruningGraph) -> dict[str, str]:
    """What nothing is removed from, and why."""
    sliced = set(graph.slices_of)
    rest = sum(graph.numel(name, {}) for name in graph.shapes if name not in sliced)
    share = rest / graph.parameters()
    if graph.of_kind(Kind.HIDDEN):
        return {**graph.untouched, "vocabulary": "all tokens stay"}
    others = f"the hidden size and the vocabulary stay ({share:.1%} of the parameters)"
    return {**graph.untouched, "embeddings, norms and the task's head": others}

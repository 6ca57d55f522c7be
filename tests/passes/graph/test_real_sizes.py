"""Well-known checkpoints are traced from their configurations alone: fast, and without memory for their weights."""

from __future__ import annotations

import threading
import time
from functools import lru_cache

import psutil
import pytest
import torch
from real_configs import REAL

from passes.graph import PruningGraph
from passes.trace import trace

GIB = 1 << 30
SECONDS = 10

# Layers, and the units of each width, as their authors publish them.
UNITS: dict[str, tuple[int, dict[str, int]]] = {
    "Llama-3.1-8B": (32, {"kv_groups": 8, "mlp_channels": 14336}),
    "Qwen2.5-7B": (28, {"kv_groups": 4, "mlp_channels": 18944}),
    "Qwen3-8B": (36, {"kv_groups": 8, "mlp_channels": 12288}),
    "Mistral-7B-v0.1": (32, {"kv_groups": 8, "mlp_channels": 14336}),
    "Gemma-2-9B": (42, {"kv_groups": 8, "mlp_channels": 14336}),
    "Phi-3-mini-4k": (32, {"kv_groups": 32, "mlp_channels": 8192}),
    "GPT-2-XL": (48, {"kv_groups": 25, "mlp_channels": 6400}),
    "Pythia-6.9B": (32, {"kv_groups": 32, "mlp_channels": 16384}),
    "OPT-6.7B": (32, {"kv_groups": 32, "mlp_channels": 16384}),
    "Falcon-7B": (32, {"query_heads": 71, "mlp_channels": 18176}),
    "Mixtral-8x7B": (32, {"kv_groups": 8, "experts": 8, "expert_channels": 14336}),
    "BERT-large-uncased": (24, {"kv_groups": 16, "mlp_channels": 4096}),
    "ViT-L/16": (24, {"kv_groups": 16, "mlp_channels": 4096}),
}

# Bytes a token of context in bf16: 2 (key and value) x 2 bytes x layers x KV heads x head size; encoders have none.
KV_CACHE = {
    "Llama-3.1-8B": 2 * 2 * 32 * 8 * 128,
    "Qwen2.5-7B": 2 * 2 * 28 * 4 * 128,
    "Qwen3-8B": 2 * 2 * 36 * 8 * 128,
    "Mistral-7B-v0.1": 2 * 2 * 32 * 8 * 128,
    "Gemma-2-9B": 2 * 2 * 42 * 8 * 256,
    "Phi-3-mini-4k": 2 * 2 * 32 * 32 * 96,
    "GPT-2-XL": 2 * 2 * 48 * 25 * 64,
    "Pythia-6.9B": 2 * 2 * 32 * 32 * 128,
    "OPT-6.7B": 2 * 2 * 32 * 32 * 128,
    "Falcon-7B": 2 * 2 * 32 * 1 * 64,
    "Mixtral-8x7B": 2 * 2 * 32 * 8 * 128,
    "BERT-large-uncased": 0,
    "ViT-L/16": 0,
}


class Growth(threading.Thread):
    """How far resident memory rises above where it was, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process, self._over = psutil.Process(), threading.Event()
        self._start = self._peak = int(self._process.memory_info().rss)

    def run(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, int(self._process.memory_info().rss))

    def stop(self) -> int:
        self._over.set()
        self.join()
        return max(self._peak, int(self._process.memory_info().rss)) - self._start


@lru_cache
def measured(name: str) -> tuple[PruningGraph, float, int]:
    """The graph of a checkpoint, and the seconds and the bytes that its trace took."""
    model_class, config, _ = REAL[name]
    growth = Growth()
    growth.start()
    start = time.perf_counter()
    graph = trace(config(), torch.bfloat16, model_type=model_class)
    return graph, time.perf_counter() - start, growth.stop()


@pytest.mark.parametrize("name", REAL)
def test_a_well_known_checkpoint_is_traced_in_seconds_without_its_weights(name: str) -> None:
    _, _, parameters = REAL[name]
    graph, seconds, grown = measured(name)
    assert seconds < SECONDS
    assert grown < GIB
    cost = graph.cost()
    assert (cost.parameters, cost.weight_bytes, cost.kv_cache_bytes) == (parameters, 2 * parameters, KV_CACHE[name])
    check_units(name, graph)


def check_units(name: str, graph: PruningGraph) -> None:
    layers, units = UNITS[name]
    assert {width.name: width.size for width in graph.widths} == units
    for width, size in units.items():
        found = graph.of_width(width)
        lanes = units["experts"] if width == "expert_channels" else 1
        assert len(found) == layers * lanes
        assert {dimension.size for dimension in found} == {size}
        assert sorted({dimension.layer for dimension in found}) == list(range(layers))


def test_the_memory_that_a_trace_may_take_is_really_measured() -> None:
    growth = Growth()
    growth.start()
    tensor = torch.ones(GIB // 8)
    grown = growth.stop()
    assert tensor.numel() * 4 == GIB // 2
    assert grown > GIB // 4


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "GPT-2-XL", "Mixtral-8x7B", "Falcon-7B"])
def test_half_of_the_mlp_of_a_well_known_checkpoint_is_counted_as_on_paper(name: str) -> None:
    _, config, parameters = REAL[name]
    values, (layers, units) = config(), UNITS[name]
    graph, _, _ = measured(name)
    width = "expert_channels" if "experts" in units else "mlp_channels"
    half = graph.parameters(graph.uniform({width: units[width] // 2}))
    matrices = {"Llama-3.1-8B": 3, "Mixtral-8x7B": 3}.get(name, 2)  # gate, up and down; else up and down
    biases = 1 if name == "GPT-2-XL" else 0
    a_unit = matrices * values.hidden_size + biases
    assert parameters - half == layers * units.get("experts", 1) * (units[width] // 2) * a_unit

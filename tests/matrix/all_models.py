"""Every model type of transformers: right, or refused with the reason, or wrong.

    python tests/matrix/all_models.py [--mapping causal masked ...] [--only TYPE ...] [--again] [--seconds 120]

A tiny model of each class in transformers' mappings is built from its default configuration, described or discovered,
cut by random plans and loaded again, each in a process of its own. What is done is kept in
``benchmarks/out/all_models.json`` (it begins with the last results), so an interrupted run goes on. At the end
``benchmarks/results/all_models.json`` and ``docs/families.md`` are written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for place in (ROOT, ROOT / "tests", ROOT / "tests" / "passes", ROOT / "tests" / "matrix"):
    sys.path.insert(0, str(place))

import torch
import transformers
from matrix_page import page
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from passes.discovery import describe, random_model, small_model
from passes.errors import LpcError, UnsupportedModelError
from passes.families import FAMILIES, Family
from passes.graph import PruningGraph
from passes.models import Probe, count_parameters, masked, respond, twin_of, vendor
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

OUT = ROOT / "benchmarks" / "out" / "all_models.json"
RESULTS = ROOT / "benchmarks" / "results" / "all_models.json"
FAMILIES_RESULTS = ROOT / "benchmarks" / "results" / "families.json"
FAMILIES_PAGE = ROOT / "docs" / "families.md"
PLANS, SEED, TOLERANCE = 4, 17, 5e-5

MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "feature-extraction": "MODEL_MAPPING",
}

ROUTED = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
USUAL: dict[str, Any] = {
    "vocab_size": 160, "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
"""What entries may be that a default configuration leaves open."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "bamba": {"attn_layer_indices": [1]},
}
"""What published models of a type have, and its default configuration lacks."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``state``: right, refused, wrong or crashed. ``worst``: the largest relative difference of all plans.
    ``seconds``: of processor time.

    ``goes``: [dense, least] units a width with the stock class, or with a modelling file where that is less.
    """

    mapping: str
    model_type: str
    model_class: str
    state: str
    reason: str = ""
    discovered: bool = False
    worst: float = 0.0
    goes: dict[str, list[int]] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def classes() -> list[tuple[str, str, str]]:
    """Mapping, model type and class name of every class."""
    found = []
    for mapping, names in MAPPINGS.items():
        for model_type, entry in vendor.names_by_model_type(names).items():
            found.append((mapping, model_type, entry if isinstance(entry, str) else entry[0]))
    return found


def outcome(mapping: str, model_type: str, name: str) -> Outcome:
    """What becomes of a tiny model of one class."""
    start = time.process_time()
    known: dict[str, Any] = {"mapping": mapping, "model_type": model_type, "model_class": name}
    try:
        kind = class_named(name)
        config = completed(kind, default_config(kind, model_type))
        tiny, _ = small_model(kind, config)
        family = describe(tiny, kind)
        worst, graph = checked(random_model(kind, tiny, seed=SEED))
    except LpcError as error:
        return Outcome(**known, state="refused", reason=str(error), seconds=time.process_time() - start)
    except AssertionError as error:
        return Outcome(**known, state="wrong", reason=str(error), seconds=time.process_time() - start)
    return Outcome(
        **known,
        state="right",
        discovered=model_type not in FAMILIES,
        worst=worst,
        goes={w.name: [w.size, w.counts[0]] for w in graph.widths},
        fixed=fixed(family),
        seconds=time.process_time() - start,
    )


def class_named(name: str) -> type[PreTrainedModel]:
    """A class of transformers. Raises UnsupportedModelError if it is in a mapping, and nowhere else."""
    kind: type[PreTrainedModel] | None = getattr(transformers, name, None)
    if kind is None:
        raise UnsupportedModelError(f"{name} cannot be built from this configuration: transformers has no such class")
    return kind


def default_config(kind: type[PreTrainedModel], model_type: str) -> PreTrainedConfig:
    """The configuration that a class has by default. Raises UnsupportedModelError if that is none."""
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[model_type](**PUBLISHED.get(model_type, {}))
        wanted: Any = kind.config_class
        return config if isinstance(config, wanted) else wanted()
    except Exception as error:
        raise UnsupportedModelError(f"{kind.__name__} cannot be built from this configuration: {error}") from error


def completed(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """A default configuration with what it leaves open, where no model can be built without."""
    values = config.to_dict()
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    size = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else None
    kv, pad = {"num_key_value_heads": heads}, {"pad_token_id": 0}
    depth = values.get("num_hidden_layers")
    layers = ["full_attention"] * depth if isinstance(depth, int) else None
    usual = {**kv, **pad, **USUAL, "head_dim": size, "layer_types": layers}
    open_ones = {name: value for name, value in usual.items() if values.get(name, value) is None}
    routed = {name: value for name, value in ROUTED.items() if values.get(name, value) is None}
    for more in ({}, kv, pad, {**kv, **pad}, {**kv, **pad, "head_dim": size}, open_ones):
        try:
            found = type(config).from_dict({**config.to_dict(), **routed, **more})
            twin_of(kind, found)
        except Exception:  # noqa: BLE001 - whatever a class raises for what is missing
            continue
        return found
    return config


def fixed(family: Family) -> dict[str, str]:
    return dict(family.fixed)


def checked(model: PreTrainedModel) -> tuple[float, PruningGraph]:
    """The worst difference of a few plans, half of them with the stock class alone. Raises AssertionError if wrong."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graphs = [
        trace(model.config, torch.float32, model_type=type(model), options=TraceOptions(custom_code=free))
        for free in (True, False)
    ]
    probe, worst = Probe.of(model, seed=SEED), 0.0
    generator = torch.Generator().manual_seed(SEED)
    for number in range(PLANS):
        graph = graphs[number % 2]
        kept = random_plan(graph, generator)
        masks = {d.name: torch.zeros(d.size, dtype=torch.bool).index_fill(0, torch.tensor(kept[d.name]), True)
                 for d in graph.dimensions}  # fmt: skip
        with masked(model, graph, masks):
            wanted = respond(model, probe)
        compact = build_compact(model, graph, kept)
        left = graph.parameters({name: len(units) for name, units in kept.items()})
        assert count_parameters(compact) == left, f"{count_parameters(compact)} parameters are left, not {left}"
        value = respond(compact, probe).compare("cut", wanted, TOLERANCE).value
        assert value <= TOLERANCE, f"plan {number}: the cut model differs by {value:.1e}"
        worst = max(worst, value)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert not changed, f"the original model was changed: {changed[:1]}"
    return worst, graphs[0]


def random_plan(graph: PruningGraph, generator: torch.Generator) -> dict[str, list[int]]:
    def chosen(count: int, size: int) -> list[int]:
        found: list[int] = torch.randperm(size, generator=generator)[:count].sort().values.tolist()
        return found

    counts = {
        w.name: w.counts[int(torch.randint(0, max(1, len(w.counts) - 1), (1,), generator=generator))]
        for w in graph.widths
    }
    return {d.name: chosen(counts[d.width], d.size) for d in graph.dimensions}


def apart(mapping: str, model_type: str, name: str, seconds: int) -> Outcome:
    """The outcome, found in a child process that may take so long."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            try:
                text = json.dumps(asdict(outcome(mapping, model_type, name)))
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is this class's outcome
                where = traceback.extract_tb(error.__traceback__)[-1]
                reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                text = json.dumps(asdict(Outcome(mapping=mapping, model_type=model_type, model_class=name,
                                                 state="crashed", reason=reason)))  # fmt: skip
            Path(file.name).write_text(text)
            os._exit(0)
        os.waitpid(child, 0)
        text = Path(file.name).read_text()
    if not text:
        reason = f"it took more than {seconds} s of CPU time"
        return Outcome(mapping=mapping, model_type=model_type, model_class=name, state="refused", reason=reason,
                       seconds=seconds)  # fmt: skip
    return Outcome(**json.loads(text))


def finish(done: dict[str, Any]) -> None:
    """Write the results, in the order of the mappings, and the page."""
    ordered = [f"{mapping} {model_type}" for mapping, model_type, _ in classes()]
    results = {key: done[key] for key in ordered if key in done}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    FAMILIES_PAGE.write_text(page(json.loads(FAMILIES_RESULTS.read_text()), results))


def main() -> None:
    """Fill in what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mapping", nargs="*", default=list(MAPPINGS), choices=MAPPINGS)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--state", nargs="*", default=[], help="with --again: only those that came out so")
    parser.add_argument("--seconds", type=int, default=120)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    begun = next((path for path in (OUT, RESULTS) if path.is_file()), None)
    done: dict[str, Any] = json.loads(begun.read_text()) if begun else {}
    for mapping, model_type, name in classes():
        key = f"{mapping} {model_type}"
        wanted = mapping in arguments.mapping and (not arguments.only or model_type in arguments.only)
        had = done.get(key)
        again = arguments.again and (not arguments.state or (had or {}).get("state") in arguments.state)
        if not wanted or (had is not None and not again):
            continue
        found = apart(mapping, model_type, name, arguments.seconds)
        done = {**(json.loads(OUT.read_text()) if OUT.is_file() else done), key: asdict(found)}
        OUT.write_text(json.dumps(done, indent=1))
        text = f"worst {found.worst:.0e} {found.goes} {found.fixed}" if found.state == "right" else found.reason
        print(f"{key} {found.state} {found.seconds:.0f}s: {text}"[:400], flush=True)
    finish(done)


if __name__ == "__main__":
    main()

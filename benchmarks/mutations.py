"""Plants faults in every pass that must preserve something, and shows that the pass itself catches them.

    python benchmarks/mutations.py MODEL [--dtype bfloat16] [--out FILE]

MODEL is a folder of a causal language model. It wears a random adapter, loses a fifth of its KV groups and MLP channels
by a random plan, and is merged, cut and saved, once as it should be and once for each fault of ``MUTATIONS``. Prints a
table and writes JSON (default: ``benchmarks/results/mutations.json``); exits 1 unless each fault is caught where it is
planted. ``tests/passes/pipeline/test_mutations.py`` runs the same table on a tiny model in three dtypes.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parent))

import torch
from peft.tuners.lora import LoraModel
from planting import (
    Plant,
    Site,
    in_config,
    in_cut,
    in_file,
    in_layer,
    in_merged,
    in_model,
    nudge,
    other_kept,
    patched,
    swap,
    wrong_graph,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

import passes.shrink.shrink
import passes.tuning.merge
from exporters.hf import SavePass
from passes.errors import LpcError
from passes.graph import Plan
from passes.models import fingerprint
from passes.models.adapter import lora_layers
from passes.options import LoraOptions
from passes.pipeline import Pass, PassResult, Pipeline, Program, RunContext
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, MergePass

RESULTS = Path(__file__).parent / "results" / "mutations.json"


@dataclass(frozen=True)
class Mutation:
    """A fault, the pass in which it is planted, which must catch it, and what of the model it needs."""

    stage: str
    name: str
    plant: Plant
    fits: Callable[[Site], bool] = lambda site: True


def _swapped_everywhere(model: PreTrainedModel, site: Site, before: Program) -> None:
    for part in site.mlp.slices:
        swap(model.get_parameter(part.parameter), part.axis)


def _stale(model: PreTrainedModel, site: Site, before: Program) -> None:
    model.config.intermediate_size = before.model.config.intermediate_size


def _attribute(model: PreTrainedModel, site: Site, before: Program) -> None:
    model.get_submodule(site.key.rpartition(".")[0].rpartition(".")[0]).num_key_value_groups += 1


def _not_zero(model: Any, site: Site, before: Program) -> None:
    layer = lora_layers(model)[site.up.removesuffix(".weight")]
    layer.lora_B["default"].weight.data[0, 0] = 1e-6


def _skipped(layer: Any, original: Any) -> Callable[..., None]:
    return lambda *args, **kwargs: layer.merged_adapters.append("default")


def _head(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    return tensor.roll(next(part for part in site.heads.slices if part.parameter == site.key).width, 0)


MUTATIONS = (
    Mutation("attach", "an adapter that is not zero", in_model("attach", _not_zero)),
    Mutation("attach", "one channel of one layer swapped", in_model("attach", lambda model, site, _: swap(
        lora_layers(model)[site.up.removesuffix(".weight")].get_base_layer().weight))),
    Mutation("merge", "a wrong LoRA scaling", in_layer(
        "get_delta_weight", lambda self, delta: lambda *a: 2 * delta(self, *a))),
    Mutation("merge", "the scaling of one layer set", in_layer("merge", lambda self, merge: lambda **k: (
        self.scaling.update(default=1.5 * self.scaling["default"]), merge(self, **k))[1])),
    Mutation("merge", "one adapter not merged", in_layer("merge", _skipped)),
    Mutation("merge", "one adapter passed over", in_layer("merge", lambda self, _: lambda **k: None)),
    Mutation("merge", "one channel of one layer swapped", in_merged(lambda weight: swap(weight))),
    Mutation("merge", "one bit of one weight", in_merged(lambda weight: nudge(weight))),
    Mutation("merge", "a tensor without adapter changed",
             lambda site: _nudged_on_the_way(passes.tuning.merge, "check_sum")),
    Mutation("merge", "one wrapper left on", lambda site: _left_on(site)),
    Mutation("shrink", "one channel of one layer swapped", in_model("shrink", lambda model, site, _: swap(
        model.get_parameter(site.up)))),
    Mutation("shrink", "two channels swapped in all their tensors", in_model("shrink", _swapped_everywhere)),
    Mutation("shrink", "one channel in place of its neighbour", other_kept("mlp")),
    Mutation("shrink", "one head in place of its neighbour", other_kept("heads")),
    Mutation("shrink", "one head off by one", in_cut(lambda site: site.key, _head)),
    Mutation("shrink", "a bias not cut", in_cut(lambda site: site.bias, lambda tensor, _: tensor.roll(1, 0)),
             lambda site: site.bias is not None),
    Mutation("shrink", "one bit of one weight", in_model("shrink", lambda model, site, _: nudge(
        model.get_parameter(site.down)))),
    Mutation("shrink", "one bit of a tensor that is not cut", lambda site: _nudged_on_the_way(
        passes.shrink.shrink, "build_compact")),
    Mutation("shrink", "a stale config entry", in_model("shrink", _stale)),
    Mutation("shrink", "an entry of the config that has nothing to do with it", in_model(
        "shrink", lambda model, _, __: setattr(model.config, "rms_norm_eps", 2 * model.config.rms_norm_eps))),
    Mutation("shrink", "a stale attribute of one module", in_model("shrink", _attribute)),
    Mutation("shrink", "a graph that takes one layer for another", wrong_graph),
    Mutation("save", "one channel of one layer swapped", in_file(lambda site: site.up, swap)),
    Mutation("save", "one bit of one weight", in_file(lambda site: site.norm, nudge)),
    Mutation("save", "a stale config entry", in_config(lambda _, site: {"intermediate_size": site.mlp.size})),
    Mutation("save", "an entry of the config that has nothing to do with it", in_config(
        lambda values, _: {"rms_norm_eps": 2 * values["rms_norm_eps"]})),
)  # fmt: skip


def _nudged_on_the_way(module: Any, function: str) -> Any:
    """One bit of a norm changes while a pass does its work."""
    original = getattr(module, function)

    def nudging(*args: Any) -> Any:
        if _NORM:
            nudge(_NORM.pop())
        return original(*args)

    return patched(module, function, nudging)


_NORM: list[torch.Tensor] = []
"""The norm of the run that is on its way."""


def _left_on(site: Site) -> Any:
    original = LoraModel._replace_module

    def replace_module(self: Any, parent: Any, name: str, new: Any, child: Any) -> None:
        if getattr(child, "planted", None) != site.up.removesuffix(".weight"):
            original(self, parent, name, new, child)

    return patched(LoraModel, "_replace_module", replace_module)


@dataclass(frozen=True)
class Trained(Pass):
    """In place of tuning: a random adapter, and a random plan that keeps four fifths of each width."""

    name: ClassVar[str] = "trained"
    seed: int = 0

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Set adapter, plan and masks."""
        generator, graph = torch.Generator().manual_seed(self.seed), program.traced
        for name, layer in lora_layers(program.model).items():
            layer.planted = name
            weight = layer.lora_B["default"].weight
            weight.data.copy_(0.02 * torch.randn(weight.shape, generator=generator))
        chosen = random.Random(self.seed)
        counts = {width.name: max(c for c in width.counts if c <= 0.8 * width.size) for width in graph.widths}
        kept = {d.name: tuple(sorted(chosen.sample(range(d.size), counts[d.width]))) for d in graph.dimensions}
        plan = Plan(
            source=fingerprint(program.model),
            family=graph.family,
            budget={"parameters": 0.8},
            source_parameters=graph.parameters(),
            target_parameters=graph.parameters(kept),
            kept=kept,
        )
        return PassResult(replace(program, plan=plan, masks=plan.masks(graph)).expecting_itself(), modified=True)


def start(model: PreTrainedModel) -> Program:
    """The traced program of a model, which is used up."""
    return TracePass()(Program.start(model)).program


def merged(program: Program) -> Program:
    """A traced program with its adapter merged, ready to be cut as often as is wanted."""
    return Pipeline([*FIRST, MergePass()])(program).program


FIRST = (AttachPass(LoraOptions(rank=8, alpha=16)), Trained())


def run(program: Program, mutation: Mutation | None = None) -> tuple[str | None, str]:
    """The pass that failed, or None, and what it said; without a mutation, the worst numbers.

    A traced program is run from attaching on and is used up, a merged one from cutting on.
    """
    site = Site.of(program.traced)
    _NORM[:] = [program.model.get_parameter(site.norm)]
    planted = mutation.plant(site) if mutation else nullcontext()
    with tempfile.TemporaryDirectory() as folder, planted:
        before = () if program.plan else (*FIRST, MergePass())
        try:
            done = Pipeline([*before, ShrinkPass(), SavePass(Path(folder))])(program).program
        except LpcError as error:
            note = next(note for note in error.__notes__ if note.startswith("failing pass: "))
            return note.removeprefix("failing pass: ").partition(";")[0], str(error)
    return None, "; ".join(str(parity) for record in done.history for parity in record.parity)


def main() -> int:
    """Run the table on a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto", help="the dtype to load the weights in (default: that of the file)")
    parser.add_argument("--only", nargs="*", help="the stages to plant in (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.getLogger("passes").setLevel(logging.ERROR)

    def load() -> PreTrainedModel:
        found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype)
        return found.eval()

    ready = merged(start(load()))
    site, dtype, rows = Site.of(ready.traced), str(ready.model.dtype), []
    for mutation in (None, *MUTATIONS):
        wanted = mutation is None or not arguments.only or mutation.stage in arguments.only
        if not wanted or (mutation is not None and not mutation.fits(site)):
            continue
        began = time.perf_counter()
        again = mutation is None or mutation.stage in ("shrink", "save")
        caught, said = run(ready if again else start(load()), mutation)
        stage, name = (mutation.stage, mutation.name) if mutation else (None, "nothing planted")
        row = {"planted_in": stage, "fault": name, "caught_by": caught, "seconds": time.perf_counter() - began}
        rows.append({**row, "said": said})
        print(f"| {stage or '–'} | {name} | {caught or '–'} | {said} |", flush=True)
    missed = [row for row in rows if row["planted_in"] != row["caught_by"]]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"model": Path(arguments.model).name, "dtype": dtype, "missed": len(missed), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{len(rows) - 1 - len(missed)} of {len(rows) - 1} faults caught in {dtype} by the pass they were planted in")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

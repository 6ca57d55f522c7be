"""Compensation done by hand: least squares on activations of whole forward passes, and what its tests share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
import zoo
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from workbench import build_model, planned, random_units, unit_indices

from passes.compensation import CompensatePass
from passes.compensation.compensate import CompensateReport
from passes.options import CompensateOptions, TraceOptions
from passes.pipeline import PassResult, Program
from passes.trace import TracePass


class Padded(Dataset[dict[str, torch.Tensor]]):
    """Rows of 12 random tokens, of which every other one is padded on the left."""

    def __init__(self, count: int = 24) -> None:
        self.ids = torch.randint(0, 256, (count, 12), generator=torch.Generator().manual_seed(2))
        self.mask = torch.ones_like(self.ids)
        self.mask[::2, :5] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": self.ids[index]}


DATA = Padded()


PLAIN = CompensateOptions(residual=False, guard=False)  # the loss of a random model on random labels says nothing


EXACT = replace(PLAIN, ridge=0.0, batch_size=5)


def compensated(program: Program, options: CompensateOptions = EXACT, **arguments: bool) -> PassResult:
    return CompensatePass(DATA, options, **arguments)(program)


def report_of(result: PassResult) -> CompensateReport:
    assert isinstance(result.report, CompensateReport)
    return result.report


@torch.no_grad()
def gathered(model: PreTrainedModel, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a module reads and gives on all real tokens, in one whole forward pass; fp64."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, i, o: found.extend((i[0], o)))
    model(input_ids=DATA.ids, attention_mask=DATA.mask)
    handle.remove()
    inputs, outputs = (tensor[DATA.mask.bool()].double() for tensor in found)
    return inputs, outputs


def stream_at(model: PreTrainedModel, path: str) -> torch.Tensor:
    """The residual stream that a Llama adds the projection's output to: what the norm before its block reads."""
    layer, leaf = path.rsplit(".", 2)[0], path.rpartition(".")[2]
    norm = "input_layernorm" if leaf == "o_proj" else "post_attention_layernorm"
    return gathered(model, f"{layer}.{norm}")[0]


def solve_by_hand(
    dense: PreTrainedModel, places: Sequence[tuple[str, list[int]]], axis: int, *, residual: bool = False
) -> PreTrainedModel:
    """A copy of ``dense`` without the inputs that are not kept, each place solved by lstsq, in the order given."""
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        for path, kept in places:
            weight = pruned.get_submodule(path).weight
            gone = torch.tensor(sorted(set(range(weight.shape[axis])) - set(kept)))
            weight.index_fill_(axis, gone, 0.0)
    for path, kept in places:
        inputs, _ = gathered(pruned, path)
        _, target = gathered(dense, path)
        if residual:
            target = target + stream_at(dense, path) - stream_at(pruned, path)
        module, inputs = pruned.get_submodule(path), inputs[:, kept]
        bias = getattr(module, "bias", None)
        with torch.no_grad():
            if bias is not None:
                inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
            solution = torch.linalg.lstsq(inputs, target).solution.float()
            if bias is not None:
                bias.copy_(solution[-1])
                solution = solution[:-1]
            module.weight[(slice(None), kept) if axis == 1 else (kept,)] = solution.T if axis == 1 else solution
    return pruned


def llama_places(program: Program, kept: dict[str, tuple[int, ...]]) -> list[tuple[str, list[int]]]:
    places = []
    for index in range(program.model.config.num_hidden_layers):
        for name, kind in (("self_attn.o_proj", "kv_groups"), ("mlp.down_proj", "mlp_channels")):
            units = kept[f"layers.{index}.{kind}"]
            leaf = name.rpartition(".")[2]
            columns = [i for unit in units for i in unit_indices(program.model.config, leaf, unit)]
            places.append((f"model.layers.{index}.{name}", columns))
    return places


def gpt2_places(program: Program, kept: dict[str, tuple[int, ...]]) -> list[tuple[str, list[int]]]:
    places = []
    for index in range(2):
        heads, channels = (kept[f"layers.{index}.{kind}"] for kind in ("kv_groups", "mlp_channels"))
        places.append((f"transformer.h.{index}.attn.c_proj", [4 * head + i for head in heads for i in range(4)]))
        places.append((f"transformer.h.{index}.mlp.c_proj", list(channels)))
    return places


def prepared(family: str) -> tuple[Program, PreTrainedModel, list[tuple[str, list[int]]], int]:
    """A program under masks, its dense twin, the consuming projections with their kept inputs, and the input axis."""
    model = build_model("llama") if family == "llama" else zoo.build("gpt2")
    dense, program = copy.deepcopy(model), TracePass(TraceOptions(custom_code=True))(Program.start(model)).program
    kept = random_units(program.traced, {"kv_groups": 2 if family == "llama" else 4, "mlp_channels": 24}, seed=3)
    places = (llama_places if family == "llama" else gpt2_places)(program, kept)
    return planned(program, kept), dense, places, 1 if family == "llama" else 0

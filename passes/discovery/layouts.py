"""Attention layouts that fit a model's modules, by the names, shapes and attributes of what they hold.

Nothing here is believed: what fits is a candidate, and a proof (``passes.discovery.proof``) decides.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.families import AttentionLayout, Packing
from passes.graph import ends_in

TRIPLES = (("query", "key", "value"), ("q", "k", "v"), ("Q", "K", "V"))
FUSED = re.compile(r"qkv|query_key_value|c_attn|in_proj|att_proj", re.IGNORECASE)
HEAD_DIMS = (
    "head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_per_head", "d_kv", "dim_head", "d_head",
)  # fmt: skip
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_q_heads")
GROUPS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_key_value_head", "kv_heads")
WIDTHS = ("all_head_size", "inner_dim", "split_size", "embed_dim", "attn_dim", "dim", "hidden_size", "d_model")
STREAM_WIDTHS = 4
"""As many of ``WIDTHS``, the last ones, may be the hidden size in the same model: they are tried after the others."""

READ_OF_CONFIG = {"config.num_attention_heads": "heads", "config.num_key_value_heads": "groups"}
CROSS = re.compile(r"cross|enc_?dec|encoder_attn|src_attn|encoder_decoder", re.IGNORECASE)
GATE = re.compile(r"gate|^g_proj$")
HEAD_INPUT = re.compile(r"position_bias|alibi")
"""Arguments of attention that may have an entry a head; where they have none, or are not given, it does not matter."""
MOST = 8
"""Candidates that are tried of one model at most."""


@dataclass(frozen=True)
class AttentionKind:
    """One kind of attention block: the end of its path, the blocks, and the layouts that fit, the likeliest first."""

    name: str
    paths: tuple[str, ...]
    layouts: tuple[AttentionLayout, ...]


def attention_kinds(model: nn.Module, *, stacks: bool) -> list[AttentionKind]:
    """The kinds of attention blocks of a model, which may be on the meta device.

    ``stacks``: whether the widths of encoder and decoder differ (an entry of the configuration each).
    """
    modules = dict(model.named_modules())
    by_end: dict[str, list[str]] = {}
    for path, module in modules.items():
        if "." in path and _projections(module):
            by_end.setdefault(_end(path, modules), []).append(path)
    found = []
    for name, paths in by_end.items():
        fitting = _with_tables([list(_layouts(model, path, name)) for path in paths])
        same = [each for each in fitting[0] if all(each in others for others in fitting[1:])]
        if stacks:
            same = [_in_stacks(each) for each in same]
        found.append(AttentionKind(name, tuple(paths), tuple(same)))
    return [_passing_on(kind, found) for kind in found]


def _with_tables(fitting: list[list[AttentionLayout]]) -> list[list[AttentionLayout]]:
    """The layouts of blocks of one kind, where the first has a table of biases for all of them."""
    table = next((each.bias_table for layouts in fitting for each in layouts if each.bias_table), None)
    if table is None:
        return fitting
    return [[replace(each, bias_table=table, head_inputs=()) for each in layouts] for layouts in fitting]


def _passing_on(kind: AttentionKind, kinds: Sequence[AttentionKind]) -> AttentionKind:
    """A kind of cross-attention beside others with such tables: its first block passes its biases, all 0, on."""
    tables = any(layout.bias_table for each in kinds for layout in each.layouts)
    if not tables or not all(layout.cross and layout.head_inputs for layout in kind.layouts):
        return kind
    passed = (replace(each, passes_on=each.head_inputs[0], head_inputs=()) for each in kind.layouts)
    return replace(kind, layouts=tuple(passed))


def combinations(kinds: Sequence[AttentionKind]) -> Iterator[tuple[AttentionLayout, ...]]:
    """One layout a kind, the likeliest together first."""
    yield from islice(product(*(kind.layouts for kind in kinds)), MOST)


def linears(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers that a block holds itself."""
    return {name: _sizes(child) for name, child in block.named_children() if isinstance(child, nn.Linear | Conv1D)}


def _sizes(linear: nn.Module) -> tuple[int, int]:
    rows, columns = linear.get_parameter("weight").shape
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)


def _end(path: str, modules: Mapping[str, nn.Module]) -> str:
    """The last part of a path, or as many as it takes for it to name attention blocks alone, whatever its number."""
    parts = path.split(".")
    if parts[-1].isdigit():
        parts[-1] = "*"
    for length in range(1 + (parts[-1] == "*"), len(parts)):
        end = ".".join(parts[-length:])
        if all(_projections(each) for name, each in modules.items() if ends_in(name, end)):
            return end
    return ".".join(parts)


def _projections(block: nn.Module) -> tuple[str, ...]:
    """The query, key and value projections of a block, or the one that packs them; none if it has no such."""
    names = linears(block)
    for query, key, value in TRIPLES:
        for name in names:
            if query in name:
                triple = name, name.replace(query, key, 1), name.replace(query, value, 1)
                if len({*triple} & names.keys()) == 3:
                    return triple
    fused = [name for name in names if FUSED.search(name)]
    return tuple(fused) if len(fused) == 1 else ()


def _layouts(model: nn.Module, path: str, name: str) -> Iterator[AttentionLayout]:
    block = model.get_submodule(path)
    projections, sizes = _projections(block), linears(block)
    produced = [sizes[each][1] for each in projections]
    for output, inputs in _outputs(model, path, projections):
        gates = tuple(each for each in sizes if each not in (*projections, output))
        if any(sizes[gate][1] != inputs for gate in gates):
            continue
        for size_name in _head_sizes(block):
            size = int(getattr(block, size_name))
            heads, groups, gated = _counts(produced, inputs, size)
            if not (groups and heads % groups == 0):
                continue
            shape = heads, groups, size
            packings = [Packing.SEPARATE] if len(produced) > 1 else [Packing.PARTS, Packing.GROUPS]
            for attributes in _attributes(block, shape):
                for norms in _norms(block, shape, {*projections, *gates, output}, sizes.get(output)):
                    for packing in packings:
                        yield AttentionLayout(
                            block=name,
                            projections=projections,
                            output=output,
                            packing=packing,
                            head_dim=size_name,
                            attributes=attributes,
                            cross=CROSS.search(name) is not None,
                            gates=gates,
                            gated_query=gated,
                            head_inputs=_head_inputs(block),
                            **norms,
                        )


def _head_inputs(block: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(block.forward).parameters if HEAD_INPUT.search(name))


def _counts(produced: Sequence[int], inputs: int, size: int) -> tuple[int, int, bool]:
    """Query heads, KV heads (0 if the widths fit no such), and whether each query comes with a gate beside it."""
    heads, odd = divmod(inputs, size)
    if odd or any(each % size for each in produced):
        return 0, 0, False
    if len(produced) == 1:
        groups, odd = divmod(produced[0] // size - heads, 2)
        return (heads, groups, False) if not odd and groups > 0 else (0, 0, False)
    fits = produced[1] == produced[2] and produced[0] in (inputs, 2 * inputs)
    return (heads, produced[1] // size, produced[0] == 2 * inputs) if fits else (0, 0, False)


def _outputs(model: nn.Module, path: str, projections: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Projections that may write the block's output, with their inputs: in the block, or in the module around it."""
    block = model.get_submodule(path)
    for name, (inputs, _) in linears(block).items():
        if name not in projections and not GATE.search(name):
            yield name, inputs
    parent = model.get_submodule(path.rpartition(".")[0])
    if len(linears(block)) == len(projections):
        inside = path.rpartition(".")[2]
        for name, module in parent.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and not f"{name}.".startswith(f"{inside}."):
                yield f".{name}", _sizes(module)[0]


def _head_sizes(block: nn.Module) -> Iterator[str]:
    """The block's attributes that may say the size of a head."""
    yield from (name for name in HEAD_DIMS if isinstance(getattr(block, name, None), int) and getattr(block, name) > 0)


def _norms(
    block: nn.Module, shape: tuple[int, int, int], linear: set[str], output: tuple[int, int] | None
) -> Iterator[dict[str, Any]]:
    """What the parameters that are no projections' may be: norms over a head, over all of them, or a weight a head; or
    norms of what the output projection makes, whose sizes are ``output``.
    """
    heads, groups, size = shape
    others: dict[str, tuple[int, ...]] = {}
    for name, parameter in block.named_parameters():
        module = name.rpartition(".")[0]
        if module.partition(".")[0] not in linear and module not in linear:
            others[module or name] = tuple(parameter.shape)
    query = tuple(name for name in others if _is_of(name, "q"))
    key = tuple(name for name in others if _is_of(name, "k") and name not in query)
    a_head = tuple(name for name, each in others.items() if name not in (*query, *key) and each == (heads,))
    tables = tuple(name for name, each in others.items() if each[1:] == (heads,) and _is_table(block, name))
    known = {*query, *key, *a_head, *tables[:1]}
    whole = tuple(name for name, each in others.items() if name not in known and output and each == output[1:])
    more: dict[str, Any] = {name: value for name, value in (("a_head", a_head), ("whole", whole)) if value}
    more |= {"bias_table": tables[0]} if tables else {}
    if {*known, *whole} != {*others} or len(query) > 1 or len(key) > 1:
        return
    if {others[name] for name in (*query, *key)} <= {(size,)}:
        yield {"shared": (*query, *key), **more} if query or key else more
    if len(query) == len(key) == 1:
        if others[query[0]] == (heads * size,) and others[key[0]] == (groups * size,):
            yield {"whole_query_norm": query[0], "whole_key_norm": key[0], **more}
        if others[query[0]] in ((heads * size,), (heads, size)) and others[key[0]] in (
            (groups * size,),
            (groups, size),
        ):
            yield {"query_norms": query, "key_norms": key, **more}


def _is_table(block: nn.Module, name: str) -> bool:
    return name in dict(block.named_children()) and isinstance(block.get_submodule(name), nn.Embedding)


def _is_of(name: str, letter: str) -> bool:
    """Whether a norm's name says that it is of queries (q) or keys (k)."""
    return re.match(rf"{letter}(?:uery|ey)?(?:_|\d|norm|layer|$)", name) is not None or name.endswith(
        (f"_{letter}", f".{letter}", "_query" if letter == "q" else "_key")
    )


def _attributes(block: nn.Module, shape: tuple[int, int, int]) -> Iterator[dict[str, str]]:
    """The block's numbers that may have to change with its heads: those that are one's own, then the hidden size's."""
    heads, groups, size = shape
    own = vars(block)
    sure = {name: "heads" for name in HEADS if own.get(name) == heads}
    sure |= {name: "groups" for name in GROUPS if own.get(name) == groups}
    sure |= {name: "width" for name in WIDTHS[:-STREAM_WIDTHS] if own.get(name) == heads * size}
    wide = {name: "width" for name in WIDTHS[-STREAM_WIDTHS:] if own.get(name) == heads * size}
    embed = {"embed_dim": "width"} if "embed_dim" in sure else {}
    yield {name: what for name, what in sure.items() if name not in embed}
    if embed:
        yield sure
    if wide:
        yield {**sure, **wide}
    if hasattr(getattr(block, "config", None), "num_attention_heads"):
        yield {**sure, **READ_OF_CONFIG}


def _in_stacks(layout: AttentionLayout) -> AttentionLayout:
    return replace(layout, width="{stack}.{kind}")

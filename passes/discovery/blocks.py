"""The blocks of layers whose inside the trace must not look into: which fit a description, and which stay as they are.

A block is a child of a layer. One that mixes tokens in a way that no layout fits (latent attention, state spaces,
convolutions) or that holds parameters of an unknown kind is fixed: it stays, with the reason, and the rest can go.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.discovery.layouts import AttentionKind
from passes.discovery.small import stacks_of
from passes.errors import UnsupportedModelError
from passes.families import ExpertsBlock
from passes.graph import ends_in, layer_path

MIXERS = re.compile(r"Attention|Attn|Mixer|Mamba|SSM|DeltaNet|Recurrent|Retention|Rwkv|RWKV|Fourier|Conv")
READ_BY_MIXERS = {"attention_mask", "position_embeddings", "past_key_values", "past_key_value", "layer_past", "cache"}
"""What the forward pass of a block that mixes tokens is handed over, whatever its class is called."""


def fixed_of(model: nn.Module, kinds: Sequence[AttentionKind]) -> dict[str, str]:
    """The blocks that stay, by the ends of their paths, with the reason."""
    known = {path for kind in kinds if kind.layouts for path in kind.paths}
    mixtures = {path for path, _ in mixtures_of(model)}
    found: dict[str, str] = {}
    for path, child in blocks_of(model):
        if any(f"{each}.".startswith(f"{path}.") for each in known):
            continue
        reason = _why_fixed(path, child, mixtures, kinds)
        if reason is not None:
            found.setdefault(_end(path, known), reason)
    return found


def mlps_of(model: nn.Module, kinds: Sequence[AttentionKind], fixed: Mapping[str, str]) -> set[str]:
    """The ends of the paths of blocks that are no attention and hold several linear layers."""
    known, found = {path for kind in kinds for path in kind.paths}, set[str]()
    for path, child in blocks_of(model):
        mixes = any(f"{each}.".startswith(f"{path}.") for each in known)
        several = sum(isinstance(each, nn.Linear | Conv1D) for each in child.modules()) > 1
        if several and not mixes and not any(ends_in(path, end) for end in fixed):
            found.add(_end(path, known))
    return found


def blocks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of all layers, with their paths: their children, and those of lists among these."""
    for path, stack in stacks_of(model).items():
        for number, layer in enumerate(stack):
            yield from _blocks(f"{path}.{number}", layer)


def _blocks(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from _blocks(f"{path}.{name}", child)
        else:
            yield f"{path}.{name}", child


def mixtures_of(model: nn.Module) -> Iterator[tuple[str, str | None]]:
    """The mixtures of experts of a model, with the reason why one is not understood, or None."""
    for path, module in model.named_modules():
        if isinstance(getattr(module, "experts", None), nn.Module) and layer_path(path) != path:
            try:
                ExpertsBlock.read(model, path, alone=False)
            except UnsupportedModelError as error:
                yield path, str(error)
            else:
                yield path, None


def _why_fixed(path: str, block: nn.Module, mixtures: set[str], kinds: Sequence[AttentionKind]) -> str | None:
    """Why a block of a layer stays, or None if it is a mixture of experts, or one that the trace sees through."""
    if any(f"{each}.".startswith(f"{path}.") for each in mixtures) or not any(True for _ in block.parameters()):
        return None
    name = type(block).__name__
    unfit = [
        kind for kind in kinds if not kind.layouts and any(f"{each}.".startswith(f"{path}.") for each in kind.paths)
    ]
    if unfit:
        return f"the parameters or attributes of {name} fit none of the known attention layouts{_odd(block)}"
    odd = next(_odd_parameters(block), None)
    if "Norm" not in name and (
        MIXERS.search(name) or READ_BY_MIXERS & inspect.signature(block.forward).parameters.keys()
    ):
        return f"{name} is no attention of queries, keys and values that is known" + (
            f" (it holds {odd})" if odd else ""
        )
    if name.endswith("Norm") and any(isinstance(each, nn.Linear | Conv1D) for each in block.modules()):
        return f"{name} is a norm with linear layers of its own"
    return f"{name} holds {odd}, which is no part of a plain MLP" if odd else None


def _odd(block: nn.Module) -> str:
    held = [name for name, _ in block.named_parameters() if name.endswith("weight") or "." not in name]
    return f" (it holds {', '.join(held[:8])})"


def _odd_parameters(block: nn.Module) -> Iterator[str]:
    """Parameters of a block that are neither a linear layer's, nor a norm's vector, nor a single number."""
    for path, module in block.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            plain = isinstance(module, nn.Linear | Conv1D) or (parameter.dim() == 1 and leaf in ("weight", "bias"))
            plain = plain or parameter.numel() == 1
            if not plain:
                yield f"{path}.{leaf} {tuple(parameter.shape)}".lstrip(".")


def _end(path: str, known: set[str]) -> str:
    """The last part of a path, or as many as it takes to name no layer, and no block that is understood."""
    parts = path.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if not parts[-length].isdigit() and not any(
            f"{each}.".endswith(f".{end}.") or f".{end}." in f"{each}." for each in known
        ):
            return end
    return path

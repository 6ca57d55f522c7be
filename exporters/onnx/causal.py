"""A causal language model as one graph with its cache, and the package around it."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.export import Dim
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from exporters.files import MODEL_FILE
from exporters.onnx.decoder import build_decoder, why_not_builder
from exporters.onnx.genai import GENAI_CONFIG, GenaiRefusedError, verify_greedy, write_genai_config
from exporters.onnx.graph import GraphBuilder
from exporters.onnx.group_query import why_not_group_query
from exporters.onnx.options import (
    BATCH,
    DATA_FILE,
    PAST,
    SEQUENCE,
    TOTAL,
    OnnxPackage,
    cast,
    input_names,
    past_names,
    precision_of,
    present_names,
)
from exporters.onnx.package import finish, write_companions
from exporters.onnx.precision import Precision
from exporters.onnx.session import ATTENTION_ENTRY, OnnxModel, attention_of, open_checked
from exporters.onnx.stages import finished
from exporters.onnx.torch_caches import cache_tensors, fill_cache, flat_shapes, takes_positions
from exporters.onnx.torch_route import Tracing, trace_to_onnx
from exporters.onnx.verify.causal import verify_onnx
from exporters.onnx.windows import SLIDING, WindowMasks, masks_by_type, position_masks, window_of
from exporters.options import GROUP_QUERY, PLAIN, OnnxOptions
from passes.errors import UnsupportedModelError
from passes.models import Parity, vendor

logger = logging.getLogger(__name__)

Route = Literal["builder", "torch"]
SAMPLE_BATCH, SAMPLE_TOKENS, SAMPLE_PAST = 2, 3, 4


class FlatCache(nn.Module):
    """The model with its cache as flat tensors: ``(ids, mask[, positions], *past) -> (logits, *present)``."""

    def __init__(self, model: PreTrainedModel, *, positions: bool) -> None:
        super().__init__()
        self.model = model
        self.positions = positions
        self.window = window_of(model)
        self.by_type = self.window is not None and masks_by_type(model)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *rest: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Shapes as in ``onnx_decoder.build_decoder``; past and present hold key and value of each layer in turn."""
        more = {"position_ids": rest[0]} if self.positions else {}
        past = rest[1:] if self.positions else rest
        mask = attention_mask if self.window is None else self._masks(attention_mask, input_ids.shape[1], self.window)
        more |= vendor.with_cache(self.model, fill_cache(past))
        output = self.model(input_ids=input_ids, attention_mask=mask, use_cache=True, **more)
        return (output.logits, *cache_tensors(vendor.cache_of(output)))

    def _masks(self, mask: torch.Tensor, tokens: int, window: int) -> WindowMasks:
        masks = position_masks(mask, tokens, window, self.model.dtype)
        return masks if self.by_type else masks[SLIDING]


def export_causal(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, options: OnnxOptions
) -> OnnxPackage:
    """Write and verify the package of a causal language model that is fp32, on CPU and in eval mode."""
    route = _route(model, options)
    plain = why_plain(model, options, route)
    shapes = flat_shapes(model)
    layers, positions = len(shapes) // 2, takes_positions(model)
    path = folder / MODEL_FILE
    if route == "torch":
        parameters = trace_decoder(cast(options, model), path, opset=options.opset, positions=positions)
    else:
        parameters = _build(model, path, options, group_query=plain is None)
    write_companions(model, tokenizer, folder, options)
    generation = model.generation_config or GenerationConfig.from_model_config(copy.deepcopy(model.config))
    generation.save_pretrained(folder)
    takes = positions and plain is not None
    write_genai_config(model, tokenizer, folder, shapes, positions=takes, share=plain is None)
    kv_bytes = 0

    def verify(precision: Precision) -> tuple[Parity, ...]:
        nonlocal kv_bytes
        graph = open_decoder(model, folder)
        kv_bytes = graph.bytes_per_token(past_names(layers))
        return verify_onnx(model, graph, precision.tolerance)

    parity = finished(options, verify, path)  # no session is left, each of which holds the weights, as GenAI's will
    no_genai, greedy = _genai_side(model, folder, options)
    return finish(
        folder,
        options,
        kind="decoder",
        route=route,
        plain_attention=plain,
        parameters=parameters,
        kv_bytes_per_token=kv_bytes,
        no_genai=no_genai,
        parity=(*parity, *greedy),
    )


def open_decoder(model: PreTrainedModel, folder: Path) -> OnnxModel:
    """The graph of a written package, with the inputs and outputs that a model's has. Raises ``PostconditionError``."""
    layers, path = len(flat_shapes(model)) // 2, folder / MODEL_FILE
    positions = attention_of(path) == PLAIN and takes_positions(model)
    return open_checked(path, input_names(layers, positions=positions), ["logits", *present_names(layers)])


def trace_decoder(model: PreTrainedModel, path: Path, *, opset: int, positions: bool) -> int:
    """The decoder's graph by ``torch.onnx.export``; the number of its weights. Raises ``UnsupportedModelError``."""
    sample = _sample(model, positions=positions)
    tokens, cache = {0: Dim(BATCH), 1: Dim(SEQUENCE)}, {0: Dim(BATCH), 2: Dim(PAST)}
    first = 3 if positions else 2
    layers = (len(sample) - first) // 2
    rest = ((tokens,) if positions else ()) + tuple(dict(cache) for _ in range(2 * layers))
    tracing = Tracing(
        sample=sample,
        inputs=tuple(input_names(layers, positions=positions)),
        outputs=("logits", *present_names(layers)),
        dynamic=(tokens, {0: Dim(BATCH), 1: Dim(TOTAL)}, rest),
    )
    return trace_to_onnx(model, FlatCache(model, positions=positions), tracing, path, opset=opset)


@torch.no_grad()
def _sample(model: PreTrainedModel, *, positions: bool) -> tuple[torch.Tensor, ...]:
    ids = torch.ones(SAMPLE_BATCH, SAMPLE_PAST, dtype=torch.int64)
    past = cache_tensors(
        vendor.cache_of(model(input_ids=ids, use_cache=True, **vendor.with_cache(model, DynamicCache())))
    )
    mask = torch.ones(SAMPLE_BATCH, SAMPLE_PAST + SAMPLE_TOKENS, dtype=torch.int64)
    mask[0, 0] = 0
    new = ids[:, :SAMPLE_TOKENS].clone()
    steps = (mask.cumsum(-1) - 1).clamp_min(0)[:, SAMPLE_PAST:]
    return (new, mask, steps, *past) if positions else (new, mask, *past)


def _route(model: PreTrainedModel, options: OnnxOptions) -> Route:
    reason = why_not_builder(model)
    if options.route == "builder" and reason is not None:
        raise UnsupportedModelError(f"the ONNX graph builder does not know this model: {reason}; use route='auto'")
    if options.route == "torch" or reason is not None:
        logger.info("exporting through torch.onnx: %s", reason or "as asked")
        return "torch"
    return "builder"


def why_plain(model: PreTrainedModel, options: OnnxOptions, route: Route) -> str | None:
    """Why attention is opset 23's; None where it is GroupQueryAttention."""
    if options.attention == PLAIN:
        return "as asked"
    return why_not_group_query(model) if route == "builder" else "the graph is traced by torch.onnx"


def _build(model: PreTrainedModel, path: Path, options: OnnxOptions, *, group_query: bool) -> int:
    graph = GraphBuilder(precision_of(options))
    decoder = build_decoder(model, graph, group_query=group_query)
    said = {ATTENTION_ENTRY: GROUP_QUERY} if group_query else None
    return graph.save(path, decoder.inputs, decoder.outputs, opset=options.opset, data_file=DATA_FILE, metadata=said)


def _genai_side(model: PreTrainedModel, folder: Path, options: OnnxOptions) -> tuple[str | None, tuple[Parity, ...]]:
    """Compare greedy tokens; where GenAI refuses the graph, why, and ``genai_config.json`` goes."""
    if not options.greedy_prompts:
        return None, ()
    try:
        return None, (verify_greedy(model, folder, options),)
    except GenaiRefusedError as refusal:
        (folder / GENAI_CONFIG).unlink()
        logger.warning("onnxruntime-genai does not run this graph, so there is no %s: %s", GENAI_CONFIG, refusal)
        return str(refusal), ()

"""Does a graph without a cache compute what torch computes? Batches, lengths, and paddings other than the traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from exporters.onnx.options import SEQUENCE
from exporters.onnx.session import OnnxModel
from exporters.onnx.verify.parity import require_parity
from exporters.onnx.verify.probes import padded, position_limit, probe_ids, probe_length
from passes.models import SENTENCE_EMBEDDING, Parity, pooling_of

Feeds = dict[str, torch.Tensor]


@torch.no_grad()
def verify_single(model: PreTrainedModel, graph: OnnxModel, tolerance: float) -> tuple[Parity, ...]:
    """Compare the graph with an fp32 ``model`` in eval mode on CPU, where the mask is 1; all within ``tolerance``.

    Raises ``PostconditionError`` naming the case, the output and the number.
    """
    parities = []
    for case, feeds in probe_feeds(model, graph):
        names = [each.name for each in graph.outputs]
        rows = {}
        if "attention_mask" in feeds:
            real = feeds["attention_mask"].bool()
            rows = {name: real for name in names if SEQUENCE in graph.shapes[name]}
        wanted = {name: each.float() for name, each in zip(names, outputs_of(model, feeds, names), strict=True)}
        parities.append(require_parity(f"onnx {case}", graph(feeds), wanted, rows, tolerance))
    return tuple(parities)


def outputs_of(model: PreTrainedModel, inputs: Feeds, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """The tensors of these names in what a model answers; ``sentence_embedding`` is pooled from its hidden states."""
    output = model(**inputs)
    if SENTENCE_EMBEDDING in names:
        return (pooling_of(model)(output["last_hidden_state"], inputs["attention_mask"]),)
    return tuple(output[name] for name in names)


def probe_feeds(model: PreTrainedModel, graph: OnnxModel) -> Iterator[tuple[str, Feeds]]:
    """Named probes with the graph's inputs."""
    if "pixel_values" in graph.shapes:
        yield from _images(graph)
        return
    tokens = probe_length(model)
    longer = min(2 * tokens, position_limit(model) or 2 * tokens)
    ids = probe_ids(model, 3, longer)
    ones = torch.ones_like(ids)
    for case, text, mask in (
        ("one row", ids[:1, :tokens], ones[:1, :tokens]),
        ("one token", ids[:1, :1], ones[:1, :1]),
        ("right padding", ids[:, :tokens], padded(ids[:, :tokens], left=False)),
        ("left padding, longer", ids, padded(ids, left=True)),
    ):
        yield case, _text(model, graph, text, mask)


def _text(model: PreTrainedModel, graph: OnnxModel, ids: torch.Tensor, mask: torch.Tensor) -> Feeds:
    """Pads hold the padding token, by which some classification heads find the last token."""
    pad = getattr(model.config, "pad_token_id", None)
    feeds = {"input_ids": ids.masked_fill(mask == 0, pad or 0), "attention_mask": mask}
    if "token_type_ids" in graph.shapes:
        feeds["token_type_ids"] = (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).long().expand_as(ids)
    return feeds


def _images(graph: OnnxModel) -> Iterator[tuple[str, Feeds]]:
    generator = torch.Generator().manual_seed(0)
    shape = [int(size) for size in graph.shapes["pixel_values"][1:]]
    for case, batch in (("one image", 1), ("three images", 3)):
        yield case, {"pixel_values": torch.randn(batch, *shape, generator=generator)}

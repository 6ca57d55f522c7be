"""Models without a cache as one graph: encoders with any head, ViT, decoders with a classification head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import PreTrainedModel

from exporters.files import MODEL_FILE
from exporters.hf import Processor
from exporters.onnx.options import BATCH, SEQUENCE, OnnxPackage, cast
from exporters.onnx.package import finish, write_companions
from exporters.onnx.precision import Precision
from exporters.onnx.session import OnnxModel, open_checked
from exporters.onnx.stages import finished
from exporters.onnx.torch_caches import RUN_ERRORS
from exporters.onnx.torch_route import Tracing, trace_to_onnx
from exporters.onnx.verify.probes import vocabulary
from exporters.onnx.verify.single import outputs_of, verify_single
from exporters.options import OnnxOptions
from passes.errors import UnsupportedModelError
from passes.models import SENTENCE_EMBEDDING, Parity, Task, reason, task_of

NO_GENAI = "onnxruntime-genai serves models that generate text"
SAMPLE_BATCH, SAMPLE_TOKENS = 2, 5


class NamedInputs(nn.Module):
    """The model called with flat tensors in the order of ``inputs``, returning those of its output named ``outputs``.

    With ``counting`` the positions that the model would count for itself are given row by row: rotary angles of a
    batch of one, broadcast over the others, would be fused to an operator that does not broadcast.
    """

    def __init__(
        self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...], *, counting: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.outputs, self.counting = inputs, outputs, counting

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits, or whatever ``outputs`` names."""
        named = dict(zip(self.inputs, tensors, strict=True))
        if self.counting:
            named["position_ids"] = counted(tensors[0])
        return outputs_of(self.model, named, self.outputs)


def counted(ids: torch.Tensor) -> torch.Tensor:
    """Positions (batch, tokens) from 0 on in every row."""
    return torch.arange(ids.shape[1]).expand(ids.shape)


def export_single(
    model: PreTrainedModel, processor: Processor | None, folder: Path, options: OnnxOptions
) -> OnnxPackage:
    """Write and verify the package of a model that is fp32, on CPU and in eval mode.

    Raises ``UnsupportedModelError`` if the model does not run on a padded batch, or cannot be traced.
    """
    path = folder / MODEL_FILE
    exported = cast(options, model)
    parameters = trace_single(model, path, opset=options.opset, exported=exported, pooling=options.pooling)
    write_companions(model, processor, folder, options)

    def verify(precision: Precision) -> tuple[Parity, ...]:
        return verify_single(model, open_single(model, folder, pooling=options.pooling), precision.tolerance)

    parity = finished(options, verify, path)
    return finish(folder, options, kind="single", parameters=parameters, parity=parity, no_genai=NO_GENAI)


def open_single(model: PreTrainedModel, folder: Path, *, pooling: bool = False) -> OnnxModel:
    """The graph of a written package, with the inputs and outputs that a model's has. Raises ``PostconditionError``."""
    sample = sample_inputs(model)
    return open_checked(folder / MODEL_FILE, tuple(sample), output_names(model, sample, pooling=pooling))


def trace_single(
    model: PreTrainedModel, path: Path, *, opset: int, exported: PreTrainedModel | None = None, pooling: bool = False
) -> int:
    """The model's graph by ``torch.onnx.export``; the number of its weights. Raises ``UnsupportedModelError``.

    ``exported``: the model in the graph's type, if that is not fp32. ``pooling``: as in ``OnnxOptions``.
    """
    sample, exported = sample_inputs(model), exported or model
    inputs, outputs = tuple(sample), output_names(model, sample, pooling=pooling)
    dtype = next(exported.parameters()).dtype
    tracing = Tracing(
        sample=tuple(each.to(dtype) if each.is_floating_point() else each for each in sample.values()),
        inputs=inputs,
        outputs=outputs,
        dynamic=(tuple(_dynamic(name) for name in inputs),),
    )
    wrapper = NamedInputs(exported, inputs, outputs, counting=counts_from_zero(model, sample))
    return trace_to_onnx(exported, wrapper, tracing, path, opset=opset)


def sample_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Inputs to trace with, by name, in the order of the graph's."""
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(SAMPLE_BATCH, *image_shape(model))}
    ids = torch.arange(SAMPLE_BATCH * SAMPLE_TOKENS).reshape(SAMPLE_BATCH, SAMPLE_TOKENS) % vocabulary(model)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    sample = {"input_ids": ids, "attention_mask": mask}
    if takes_token_types(model):
        sample["token_type_ids"] = ids % 2
    return sample


def output_names(
    model: PreTrainedModel, sample: Mapping[str, torch.Tensor], *, pooling: bool = False
) -> tuple[str, ...]:
    """The tensors of the model's output, named as in transformers: logits, or start_logits and end_logits.

    Of an embedding model the last hidden states alone, or with ``pooling`` its vectors.
    """
    try:
        with torch.no_grad():
            output = model(**sample)
    except RUN_ERRORS as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on a padded batch: {reason(error)}"
        ) from error
    if task_of(model) is Task.FEATURE_EXTRACTION:
        return (SENTENCE_EMBEDDING if pooling else "last_hidden_state",)
    return tuple(name for name, value in output.items() if isinstance(value, torch.Tensor))


@torch.no_grad()
def counts_from_zero(model: PreTrainedModel, sample: Mapping[str, torch.Tensor]) -> bool:
    """Whether the model takes ``position_ids`` and, without them, counts 0, 1, 2, ... in every row."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    alone, given = model(**sample), model(**sample, position_ids=counted(sample["input_ids"]))
    tensors = [name for name, value in alone.items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(alone[name], given[name]) for name in tensors)


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether the model has more than one token type, so that ``token_type_ids`` matter."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    tables = [module for name, module in model.named_modules() if name.endswith("token_type_embeddings")]
    return any(int(table.weight.shape[0]) > 1 for table in tables if isinstance(table, nn.Embedding))


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model takes."""
    config: Any = model.config
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.num_channels), int(height), int(width)


def _dynamic(name: str) -> dict[int, Dim]:
    return {0: Dim(BATCH)} if name == "pixel_values" else {0: Dim(BATCH), 1: Dim(SEQUENCE)}

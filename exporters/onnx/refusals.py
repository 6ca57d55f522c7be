"""What refuses an ONNX package, read off a model's class and configuration before anything is done with it."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.hf import Processor
from exporters.onnx.calibrated import token_ids
from exporters.onnx.decoder import why_not_builder
from exporters.onnx.dry_run import why_not_torch
from exporters.onnx.group_query import why_not_group_query
from exporters.onnx.options import GraphKind
from exporters.onnx.verify.probes import vocabulary
from exporters.options import GROUP_QUERY, OnnxOptions
from passes.errors import MissingFileError, TokenizerError, UnsupportedModelError
from passes.models import Task, rope_types, task_of, weightless

KINDS: dict[Task, GraphKind] = {Task.CAUSAL_LM: "decoder", Task.SEQ2SEQ_LM: "encoder-decoder"}

LEAVE_OUT = 'leave ONNX out (export=["hf"], --no-onnx)'

IMAGE_SIZES = ("image_size", "num_channels")
"""What a configuration must say for an image model's graph to have its inputs."""


def kind_of(model: PreTrainedModel) -> GraphKind:
    """Which graphs a model becomes. Raises ``UnsupportedModelError`` for a class whose task is unknown."""
    return KINDS.get(task_of(model), "single")


def needs_tokenizer(model: PreTrainedModel) -> bool:
    """Whether ``export_onnx`` refuses the model without its tokenizer."""
    return kind_of(model) == "decoder"


def check_exportable(model: PreTrainedModel, processor: Processor | None, options: OnnxOptions) -> None:
    """Raise what ``export_onnx`` would raise for this model and every smaller one of its class.

    That is TokenizerError for a tokenizer that is missing or has more tokens than the model, and UnsupportedModelError
    where no route to a graph exists; MissingFileError, DataError for a calibration text. Reads no weights.
    """
    kind = kind_of(model)
    if options.pooling and task_of(model) is not Task.FEATURE_EXTRACTION:
        raise UnsupportedModelError(
            f"pooling (--onnx-pooling) is for embedding models, and {type(model).__name__} is for {task_of(model)}: "
            "leave it out"
        )
    if options.calibration is not None and not options.calibration.is_file():
        raise MissingFileError(f"there is no text {options.calibration} to calibrate int4 on")
    if options.calibration is not None and kind != "decoder":
        raise UnsupportedModelError(f"int4 is calibrated for causal language models, not {type(model).__name__}")
    _check_inputs(model)
    if "dynamic" in " ".join(rope_types(model.config)):
        raise UnsupportedModelError(
            f"{type(model).__name__} has rope_type 'dynamic': its frequencies depend on the length of the input in a "
            f"way that torch.onnx.export cannot trace; {LEAVE_OUT}"
        )
    why_not = why_not_torch(model)
    if why_not is not None:
        raise UnsupportedModelError(f"{why_not}; {LEAVE_OUT}")
    if options.route == "builder":
        _check_builder(model, kind)
    if options.attention == GROUP_QUERY:
        _check_group_query(model, kind)
    _check_tokenizer(model, processor)
    if options.calibration is not None and isinstance(processor, PreTrainedTokenizerBase):
        token_ids(processor, options.calibration)


def _check_tokenizer(model: PreTrainedModel, processor: Processor | None) -> None:
    if not isinstance(processor, PreTrainedTokenizerBase):
        if needs_tokenizer(model):
            raise TokenizerError(
                f"the ONNX package of a {type(model).__name__} needs its tokenizer, and none was found beside the "
                f"model: give it (tokenizer=...), or {LEAVE_OUT}"
            )
        return
    if model.main_input_name == "input_ids" and len(processor) > vocabulary(model):
        raise TokenizerError(
            f"the tokenizer has {len(processor)} tokens but the model only {vocabulary(model)}: it is another model's; "
            "give the model's own tokenizer"
        )


def _check_inputs(model: PreTrainedModel) -> None:
    """Graphs take token ids, or images of the size that the configuration says."""
    wanted, name = model.main_input_name, type(model).__name__
    if wanted not in ("input_ids", "pixel_values"):
        raise UnsupportedModelError(f"{name} takes {wanted}, and ONNX graphs take text or images here; {LEAVE_OUT}")
    missing = [entry for entry in IMAGE_SIZES if getattr(model.config, entry, None) is None]
    if wanted == "pixel_values" and missing:
        raise UnsupportedModelError(
            f"the configuration of {name} does not say {' nor '.join(missing)}, which its ONNX graph needs; {LEAVE_OUT}"
        )


def _check_builder(model: PreTrainedModel, kind: GraphKind) -> None:
    if kind != "decoder":
        raise UnsupportedModelError(
            f"the ONNX graph builder knows only causal language models, not {type(model).__name__}"
        )
    reason = why_not_builder(weightless(type(model), model.config))
    if reason is not None:
        raise UnsupportedModelError(f"the ONNX graph builder does not know this model: {reason}; use route='auto'")


def _check_group_query(model: PreTrainedModel, kind: GraphKind) -> None:
    reason = "it is no causal language model" if kind != "decoder" else None
    if reason is None:
        twin = weightless(type(model), model.config)
        reason = why_not_builder(twin) or why_not_group_query(twin)
    if reason is not None:
        name = type(model).__name__
        raise UnsupportedModelError(f"{name} has no graph with GroupQueryAttention: {reason}; use attention='auto'")

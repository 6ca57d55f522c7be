"""The folders of a Triton model repository, each with a verified ONNX package as its first version."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from transformers import PreTrainedModel

from exporters.files import MODEL_FILE, TRITON_CONFIG, TRITON_VERSION, write_text
from exporters.hf import Processor
from exporters.onnx import OnnxPackage, check_exportable, export_onnx, settled
from exporters.options import OnnxOptions
from exporters.triton.config import config_text
from passes.errors import UnsupportedModelError
from passes.graph import Plan
from passes.models import Task, task_of

logger = logging.getLogger(__name__)


def check_servable(model: PreTrainedModel, processor: Processor | None, options: OnnxOptions) -> None:
    """Raise what ``export_repository`` raises for this model and every smaller one of its class; reads no weights."""
    if task_of(model) is Task.SEQ2SEQ_LM:
        raise UnsupportedModelError(
            f"{type(model).__name__} is two graphs, which Triton would need a script between: serve its ONNX package"
        )
    check_exportable(model, processor, options)


def export_repository(
    model: PreTrainedModel,
    processor: Processor | None,
    folder: Path,
    options: OnnxOptions | None = None,
    plan: Plan | None = None,
) -> tuple[OnnxPackage, ...]:
    """Write ``folder`` as a Triton model repository: ``NAME/config.pbtxt``, and the ONNX package in ``NAME/1``.

    NAME is the model's type; of several precisions each is a model, ``NAME-PRECISION``. A causal language model has its
    cache among its inputs and outputs. Raises what ``export_onnx`` raises, and UnsupportedModelError for an
    encoder-decoder.
    """
    options = options or OnnxOptions()
    check_servable(model, processor, options)
    asked, packages = settled(options, model), []
    for each in asked:
        name = name_of(model) + (f"-{each.precision[0]}" if len(asked) > 1 else "")
        package = export_onnx(model, processor, folder / name / TRITON_VERSION, each, plan)
        write_text(folder / name / TRITON_CONFIG, config_text(name, package.folder / MODEL_FILE))
        packages.append(package)
    if task_of(model) is Task.CAUSAL_LM:
        logger.warning(
            "Triton's onnxruntime backend keeps no cache: a client has to send it with every token (docs/serving.md)"
        )
    return tuple(packages)


def name_of(model: PreTrainedModel) -> str:
    """What Triton calls the model: its type, in letters that a folder and a URL take."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", str(model.config.model_type)) or "model"

"""Export any checkpoint that lpc or transformers can load, without pruning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import psutil
from peft import PeftModel
from transformers import PreTrainedModel

from exporters.files import staged_folder
from exporters.hf import Processor
from exporters.onnx import OnnxPackage, export_packages, export_streamed, needs_tokenizer
from exporters.options import OnnxOptions
from exporters.triton import export_repository
from lpc.options import OutputOptions
from lpc.owned import MANIFEST
from lpc.report import complete
from lpc.source import find_unloaded, load_source
from passes.errors import MissingFileError, OptionError, TokenizerError, UnsupportedModelError
from passes.graph import PLAN_FILE, Plan
from passes.models import base_model, check_finite
from passes.options import AUTO

logger = logging.getLogger(__name__)

Writer: TypeAlias = "Callable[[PreTrainedModel, Processor | None, Path, OnnxOptions | None, Plan | None], Packages]"
Packages: TypeAlias = tuple[OnnxPackage, ...]

COPIES = 8
"""Of the bytes of a checkpoint in half precision a loaded export takes so many at most: fp32 is two of them, in torch,
in onnxruntime, where it packs matrices, and where it transposes a tied head."""

NO_TOKENIZER = "there is no tokenizer in {}, and an ONNX package needs one: save it there first"


def export(
    model: str | Path,
    out: str | Path,
    options: OnnxOptions | None = None,
    *,
    streamed: str = AUTO,
    force: bool = False,
) -> OnnxPackage:
    """As ``export_each``, for one precision. Raises OptionError if the options name more."""
    if options is not None and len(options.precision) > 1:
        raise OptionError(f"export writes one precision, got {', '.join(options.precision)}: see lpc.export_each")
    return export_each(model, out, options, streamed=streamed, force=force)[0]


def export_each(
    model: str | Path,
    out: str | Path,
    options: OnnxOptions | None = None,
    *,
    streamed: str = AUTO,
    format: str = "onnx",
    force: bool = False,
) -> tuple[OnnxPackage, ...]:
    """Write the ONNX package of a checkpoint folder into ``out``, verified; the folder appears whole or not at all.

    Of several precisions each has a folder of its name there. With the ``format`` ``triton`` the folder is a Triton
    model repository, a model for each (docs/serving.md).

    A causal language model, an encoder with a head, an image classifier, or an encoder-decoder; the first needs its
    tokenizer beside it, the others' tokenizer or image processor is taken along where there is one.

    Of the checkpoint of an lpc output the package names the plan, as that output's own does. Where ``out`` is a part of
    an lpc output, its manifest says from then on what is there.

    ``streamed`` (``yes``, ``no``; ``auto``: where the loaded model would need more memory than is free): weights go
    from file to file a tensor at a time, and the graph is compared a layer at a time (docs/onnx.md).

    Raises MissingFileError, ModelError, UnsupportedModelError, TokenizerError, OutputExistsError, OutputError, and
    PostconditionError when a graph does not compute what torch computes.
    """
    if not Path(model).is_dir():
        raise MissingFileError(f"there is no checkpoint folder {model}")
    asked = OutputOptions(streamed=streamed, format=format)
    with staged_folder(Path(out), force=force, owned=asked.owned, reads=(model,)) as stage:
        found = _written(Path(model), stage, options, asked)
        places = [Path(out) / each.folder.relative_to(stage) for each in found]
    complete(Path(out))
    return tuple(replace(each, folder=place) for each, place in zip(found, places, strict=True))


def _written(model: Path, stage: Path, options: OnnxOptions | None, asked: OutputOptions) -> tuple[OnnxPackage, ...]:
    """The packages, by whichever way."""
    if asked.is_repository:
        return _loaded(model, stage, options, export_repository)
    if not (_is_large(model) if asked.streams is None else asked.streams):
        return _loaded(model, stage, options, export_packages)
    try:
        source, processor = find_unloaded(model)
        if processor is None and needs_tokenizer(source.model):
            raise TokenizerError(NO_TOKENIZER.format(model))
        return export_streamed(source, processor, stage, options, plan_of(model))
    except UnsupportedModelError as error:
        if asked.streams:
            raise
        logger.warning("%s is loaded as a whole, which may need more memory than is free: %s", model, error)
    return _loaded(model, stage, options, export_packages)


def _loaded(model: Path, stage: Path, options: OnnxOptions | None, written: Writer) -> tuple[OnnxPackage, ...]:
    source = load_source(model)
    check_finite(source.model)
    dense = source.model.merge_and_unload() if isinstance(source.model, PeftModel) else source.model
    plain = base_model(dense)
    if source.tokenizer is None and needs_tokenizer(plain):
        raise TokenizerError(NO_TOKENIZER.format(model))
    return written(plain, source.processor, stage, options, plan_of(model))


def _is_large(model: Path) -> bool:
    """Whether a model would take more than what is free of the memory, if it was loaded."""
    held = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return COPIES * held > int(psutil.virtual_memory().available)


def plan_of(checkpoint: Path) -> Plan | None:
    """The plan that a checkpoint in an lpc output was made by. Raises PlanError if it cannot be read."""
    output = Path(os.path.realpath(checkpoint)).parent
    return Plan.load(output) if (output / MANIFEST).is_file() and (output / PLAN_FILE).is_file() else None

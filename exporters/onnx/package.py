"""What every ONNX folder holds beside its graphs, and the record of the finished package."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from exporters.files import DECODER_FILE, ENCODER_FILE, MODEL_FILE, PRECISION_ENTRY
from exporters.hf import Processor
from exporters.onnx.options import GraphKind, OnnxPackage, precision_of
from exporters.options import OnnxOptions
from passes.models import Parity, sentence_files


def clear(folder: Path) -> None:
    """Make the folder, and remove the graphs of an older package from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_FILE, ENCODER_FILE, DECODER_FILE):
        (folder / name).unlink(missing_ok=True)
        (folder / f"{name}.data").unlink(missing_ok=True)


def write_companions(model: PreTrainedModel, processor: Processor | None, folder: Path, options: OnnxOptions) -> None:
    """``config.json``, and the tokenizer or image processor if there is one."""
    config = copy.deepcopy(model.config)
    config.dtype = str(precision_of(options).torch_dtype).removeprefix("torch.")
    setattr(config, PRECISION_ENTRY, precision_of(options).name)
    vars(config).pop("auto_map", None)  # the file that it names lies beside the weights
    config.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    sentence_files(model).write(folder, config)


def finish(
    folder: Path,
    options: OnnxOptions,
    *,
    kind: GraphKind,
    parameters: int,
    parity: tuple[Parity, ...],
    no_genai: str | None,
    route: Literal["builder", "torch"] = "torch",
    plain_attention: str | None = None,
    kv_bytes_per_token: int = 0,
) -> OnnxPackage:
    """The record of a folder that is written and verified."""
    return OnnxPackage(
        folder=folder,
        kind=kind,
        files=tuple(sorted(each.name for each in folder.iterdir() if each.is_file())),
        opset=options.opset,
        precision=precision_of(options).name,
        route=route,
        parameters=parameters,
        file_bytes=sum(path.stat().st_size for path in folder.glob("*.onnx*")),
        plain_attention=plain_attention,
        kv_bytes_per_token=kv_bytes_per_token,
        no_genai=no_genai,
        parity=parity,
    )

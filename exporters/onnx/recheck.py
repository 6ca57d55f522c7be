"""A package that was written before, held against itself and against its model: each check says what it saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from exporters.files import MODEL_FILE
from exporters.onnx.causal import open_decoder
from exporters.onnx.export import in_fp32
from exporters.onnx.genai import GENAI_CONFIG, verify_greedy
from exporters.onnx.options import precision_of
from exporters.onnx.provenance import Provenance, check_metadata, graphs_in
from exporters.onnx.refusals import kind_of
from exporters.onnx.seq2seq import verify_seq2seq
from exporters.onnx.single import open_single
from exporters.onnx.verify.causal import verify_onnx
from exporters.onnx.verify.single import verify_single
from exporters.options import OnnxOptions
from passes.errors import PostconditionError
from passes.models import SENTENCE_EMBEDDING, Parity
from passes.stored import read_json

CONFIG = "config.json"


def check_graphs(folder: Path, found: Provenance | None) -> str:
    """onnx's own checker on every graph, and its metadata. Raises ``PostconditionError``."""
    import onnx

    said = []
    for path in graphs_in(folder):
        try:
            onnx.checker.check_model(str(path), full_check=True)
            model = onnx.load_model(str(path), load_external_data=False)
        except Exception as error:  # protobuf, shape inference and the checker each have their own
            raise PostconditionError(f"onnx.checker refuses {path.name}: {error}") from error
        if found is not None:
            check_metadata(model, path.name, found)
        opsets = ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import)
        said.append(f"{path.name}: {len(model.graph.node)} nodes, {opsets}")
    return "; ".join(said)


def check_configuration(folder: Path) -> str:
    """What ``config.json`` and ``genai_config.json`` say, against the graphs' tensors.

    Raises ``PostconditionError``, and MissingFileError or ModelError for a file that is not there or no JSON.
    """
    config = read_json(folder / CONFIG)
    if not (folder / MODEL_FILE).is_file():
        return f"{CONFIG}: {config.get('model_type')}"
    shapes = _shapes(folder / MODEL_FILE)
    _hold(CONFIG, {"vocab_size": config.get("vocab_size")}, {"vocab_size": _vocabulary(shapes)})
    if not (folder / GENAI_CONFIG).is_file():
        return f"{CONFIG}: {config.get('model_type')}"
    described = read_json(folder / GENAI_CONFIG)
    try:
        _hold(GENAI_CONFIG, *_genai_facts(described["model"], shapes))
        _check_names(described["model"]["decoder"], shapes)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise PostconditionError(f"{GENAI_CONFIG} is not as GenAI reads it: {error!r}") from error
    return f"{CONFIG} and {GENAI_CONFIG} fit the graph's {len(shapes)} inputs and outputs"


def check_parity(model: PreTrainedModel, folder: Path, precision: str) -> Iterator[Parity]:
    """The graphs against torch, as at the export; ``precision`` is the package's. Raises ``PostconditionError``."""
    options, kind = OnnxOptions(precision=(precision,)), kind_of(model)
    tolerance = precision_of(options).tolerance
    with in_fp32(model):
        if kind == "encoder-decoder":
            yield from verify_seq2seq(model, folder, options)
        elif kind == "single":
            pooling = SENTENCE_EMBEDDING in _shapes(folder / MODEL_FILE)
            yield from verify_single(model, open_single(model, folder, pooling=pooling), tolerance)
        else:
            yield from verify_onnx(model, open_decoder(model, folder), tolerance)
            if (folder / GENAI_CONFIG).is_file():
                yield verify_greedy(model, folder, options)


def _shapes(path: Path) -> dict[str, list[int | str]]:
    """The shape of each input and output of a graph, by name."""
    import onnx

    graph = onnx.load_model(str(path), load_external_data=False).graph
    return {
        each.name: [size.dim_param or size.dim_value for size in each.type.tensor_type.shape.dim]
        for each in (*graph.input, *graph.output)
    }


def _vocabulary(shapes: Mapping[str, list[int | str]]) -> int | str | None:
    """The width of a language model's logits; None of another graph."""
    decodes = any(name.startswith("past_key_values.") for name in shapes)
    return shapes["logits"][-1] if decodes and "logits" in shapes else None


def _genai_facts(
    model: Mapping[str, Any], shapes: Mapping[str, list[int | str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What GenAI's configuration says, and what the graph has, of the same things."""
    decoder = model["decoder"]
    keys = [shape for name, shape in shapes.items() if name.startswith("past_key_values.") and name.endswith(".key")]
    names = ("num_hidden_layers", "num_key_value_heads", "head_size")
    said = {name: decoder[name] for name in names} | {
        "vocab_size": model["vocab_size"],
        "filename": decoder["filename"],
    }
    return said, {
        "num_hidden_layers": len(keys),
        "num_key_value_heads": keys[0][1] if keys else decoder["num_key_value_heads"],
        "head_size": keys[0][3] if keys else decoder["head_size"],
        "vocab_size": _vocabulary(shapes),
        "filename": MODEL_FILE,
    }


def _check_names(decoder: Mapping[str, Any], shapes: Mapping[str, object]) -> None:
    """Every tensor that GenAI would ask the graph for, layer by layer, is there, and none besides."""
    templates = [*decoder["inputs"].values(), *decoder["outputs"].values()]
    layers = range(decoder["num_hidden_layers"])
    asked = {name for each in templates for name in ([each % i for i in layers] if "%d" in each else [each])}
    odd = sorted(asked ^ set(shapes))
    if odd:
        there = "the graph has, and it does not name" if odd[0] in shapes else "the graph does not have"
        raise PostconditionError(f"{GENAI_CONFIG}: {odd[0]} is what {there}")


def _hold(file: str, said: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if value is not None and said[name] is not None and said[name] != value:
            raise PostconditionError(f"{file} says {name} = {said[name]!r}, the graph has {value!r}")

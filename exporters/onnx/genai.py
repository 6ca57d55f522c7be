"""The onnxruntime-genai side of an ONNX package: ``genai_config.json``, and greedy tokens equal to ``generate``.

Format: onnxruntime-genai ``src/config.h`` and ``src/python/py/models/builders/base.py`` (conventions.md 2.2).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.files import MODEL_FILE
from exporters.onnx.greedy import graph_greedy, greedy_gap, require_greedy, torch_greedy
from exporters.onnx.options import precision_of
from exporters.onnx.session import OnnxModel
from exporters.onnx.verify.probes import position_limit, probe_ids, vocabulary
from exporters.options import OnnxOptions
from passes.errors import LpcError
from passes.families import family_named
from passes.models import Parity, reason

logger = logging.getLogger(__name__)

GENAI_CONFIG = "genai_config.json"
GENERIC = "decoder"
"""GenAI's type for any decoder that it has no name for."""

DEFAULT_CONTEXT = 2048
PROMPT_TOKENS = 8


class GenaiRefusedError(LpcError):
    """GenAI cannot load or run a graph that onnxruntime runs; the message is GenAI's."""


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    return position_limit(model) or DEFAULT_CONTEXT


def genai_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shapes: Sequence[tuple[int, int]],
    *,
    positions: bool,
    share: bool,
) -> dict[str, Any]:
    """The content of ``genai_config.json``; ``share``: whether the graph writes its cache in place.

    Sizes are those of the model's cache (``shapes``, see ``flat_shapes``) and embedding (of the first layer, where
    layers differ; GenAI reads each layer's own from the graph). ``positions``: whether the graph has ``position_ids``.
    """
    family, (kv_heads, head_size) = family_named(model.config.model_type), shapes[0]
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if positions:
        inputs["position_ids"] = "position_ids"
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": head_size,
        "hidden_size": int(model.get_input_embeddings().weight.shape[1]),
        "num_attention_heads": _query_heads(model, kv_heads),
        "num_hidden_layers": len(shapes) // 2,
        "num_key_value_heads": kv_heads,
        "inputs": {
            **inputs,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    head = {
        "type": (family.genai if family else None) or GENERIC,
        **_special_tokens(model, tokenizer),
        "context_length": context_length(model),
        "vocab_size": vocabulary(model),
    }
    return {"model": {**head, "decoder": decoder}, "search": _search(model, share)}


def write_genai_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    shapes: Sequence[tuple[int, int]],
    *,
    positions: bool,
    share: bool,
) -> Path:
    """Write ``genai_config.json`` into ``folder``; see ``genai_config``."""
    path, described = folder / GENAI_CONFIG, genai_config(model, tokenizer, shapes, positions=positions, share=share)
    path.write_text(json.dumps(described, indent=4) + "\n", encoding="utf-8")
    return path


def _query_heads(model: PreTrainedModel, kv_heads: int) -> int:
    """Query heads of the first attention module, however it keeps them; as many as KV heads if it does not say."""
    for module in model.modules():
        groups, heads = getattr(module, "num_key_value_groups", None), getattr(module, "num_heads", None)
        if groups is not None:
            return int(groups) * kv_heads
        if heads is not None:
            return int(heads)
    return kv_heads


def _special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, int | list[int]]:
    """bos, eos and pad ids: the generation config's, else the config's, else the tokenizer's."""
    found = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for source in (model.generation_config, model.config, tokenizer):
            value = getattr(source, name, None)
            if value is not None:
                found[name] = value
                break
    eos = found.get("eos_token_id")
    if "pad_token_id" not in found and eos is not None:
        found["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
    return found


def _search(model: PreTrainedModel, share: bool) -> dict[str, Any]:
    """Search options; past and present share a buffer where the graph writes in place, and else the cache grows."""
    generation = model.generation_config
    defaults: dict[str, Any] = {
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    chosen = {name: getattr(generation, name, None) for name in defaults}
    search = {name: default if chosen[name] is None else chosen[name] for name, default in defaults.items()}
    return {
        **search,
        "max_length": context_length(model),
        "min_length": 0,
        "num_beams": 1,
        "past_present_share_buffer": share,
    }


def verify_greedy(model: PreTrainedModel, folder: Path, options: OnnxOptions) -> Parity:
    """GenAI continues the probe prompts exactly as ``generate`` does; where weights were rewritten, as onnxruntime.

    The value is 0 when all tokens are equal. Where a token differs, it is the gap between torch's logits of the two
    tokens, relative to the largest logit: a tie within rounding passes, anything else raises ``PostconditionError``.
    Raises ``GenaiRefusedError`` if GenAI cannot load or run the graph.
    """
    context = context_length(model)
    eos = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))["model"].get("eos_token_id")
    new = min(options.greedy_tokens, max(1, context // 2))
    rows = probe_ids(model, options.greedy_prompts, max(1, min(PROMPT_TOKENS, context - new)))
    prompts = [row[: 1 + index * 3] for index, row in enumerate(rows)]
    if precision_of(options).first is not None:
        graph = OnnxModel(folder / MODEL_FILE)
        references = [graph_greedy(graph, each, new, eos=eos) for each in prompts]
        del graph  # its session holds the weights, as GenAI's will
    else:
        references = [
            torch_greedy(model, {"input_ids": each[None], "attention_mask": torch.ones_like(each)[None]}, new, eos=eos)
            for each in prompts
        ]
    answers = _genai_answers(folder, prompts, new)  # after torch is done: GenAI's idle threads spin
    gaps = [greedy_gap(each, got) for each, got in zip(references, answers, strict=True)]
    parity = require_greedy("genai greedy tokens", "GenAI's", gaps, precision_of(options).tie)
    if parity.value > 0:
        logger.warning("GenAI chose another token than torch, at a tie: %s", parity)
    return parity


def _genai_answers(folder: Path, prompts: list[torch.Tensor], new: int) -> list[list[int]]:
    import onnxruntime_genai

    try:
        genai = onnxruntime_genai.Model(str(folder))
        return [_genai_greedy(genai, prompt, new) for prompt in prompts]
    except RuntimeError as error:
        raise GenaiRefusedError(reason(error)) from error


def _genai_greedy(genai: Any, prompt: torch.Tensor, new: int) -> list[int]:
    import onnxruntime_genai

    length = len(prompt) + new
    params = onnxruntime_genai.GeneratorParams(genai)
    params.set_search_options(
        max_length=length, min_length=length, do_sample=False, num_beams=1, repetition_penalty=1.0, batch_size=1
    )
    generator = onnxruntime_genai.Generator(genai, params)
    generator.append_tokens(prompt.numpy().astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]

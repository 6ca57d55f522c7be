"""The onnxruntime-genai side of an ONNX package: ``genai_config.json``, and greedy tokens equal to ``generate``.

Format: onnxruntime-genai ``src/config.h`` and ``src/python/py/models/builders/base.py`` (conventions.md 2.2).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from exporters.onnx_options import MODEL_FILE, OnnxOptions
from exporters.onnx_verify import probe_ids
from passes.errors import PostconditionError
from passes.parity import Parity, rounding_tolerance

logger = logging.getLogger(__name__)

GENAI_CONFIG = "genai_config.json"
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "olmo", "smollm3", "granite")
"""Types named alike in transformers and in GenAI's ``model_type.h``; any other is GenAI's generic ``decoder``."""

DEFAULT_CONTEXT = 2048
PROMPT_TOKENS = 8


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    return int(getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT)


def genai_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of ``genai_config.json``."""
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": head_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
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
        "type": config.model_type if config.model_type in MODEL_TYPES else "decoder",
        **_special_tokens(model, tokenizer),
        "context_length": context_length(model),
        "vocab_size": config.vocab_size,
    }
    return {"model": {**head, "decoder": decoder}, "search": _search(model)}


def write_genai_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write ``genai_config.json`` into ``folder``."""
    path = folder / GENAI_CONFIG
    path.write_text(json.dumps(genai_config(model, tokenizer), indent=4) + "\n", encoding="utf-8")
    return path


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


def _search(model: PreTrainedModel) -> dict[str, Any]:
    """Search options; the cache grows with the tokens, so past and present cannot share a buffer."""
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
        "past_present_share_buffer": False,
    }


def verify_greedy(model: PreTrainedModel, folder: Path, options: OnnxOptions) -> Parity:
    """GenAI continues the probe prompts exactly as ``generate`` does.

    The value is 0 when all tokens are equal. Where a token differs, it is the gap between torch's logits of the two
    tokens, relative to the largest logit: a tie within rounding passes, anything else raises ``PostconditionError``.
    """
    import onnxruntime_genai

    context = context_length(model)
    new = min(options.greedy_tokens, max(1, context // 2))
    rows = probe_ids(model, options.greedy_prompts, max(1, min(PROMPT_TOKENS, context - new)))
    prompts = [row[: 1 + index * 3] for index, row in enumerate(rows)]
    references = [_torch_greedy(model, prompt, new) for prompt in prompts]
    genai = onnxruntime_genai.Model(str(folder))  # after torch is done: its idle threads spin
    gaps = [_greedy_gap(each, genai, prompt, new) for each, prompt in zip(references, prompts, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    parity = Parity("genai greedy tokens", gaps[worst], rounding_tolerance(options.torch_dtype))
    if not parity.holds:
        message = f"export: GenAI's tokens differ from generate's on probe prompt {worst}, and not by a tie: {parity}"
        raise PostconditionError(message)
    if gaps[worst] > 0:
        logger.warning("GenAI chose another token than torch on probe prompt %d, at a tie: %s", worst, parity)
    return parity


def _greedy_gap(reference: Any, genai: Any, prompt: torch.Tensor, new: int) -> float:
    """0 if the continuations are equal, else the relative gap of the two tokens' logits where they part."""
    wanted, logits = reference.sequences[0].tolist(), reference.logits
    got = _genai_greedy(genai, prompt, new)
    for index in range(len(prompt), len(wanted)):
        if index >= len(got):
            return float("inf")
        if got[index] != wanted[index]:
            row = logits[index - len(prompt)][0]
            return float((row[wanted[index]] - row[got[index]]).abs() / row.abs().max())
    return 0.0


@torch.no_grad()
def _torch_greedy(model: PreTrainedModel, prompt: torch.Tensor, new: int) -> Any:
    settings = GenerationConfig(
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = prompt[None]
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)


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

"""llama.cpp, by its sources of mid-2026: what its converter writes into GGUF, and what its loader and quantiser ask.

Whether the converter has a type (its TEXT_MODEL_MAP lists the class), and whether the loader takes query and output
weights n_embd_head_k * n_head wide (reads ``head_dim``) or n_embd wide (derives it), is said by the type's ``Family``.
"""

from __future__ import annotations

from exporters.runtimes.shape import Shape
from exporters.runtimes.verdict import Check, Evidence, Runtime, Verdict
from passes.families import HeadDim
from passes.models import Task

GEMMA2_LAYERS_OF_27B = 46
BLOCK, SUPER_BLOCK = 32, 256
"""What the rows of Q4_0 and Q8_0, and of K-quants, are a multiple of."""


def _other_task(shape: Shape, evidence: Evidence) -> str | None:
    return None if shape.task is Task.CAUSAL_LM else f"lpc has rules for causal language models only, not {shape.task}"


def _per_layer(shape: Shape, evidence: Evidence) -> str | None:
    if shape.uniform:
        return None
    part = shape.differs or f"nothing is left of {shape.removed[0]}"
    return f"the converter writes one width for all layers ({part}); the format itself has arrays by layer"


def _not_converted(shape: Shape, evidence: Evidence) -> str | None:
    if shape.family.llama_cpp is None:
        return f"the converter knows no {shape.model_class}"
    return shape.not_stock


def _head_dim(shape: Shape) -> HeadDim | None:
    return shape.family.llama_cpp.head_dim if shape.family.llama_cpp is not None else None


def _derives(shape: Shape, evidence: Evidence) -> str | None:
    if shape.square or _head_dim(shape) is not HeadDim.DERIVED:
        return None
    return (
        f"the {shape.model_type} loader wants query weights as wide as the hidden size {shape.hidden_size}, "
        f"they are {shape.heads[0] * shape.head_dims[0]} wide"
    )


def _unread(shape: Shape, evidence: Evidence) -> str | None:
    if shape.square or _head_dim(shape) is HeadDim.READ:
        return None
    return f"heads x head_dim is not the hidden size, and whether the {shape.model_type} loader reads head_dim is open"


def _scaled_otherwise(shape: Shape, evidence: Evidence) -> str | None:
    if shape.model_type != "gemma2" or shape.attention_scalar is None or not shape.heads:
        return None
    large = shape.layers == GEMMA2_LAYERS_OF_27B
    theirs = shape.hidden_size // shape.heads[0] if large else shape.head_dim
    if theirs == shape.attention_scalar:
        return None
    return (
        f"it would load and compute something else: llama.cpp divides the attention scores by the root of {theirs}, "
        f"the model by that of query_pre_attn_scalar = {shape.attention_scalar:g}"
    )


def _odd_rows(shape: Shape, evidence: Evidence) -> str | None:
    odd = shape.rows_beyond(BLOCK)
    if not odd:
        return None
    return (
        f"in F16 and F32; weights with rows of {', '.join(map(str, odd))} are no multiple of {BLOCK}: K-quants leave "
        "them in F16, and llama-quantize may refuse Q4_0 and Q8_0"
    )


def _llama_cpp(shape: Shape, evidence: Evidence) -> Verdict:
    odd = ", ".join(map(str, shape.rows_beyond(SUPER_BLOCK)))
    quantised = f"weights with rows of {odd} become Q5_0 or Q8_0 in K-quants" if odd else "all quantisations fit"
    return Verdict(
        target=LLAMA_CPP.name,
        runs="yes",
        reason=f"convert_hf_to_gguf.py, if it knows the tokenizer; {quantised} (blocks of {SUPER_BLOCK})",
        source="ggml-org/llama.cpp conversion/base.py (key_length from head_dim), src/llama-quant.cpp, #3747",
    )


LLAMA_CPP = Runtime(
    name="llama.cpp (GGUF)",
    meaning="`convert_hf_to_gguf.py hf/`, then any quantisation",
    checks=(
        Check(
            needs="a causal language model",
            source="ggml-org/llama.cpp conversion/__init__.py",
            why_not=_other_task,
            otherwise="unverified",
        ),
        Check(
            needs="the same widths in every layer: only the converters of DeciLM and OpenELM write arrays by layer",
            source="ggml-org/llama.cpp conversion/base.py (set_gguf_parameters), conversion/deci.py",
            why_not=_per_layer,
        ),
        Check(
            needs="a stock class that the converter has",
            source="ggml-org/llama.cpp conversion/__init__.py (TEXT_MODEL_MAP)",
            why_not=_not_converted,
        ),
        Check(
            needs="a square model, for Qwen2, Phi-3, OLMo 2 and StarCoder2",
            source="ggml-org/llama.cpp src/models/qwen2.cpp, phi3.cpp, olmo2.cpp, starcoder2.cpp (load_arch_tensors)",
            why_not=_derives,
        ),
        Check(
            needs="for other types a square model, or a loader known to read head_dim",
            source="ggml-org/llama.cpp src/models/llama.cpp, qwen3.cpp, gemma.cpp, gemma2.cpp, granite.cpp",
            why_not=_unread,
            otherwise="unverified",
        ),
        Check(
            needs="for Gemma 2, query_pre_attn_scalar equal to head_dim, or with 46 layers to hidden_size // heads",
            source="ggml-org/llama.cpp src/models/gemma2.cpp (f_attention_scale)",
            why_not=_scaled_otherwise,
        ),
        Check(
            needs="weights whose rows are a multiple of 32",
            source="ggml-org/llama.cpp src/llama-quant.cpp (llama_tensor_get_type)",
            why_not=_odd_rows,
            otherwise="partly",
        ),
    ),
    passed=_llama_cpp,
)

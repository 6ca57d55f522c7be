"""vLLM, by its documents and sources of 0.9 to 0.32: what its own classes and its Transformers backend ask of a model.

Which types it has, by its own class or by its Transformers backend (which builds transformers' own, so reads
``head_dim``), is said by the type's ``Family``; so is what its own class does with ``head_dim``:

- read: Llama (and Mistral and Phi-3, which are Llama's class), Granite, Mixtral, Gemma and Qwen3 by their source;
  Gemma 2, Gemma 3 and Qwen3-MoE because vLLM's page lists released non-square checkpoints of them (Gemma-2-9B,
  Gemma-3-1B, Qwen3-30B-A3B).
- derived: Qwen2, Cohere and Phi set ``head_dim = hidden_size // num_heads`` in their source (Qwen2's of 0.11, older
  ones of the others; newer ones may read it).

A non-square model is one whose heads x head_dim is not the hidden size.
"""

from __future__ import annotations

from exporters.runtimes.shape import Shape
from exporters.runtimes.verdict import Check, Evidence, Runtime, Verdict
from passes.families import HeadDim
from passes.models import Task

MODELS_PAGE = "vllm-project/vllm docs/models/supported_models.md"

FLASH_LARGEST, FLASH_MULTIPLE = 256, 8
GPUS = (1, 2, 4, 8, 16)


def tensor_parallel(shape: Shape) -> tuple[int, ...]:
    """The numbers of GPUs among which the heads of every layer can be split.

    vLLM asserts heads % n == 0, and kv_heads % n == 0 or n % kv_heads == 0 (llama.py, LlamaAttention.__init__).
    """
    pairs = set(zip(shape.heads, shape.kv_heads, strict=True))
    return tuple(n for n in GPUS if all(h % n == 0 and (g % n == 0 or n % g == 0) for h, g in pairs))


def _encoder_decoder(shape: Shape, evidence: Evidence) -> str | None:
    return "vLLM serves encoder-decoders only through plugins" if shape.task is Task.SEQ2SEQ_LM else None


def _other_task(shape: Shape, evidence: Evidence) -> str | None:
    return None if shape.task is Task.CAUSAL_LM else f"lpc has no rules for vLLM's pooling models ({shape.task})"


def _per_layer(shape: Shape, evidence: Evidence) -> str | None:
    if shape.uniform:
        return None
    part = shape.differs or f"nothing is left of {shape.removed[0]}"
    return f"its classes build every layer from the same widths ({part})"


def _needs_file(shape: Shape, evidence: Evidence) -> str | None:
    if shape.not_stock is None:
        return None
    return (
        f"the Transformers backend takes remote code only through auto_map.AutoModel, which the modelling file does "
        f"not fill ({shape.not_stock})"
    )


def _unlisted(shape: Shape, evidence: Evidence) -> str | None:
    return (
        None
        if shape.family.vllm is not None
        else f"{shape.model_class} is not on vLLM's list; its Transformers backend may take it"
    )


def _head_dim(shape: Shape) -> HeadDim | None:
    return shape.family.vllm.head_dim if shape.family.vllm is not None else None


def _derives(shape: Shape, evidence: Evidence) -> str | None:
    if shape.square or _head_dim(shape) is not HeadDim.DERIVED:
        return None
    return (
        f"vLLM's own class takes heads of hidden_size // heads = {shape.hidden_size // shape.heads[0]} values, the "
        f"model's have {shape.head_dim}; --model-impl transformers reads head_dim"
    )


def _unread(shape: Shape, evidence: Evidence) -> str | None:
    if shape.square or _head_dim(shape) is HeadDim.READ:
        return None
    return "heads x head_dim is not the hidden size, and whether vLLM's own class reads head_dim was not looked up"


def _head_size(shape: Shape, evidence: Evidence) -> str | None:
    if all(size % FLASH_MULTIPLE == 0 and size <= FLASH_LARGEST for size in shape.head_dims):
        return None
    return f"FlashAttention takes no heads of {shape.head_dim}; the Triton (32 and more) or FlexAttention backend may"


def _vllm(shape: Shape, evidence: Evidence) -> Verdict:
    own = shape.family.vllm is not None and shape.family.vllm.own
    how = "by its own class" if own else "by its Transformers backend"
    sizes = ", ".join(map(str, tensor_parallel(shape)))
    return Verdict(
        target=VLLM.name,
        runs="yes",
        reason=f"{shape.model_class} {how}; the heads split among {sizes} GPUs",
        source=f"{MODELS_PAGE}; vllm/model_executor/models/llama.py (tensor parallel)",
    )


VLLM = Runtime(
    name="vLLM",
    meaning="`vllm serve hf/`, the checkpoint as it is",
    checks=(
        Check(needs="no encoder-decoder", source=f"{MODELS_PAGE}, Plugins", why_not=_encoder_decoder),
        Check(needs="a causal language model", source=f"{MODELS_PAGE}", why_not=_other_task, otherwise="unverified"),
        Check(
            needs="the same widths in every layer: only the Transformers backend reads per_layer_config, and of it "
            "head_dim and num_key_value_heads; NemotronNAS has KV heads and MLPs by layer, in a format of its own",
            source="vllm-project/vllm#49797, #31454 (MLPs by layer, open); vllm/model_executor/models/nemotron_nas.py",
            why_not=_per_layer,
        ),
        Check(
            needs="a stock class: remote code must be in auto_map.AutoModel",
            source=f"{MODELS_PAGE}, Custom models",
            why_not=_needs_file,
        ),
        Check(
            needs="a class on vLLM's list",
            source=f"{MODELS_PAGE}, Text Generation",
            why_not=_unlisted,
            otherwise="unverified",
        ),
        Check(
            needs="a square model, for Qwen2, Cohere and Phi",
            source="vllm/model_executor/models/qwen2.py, commandr.py, phi.py (head_dim = hidden_size // num_heads)",
            why_not=_derives,
            otherwise="partly",
        ),
        Check(
            needs="for other classes a square model, or one of a class known to read head_dim",
            source="vllm/model_executor/models/llama.py, granite.py, mixtral.py, gemma.py, qwen3.py; "
            "vllm-project/vllm#2622",
            why_not=_unread,
            otherwise="unverified",
        ),
        Check(
            needs="a head_dim that is a multiple of 8 and at most 256",
            source="vllm/v1/attention/backends/flash_attn.py, triton_attn.py (supports_head_size); "
            "vllm-project/vllm#22193",
            why_not=_head_size,
            otherwise="partly",
        ),
    ),
    passed=_vllm,
)

"""One tiny random model a structure that stock transformers knows, with a batch and labels that suit it.

Widths are the same wherever the family allows: hidden 32, MLP 64, 8 query heads, 4 KV groups where there are groups.
Families whose configuration has its own ``head_dim`` get 8, so that heads x head_dim differs from the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import transformers as hf
from transformers import PreTrainedConfig, PreTrainedModel

Task = Literal[
    "causal-lm",
    "masked-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "image-classification",
    "seq2seq-lm",
]

LABELS = 5
LENGTH = 12  # tokens a row; the sliding windows below are shorter, so that they cut something off
PADDING = 4  # pads in a padded row

TOKENS = {"vocab_size": 272, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
DEPTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8}
MHA = {**TOKENS, **DEPTH, "intermediate_size": 64, "max_position_embeddings": 128}
GQA = {**MHA, "num_key_value_heads": 4}
WIDE = {**GQA, "head_dim": 8}
MQA = {**TOKENS, **DEPTH, "ffn_hidden_size": 64, "max_position_embeddings": 128}
OPT = {**TOKENS, **DEPTH, "ffn_dim": 64, "max_position_embeddings": 128}
GPT = {**TOKENS, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 8, "n_inner": 64}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}
DISTILBERT = {**TOKENS, "dim": 32, "n_layers": 2, "n_heads": 8, "hidden_dim": 64, "max_position_embeddings": 128}
IMAGE = {**DEPTH, "intermediate_size": 64, "image_size": 16, "patch_size": 4, "num_channels": 3, "num_labels": LABELS}
T5 = {**TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 8, "decoder_start_token_id": 256}
BART = {
    **TOKENS,
    "max_position_embeddings": 128,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "decoder_start_token_id": 256,
    "forced_eos_token_id": 256,
}


@dataclass(frozen=True)
class Case:
    """A stock model class with its tiny configuration; ``config`` takes changes as keyword arguments."""

    family: str
    config: Callable[..., PreTrainedConfig]
    model_class: type[PreTrainedModel]
    task: Task

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"task is {self.task!r}; it must be one of {', '.join(get_args(Task))}")


def _case(
    model_class: type[PreTrainedModel], sizes: Mapping[str, object], /, *, task: Task = "causal-lm", **more: object
) -> Case:
    config_class: Any = model_class.config_class
    return Case(config_class.model_type, partial(config_class, **{**sizes, **more}), model_class, task)


SEPARATE = {
    "llama": _case(hf.LlamaForCausalLM, WIDE),
    "mistral": _case(hf.MistralForCausalLM, WIDE, sliding_window=6),
    "qwen2": _case(hf.Qwen2ForCausalLM, GQA),
    "qwen3": _case(hf.Qwen3ForCausalLM, WIDE, tie_word_embeddings=True),
    "gemma": _case(hf.GemmaForCausalLM, WIDE),
    "gemma2": _case(hf.Gemma2ForCausalLM, {**WIDE, **SLIDING}, query_pre_attn_scalar=16),
    "gemma3_text": _case(hf.Gemma3ForCausalLM, {**WIDE, **SLIDING}, query_pre_attn_scalar=16),
    "olmo2": _case(hf.Olmo2ForCausalLM, GQA),
    "granite": _case(hf.GraniteForCausalLM, {**GQA, **MULTIPLIERS}),
    "smollm3": _case(hf.SmolLM3ForCausalLM, GQA, no_rope_layers=[1, 0]),
    "cohere": _case(hf.CohereForCausalLM, GQA, use_qk_norm=False, logit_scale=0.5),
    "cohere-qk-norm": _case(hf.CohereForCausalLM, GQA, use_qk_norm=True, logit_scale=0.5),
    "stablelm": _case(hf.StableLmForCausalLM, GQA, partial_rotary_factor=0.5),
    "stablelm-parallel": _case(
        hf.StableLmForCausalLM, GQA, partial_rotary_factor=0.5, use_parallel_residual=True, use_qkv_bias=True
    ),
    "starcoder2": _case(hf.Starcoder2ForCausalLM, GQA),
    "phi": _case(hf.PhiForCausalLM, GQA, partial_rotary_factor=0.5),
    "phi-qk-layernorm": _case(hf.PhiForCausalLM, GQA, partial_rotary_factor=0.5, qk_layernorm=True),
    "opt": _case(hf.OPTForCausalLM, OPT),
    "opt-post-norm": _case(hf.OPTForCausalLM, OPT, do_layer_norm_before=False),
    "gptj": _case(hf.GPTJForCausalLM, GPT, rotary_dim=2),
    "llama-sequence-classification": _case(
        hf.LlamaForSequenceClassification, WIDE, task="sequence-classification", num_labels=LABELS
    ),
}

FUSED = {
    "gpt2": _case(hf.GPT2LMHeadModel, GPT),
    "phi3": _case(hf.Phi3ForCausalLM, GQA),
    "gpt_neox": _case(hf.GPTNeoXForCausalLM, MHA, rotary_pct=0.5),
    "gpt_neox-sequential": _case(hf.GPTNeoXForCausalLM, MHA, rotary_pct=0.5, use_parallel_residual=False),
    "bloom": _case(hf.BloomForCausalLM, {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 8}),
    "falcon-mqa": _case(hf.FalconForCausalLM, MQA, multi_query=True, parallel_attn=True),
    "falcon-grouped": _case(hf.FalconForCausalLM, MQA, new_decoder_architecture=True, num_kv_heads=4),
    "falcon-mha-alibi": _case(hf.FalconForCausalLM, MQA, multi_query=False, alibi=True, parallel_attn=False, bias=True),
}

MOE = {
    "mixtral": _case(hf.MixtralForCausalLM, WIDE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _case(hf.Qwen3MoeForCausalLM, {**WIDE, **EXPERTS}),
    "qwen3_moe-mixed": _case(hf.Qwen3MoeForCausalLM, {**WIDE, **EXPERTS}, mlp_only_layers=[0]),
}

ENCODERS = {
    "bert": _case(hf.BertForMaskedLM, MHA, task="masked-lm"),
    "bert-sequence-classification": _case(
        hf.BertForSequenceClassification, MHA, task="sequence-classification", num_labels=LABELS
    ),
    "bert-token-classification": _case(
        hf.BertForTokenClassification, MHA, task="token-classification", num_labels=LABELS
    ),
    "bert-question-answering": _case(hf.BertForQuestionAnswering, MHA, task="question-answering"),
    # RoBERTa counts positions from pad_token_id + 1 on, so the pad has to be a small id
    "roberta": _case(hf.RobertaForMaskedLM, MHA, task="masked-lm", pad_token_id=1),
    "distilbert": _case(
        hf.DistilBertForSequenceClassification, DISTILBERT, task="sequence-classification", num_labels=LABELS
    ),
    "modernbert": _case(
        hf.ModernBertForMaskedLM,
        MHA,
        task="masked-lm",
        layer_types=["full_attention", "sliding_attention"],
        local_attention=6,
        cls_token_id=256,
        sep_token_id=256,
    ),
}

VISION = {
    "vit": _case(hf.ViTForImageClassification, IMAGE, task="image-classification"),
    "deit": _case(hf.DeiTForImageClassification, IMAGE, task="image-classification"),
}

SEQ2SEQ = {
    "t5": _case(hf.T5ForConditionalGeneration, T5, task="seq2seq-lm", feed_forward_proj="relu"),
    "t5-gated": _case(
        hf.T5ForConditionalGeneration, T5, task="seq2seq-lm", feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "bart": _case(hf.BartForConditionalGeneration, BART, task="seq2seq-lm"),
}

ZOO: dict[str, Case] = {**SEPARATE, **FUSED, **MOE, **ENCODERS, **VISION, **SEQ2SEQ}
DECODERS = {case.family for case in (*SEPARATE.values(), *FUSED.values(), *MOE.values())}


def build(name: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """The model of a case in eval mode, float32; ``changes`` are keyword arguments of its configuration.

    With z standard normal, norm weights are as they were (1, in the Gemmas 0) + 0.1 z, and every other parameter
    (biases of norms too) is 0.2 z. The queries of T5, which does not divide its scores by the root of the head size,
    carry that factor in their weights, as in T5's own initialisation: saturated attention would blow up every rounding.
    """
    case = ZOO[name]
    model = case.model_class(case.config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * noise if _is_norm_weight(path) else 0.2 * noise)
            if case.family == "t5" and path.endswith(".q.weight"):
                parameter /= model.config.d_kv**0.5
    model.tie_weights()
    return model.eval()


def inputs(name_or_model: str | PreTrainedModel, case: Case, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Three rows for a forward pass.

    Text: ``input_ids`` and ``attention_mask`` [3, 12], int64; row 0 has no pads, row 1 is padded on the left (encoders:
    on the right), row 2 on the right. Encoder-decoders: also ``decoder_input_ids`` [3, 7]. Vision: ``pixel_values``
    [3, channels, height, width].
    """
    config = case.config() if isinstance(name_or_model, str) else name_or_model.config
    generator = torch.Generator().manual_seed(seed)
    if case.task == "image-classification":
        shape = (3, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    ids = torch.randint(2, 256, (3, LENGTH), generator=generator)  # below the special tokens, above RoBERTa's pad
    mask = _mask(left=case.family in DECODERS)
    batch = {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}
    if case.task == "seq2seq-lm":
        batch["decoder_input_ids"] = torch.randint(2, 256, (3, 7), generator=generator)
    return batch


def labels(case: Case, batch: dict[str, torch.Tensor], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """The keyword arguments that make ``model(**batch, **labels(case, batch))`` return a loss; pads do not count."""
    generator = torch.Generator().manual_seed(seed + 1)
    if case.task == "causal-lm":
        return {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
    if case.task == "seq2seq-lm":
        return {"labels": torch.randint(2, 256, batch["decoder_input_ids"].shape, generator=generator)}
    if case.task == "question-answering":
        start = torch.randint(0, 4, (3,), generator=generator)
        return {"start_positions": start, "end_positions": start + 2}
    if case.task in ("sequence-classification", "image-classification"):
        return {"labels": torch.randint(0, LABELS, (3,), generator=generator)}
    high = LABELS if case.task == "token-classification" else 256
    drawn = torch.randint(0, high, batch["input_ids"].shape, generator=generator)
    return {"labels": drawn.masked_fill(batch["attention_mask"] == 0, -100)}


def _is_norm_weight(path: str) -> bool:
    module, _, leaf = path.rpartition(".")
    return leaf == "weight" and ("norm" in module.lower() or module.rpartition(".")[2].startswith("ln_"))


def _mask(*, left: bool) -> torch.Tensor:
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    if left:
        mask[1, :PADDING] = 0
    else:
        mask[1, -PADDING:] = 0
    mask[2, -PADDING - 1 :] = 0
    return mask

"""A tiny tokenizer with a chat template."""

from __future__ import annotations

from conftest import build_tokenizer
from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [A] "
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)


def chatting(template: str = CHATML) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer

"""What every server is asked: the embedded model, pruned, and twenty prompts of text that it was never shown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lpc
from lpc.demo.text import corpus

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 20, 12, 16
RATIO, TRAINED_ON = 0.3, 200
MODEL = f"lpc's embedded model, pruned by {RATIO} without tuning"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An output of lpc, prompts as token ids and as text, and what torch says to each (``tokens``)."""

    output: Path
    prompts: list[list[int]]
    texts: list[str]
    tokens: list[list[int]]
    tokenizer: Any

    @property
    def case(self) -> Path:
        """The prompts as a file for other languages."""
        path = self.output.parent / "case.json"
        path.write_text(json.dumps({"prompts": self.prompts, "texts": self.texts, "new_tokens": NEW_TOKENS}))
        return path

    def texts_of(self, tokens: list[list[int]]) -> list[str]:
        """The tokens as text."""
        return [self.tokenizer.decode(each) for each in tokens]


def asked(folder: Path) -> Asked:
    """The output in ``folder``, made if it is not there, and the prompts."""
    output = folder / "output"
    if not (output / "lpc.json").is_file():
        model = Path(str(files("lpc"))) / "assets" / "demo-model"
        options = {"tune": lpc.TuneOptions(steps=0), "data_options": lpc.DataOptions(sequence_length=128)}
        lpc.compress(model, data=list(corpus().train[:TRAINED_ON]), ratio=RATIO, **options).save(output, force=True)
    model = AutoModelForCausalLM.from_pretrained(output / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "hf")
    prompts, tokens = [], []
    for prompt in starts(tokenizer):
        found = greedy(model, prompt)
        if tokenizer.eos_token_id not in found:  # some servers leave it out, some do not
            prompts.append(prompt)
            tokens.append(found)
        if len(prompts) == PROMPTS:
            break
    texts = [tokenizer.decode(each) for each in prompts]
    return Asked(output=output, prompts=prompts, texts=texts, tokens=tokens, tokenizer=tokenizer)


def starts(tokenizer: Any) -> list[list[int]]:
    """The first tokens of held-out documents, which are the tokens of their text, too."""
    found = (tokenizer(text).input_ids[:PROMPT_TOKENS] for text in corpus().heldout)
    return [each for each in found if tokenizer(tokenizer.decode(each)).input_ids == each]


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    """What torch goes on with."""
    ids = torch.tensor([prompt])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    return [int(token) for token in answer[0, len(prompt) :]]

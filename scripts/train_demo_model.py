"""Train the demo model that lpc carries: ``PYTHONPATH=. python scripts/train_demo_model.py``.

Its text is the Python installation's own. Writes ``lpc/assets/demo-model``: a small Llama with grouped-query
attention, its tokenizer, and a README with the numbers of the run. Weights repeat bit for bit only with the
same Python, torch, processor and thread count.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lpc.demo.text import HELDOUT_ONE_IN, corpus

END = "<|endoftext|>"
OUT = Path(__file__).resolve().parent.parent / "lpc" / "assets" / "demo-model"
README = """\
A small Llama trained from scratch on the documentation in Python's standard library, for a `make demo` that
needs no download: {parameters:,} parameters, hidden {hidden_size}, {num_hidden_layers} layers,
{num_attention_heads} query heads on {num_key_value_heads} KV heads of {head_dim}, MLP {intermediate_size},
vocabulary {vocab_size} (byte-level BPE), tied embeddings, context {max_position_embeddings} (trained at
{window}), float32.

- `scripts/train_demo_model.py`: seed {seed}, {steps:,} steps of {batch} x {window} tokens ({epochs:.1f}
  epochs), {minutes:.1f} minutes, CPU threads: {threads}; Python {python}, torch {torch}
- Text: `lpc.demo_text.corpus()`, the help topics of pydoc and the docstrings of the standard library (PSF
  License Agreement, Copyright Python Software Foundation). Train: {train}; held out: {heldout}
- Split: held out where the first 32 bits of a document's SHA-256 are divisible by {one_in}; of those,
  documents that share a paragraph with a train document are dropped. The tokenizer saw the train split only.
  Another Python carries somewhat other text: a document held out there may be a revision of one trained on
- Train loss, mean of the last 100 steps: {loss:.3f} nats. Held-out token perplexity, non-overlapping windows:
  **{perplexity:.2f}**; the unigram model's (train counts, add one) on the same tokens: {unigram:.1f}

Real text, real structure; small and trained briefly, so read differences, not absolute values.
"""


@dataclass(frozen=True)
class Recipe:
    """How the model is trained. One step reads ``batch`` windows of ``window`` tokens."""

    seed: int = 0
    steps: int = 1600
    batch: int = 4
    window: int = 256
    peak_lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    vocab: int = 2048
    threads: int = 1


def train_tokenizer(texts: tuple[str, ...], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which one special token, id 0, is beginning, end and padding."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=recipe.vocab, special_tokens=[END], initial_alphabet=letters)
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=END, eos_token=END, pad_token=END, model_max_length=512
    )


def build_model(vocab: int) -> LlamaForCausalLM:
    """A Llama without two dimensions of one size, so that a tensor cut along the wrong one is noticed."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,  # 0 would freeze the embedding of END, which begins every text
    )
    return LlamaForCausalLM(config)


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: tuple[str, ...]) -> torch.Tensor:
    """All documents in a row, each preceded by END, with one END at the end: shape (tokens,)."""
    ids = [token for text in texts for token in (0, *tokenizer.encode(text, add_special_tokens=False))]
    return torch.tensor([*ids, 0])


def windows(stream: torch.Tensor, size: int, start: int = 0) -> torch.Tensor:
    """Non-overlapping windows from ``start`` on: shape (windows, size). The rest is dropped."""
    count = (len(stream) - start) // size
    return stream[start : start + count * size].view(count, size)


def batches(stream: torch.Tensor, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Endless shuffled batches. Each epoch cuts the stream at another offset."""
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        start = int(torch.randint(recipe.window, (1,), generator=generator))
        cut = windows(stream, recipe.window, start)
        order = torch.randperm(len(cut), generator=generator)
        for first in range(0, len(cut) - recipe.batch + 1, recipe.batch):
            yield cut[order[first : first + recipe.batch]]


def next_token_loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats over all tokens of each window but its first."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def optimizer_for(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the norms' vectors alone."""
    matrices = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay}
    vectors = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], lr=recipe.peak_lr, betas=(0.9, 0.99))


def train(model: LlamaForCausalLM, stream: torch.Tensor, cut: torch.Tensor, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to a tenth. Returns the mean loss in nats of the last 100 steps."""
    optimizer = optimizer_for(model, recipe)
    losses: list[float] = []
    for step, batch in zip(range(recipe.steps), batches(stream, recipe), strict=False):
        done = max(0.0, (step - recipe.warmup) / (recipe.steps - recipe.warmup))
        rate = min(1.0, (step + 1) / recipe.warmup) * (0.55 + 0.45 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * rate
        loss = next_token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 250 == 0:
            recent, now = sum(losses[-100:]) / len(losses[-100:]), math.exp(heldout_loss(model, cut[::4]))
            print(f"step {step + 1}: loss {recent:.3f}, held-out perplexity {now:.2f}", flush=True)
    return sum(losses[-100:]) / len(losses[-100:])


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, cut: torch.Tensor) -> float:
    """Mean cross-entropy in nats over windows of one length."""
    return float(sum(next_token_loss(model, window[None]).item() for window in cut)) / len(cut)


def unigram_loss(stream: torch.Tensor, cut: torch.Tensor, vocab: int) -> float:
    """Mean cross-entropy in nats of the train counts, add one, on the tokens that the model is asked."""
    counts = torch.bincount(stream, minlength=vocab).double() + 1
    return float(-(counts / counts.sum()).log()[cut[:, 1:]].mean())


def main() -> None:
    """Train, measure, and write a folder that stock ``from_pretrained`` loads."""
    parser = argparse.ArgumentParser(description="Train the demo model that lpc carries.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="default: %(default)s")
    options = parser.parse_args()
    recipe = Recipe(steps=options.steps)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    text = corpus()
    tokenizer = train_tokenizer(text.train, recipe)
    stream, heldout = (token_stream(tokenizer, split) for split in (text.train, text.heldout))
    cut = windows(heldout, recipe.window)
    model = build_model(recipe.vocab)
    began = time.monotonic()
    numbers = {
        "loss": train(model, stream, cut, recipe),
        "minutes": (time.monotonic() - began) / 60,
        "perplexity": math.exp(heldout_loss(model, cut)),
        "unigram": math.exp(unigram_loss(stream, cut, recipe.vocab)),
        "epochs": recipe.steps * recipe.batch * recipe.window / len(stream),
        "parameters": model.num_parameters(),
        "train": f"{len(text.train):,} documents, {len(stream):,} tokens",
        "heldout": f"{len(text.heldout):,} documents, {len(heldout):,} tokens",
    }
    versions = {"one_in": HELDOUT_ONE_IN, "python": platform.python_version(), "torch": torch.__version__}
    print(numbers)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    readme = README.format(**model.config.to_dict(), **asdict(recipe), **numbers, **versions)
    (options.out / "README.md").write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()

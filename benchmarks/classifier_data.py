"""Small real classification data: digits as images, and sentences of the standard library labelled by module."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

Row = dict[str, torch.Tensor]
Split = tuple[list[Row], list[Row]]
"""Training and test rows."""

TEST_SHARE = 0.2
SPLIT_SEED = 0

MODULES = (
    "_pydecimal",
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "tkinter",
    "turtle",
    "typing",
    "unittest",
    "xml",
)
SENTENCES_A_MODULE = 400
LEAST_WORDS = 5
MOST_TOKENS = 40
VOCABULARY = 1256


def digits() -> Split:
    """scikit-learn's 1,797 handwritten digits, ``pixel_values`` [1, 8, 8] from -1 to 1."""
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    return _split([{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)])


def sentences() -> tuple[PreTrainedTokenizerFast, Split]:
    """Sentences of docstrings, labelled by their module; the tokenizer is trained on the training part."""
    texts = [(text, label) for label, name in enumerate(MODULES) for text in _sentences(name)]
    train, test = _split(texts)
    tokenizer = _tokenizer([text for text, _ in train])

    def rows(part: list[tuple[str, int]]) -> list[Row]:
        encoded = tokenizer([text for text, _ in part], truncation=True, max_length=MOST_TOKENS)["input_ids"]
        labels = [label for _, label in part]
        return [{"input_ids": torch.tensor(i), "labels": torch.tensor(y)} for i, y in zip(encoded, labels, strict=True)]

    return tokenizer, (rows(train), rows(test))


def _split(items: list[Any]) -> tuple[list[Any], list[Any]]:
    shuffled = random.Random(SPLIT_SEED).sample(items, len(items))
    test = round(len(items) * TEST_SHARE)
    return shuffled[test:], shuffled[:test]


def _sentences(module: str) -> list[str]:
    """Distinct sentences of one module, at most ``SENTENCES_A_MODULE``, the same ones every time."""
    root = Path(sysconfig.get_paths()["stdlib"])
    place = root / module
    files = sorted(place.rglob("*.py")) if place.is_dir() else [root / f"{module}.py"]
    found = dict.fromkeys(
        sentence
        for path in files
        if "test" not in path.relative_to(root).parts
        for text in _docstrings(path)
        for sentence in _cut(text)
    )
    ordered = sorted(found)
    return random.Random(SPLIT_SEED).sample(ordered, min(SENTENCES_A_MODULE, len(ordered)))


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(path.read_bytes(), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _cut(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            if len(sentence.split()) >= LEAST_WORDS and ">>>" not in sentence:
                yield sentence


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: unlike WordPiece's, its training gives the same vocabulary every time."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")

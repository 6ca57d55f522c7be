"""Tiny real models, a byte-level tokenizer and some text, all built in code."""

from __future__ import annotations

import functools
import gc
import os
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads crawl on a busy machine
os.environ.setdefault("LPC_CACHE", os.path.join(tempfile.gettempdir(), f"lpc-tests-{os.getuid()}"))  # not the user's

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.onnx._internal.exporter._registration import ONNXRegistry
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from passes.models import AUTO_CLASSES

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; processes of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # tiny models: threads only cost time, and one thread makes sums reproducible

SIZES = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
}

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


def build_model(family: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of the family; norms, biases and weights are all away from their trivial initial values."""
    config = CONFIGS[family](**{**SIZES, **changes})
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.2 * noise)
    model.tie_weights()
    return model.eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and ``<|endoftext|>`` (256) as bos, eos and pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=128,
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """What importing has made stays: the collector, which some tests and torch's exporter call, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cheaper_tracing() -> Iterator[None]:
    """Parse torch's table of ONNX operators once instead of once an export: a sixth of its time."""
    build = functools.cache(ONNXRegistry.from_torchlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(lambda opset_version: build(opset_version)))
        yield


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    return build_model("llama")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 20 kB of text in 40 documents."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    story = "The cat sat on the mat number {0}, and the dog ran {0} times round the tree. " * 6
    path.write_text("\n<|endoftext|>\n".join(story.format(i) for i in range(40)), encoding="utf-8")
    return path


@pytest.fixture
def auto_classes_as_before() -> Iterator[None]:
    """What a test registers with transformers' auto classes is taken back."""
    mappings = [getattr(transformers, name)._model_mapping for name in (*AUTO_CLASSES.values(), "AutoModel")]
    before = [dict(mapping._extra_content) for mapping in mappings]
    yield
    for mapping, content in zip(mappings, before, strict=True):
        mapping._extra_content = content

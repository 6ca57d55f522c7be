"""compress, save and measure embedding models: texts alone as data, towards the dense model's vectors."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
import transformers as hf
from sentence_models import sentence_folder
from transformers import PreTrainedTokenizerBase

import lpc
from exporters.options import OnnxOptions
from passes.errors import DataError, UnsupportedModelError

TEXTS = [
    f"{who} {does} the {what}"
    for who in ("a cat", "one dog", "my neighbour")
    for does in ("sees", "will not eat", "paints")
    for what in ("house", "red fish", "sum of all numbers")
]
WIDE = {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 64}


def folder_of(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Path:
    folder = sentence_folder(tmp_path / "source", {"pooling_mode_mean_tokens": True})
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(**WIDE, pad_token_id=256)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=pytest.mark.matrix, id="fp32"), pytest.param(torch.bfloat16, id="bf16")],
)
def test_a_sentence_transformers_folder_becomes_a_smaller_one_with_its_graph(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> None:
    folder = folder_of(tmp_path, tiny_tokenizer, dtype)
    steps = 2 if dtype is torch.float32 else 0
    result = lpc.compress(
        folder, TEXTS, 0.15, steps=steps, multiple=1, data_options=lpc.DataOptions(heldout_fraction=0.3)
    )
    heldout = result.report.heldout
    assert heldout is not None
    assert set(heldout.measures) == {"loss", "similarity", "neighbours"}
    assert heldout.measures["similarity"].dense == pytest.approx(1, abs=1e-3)
    assert 0 < heldout.measures["similarity"].pruned <= 1
    pooled = dtype is torch.float32
    report = result.save(tmp_path / "out", export={"hf": None, "onnx": OnnxOptions(pooling=pooled)})
    for place in ("hf", "onnx"):
        assert json.loads((tmp_path / "out" / place / "modules.json").read_text())[1]["path"] == "1_Pooling"
        assert (tmp_path / "out" / place / "sentence_bert_config.json").is_file()
    assert not list((tmp_path / "out").rglob("*.bin"))
    graph = onnx.load(str(tmp_path / "out" / "onnx" / "model.onnx"), load_external_data=False).graph
    assert [each.name for each in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [each.name for each in graph.output] == ["sentence_embedding" if pooled else "last_hidden_state"]
    assert type(hf.AutoModel.from_pretrained(tmp_path / "out" / "hf")) is hf.BertModel
    assert report.packages[0].measures.keys() == heldout.measures.keys()
    rows = [
        {"input_ids": tiny_tokenizer(text)["input_ids"], "labels": [float(n), 1.0, 2.0]} for n, text in enumerate(TEXTS)
    ]
    both = [lpc.quality(tmp_path / "out" / place, rows) for place in ("hf", "onnx")]
    assert both[0].similarity == pytest.approx(both[1].similarity, abs=1e-4 if pooled else 0.02)


def test_what_is_no_text_and_too_little_of_it_is_refused(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = folder_of(tmp_path, tiny_tokenizer, torch.float32)
    for data, message in (
        (["one text"], "has 1 texts"),
        (TEXTS[:3], "cannot be split"),
        ([{"input_ids": [1, 2]}], "no labels"),
        (None, "no data are given"),
    ):
        with pytest.raises(DataError, match=message):
            lpc.compress(folder, data, 0.1, steps=0)


def test_pooling_inside_a_graph_is_for_embedding_models(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    model = hf.BertForSequenceClassification(hf.BertConfig(**WIDE, pad_token_id=256))
    with pytest.raises(UnsupportedModelError, match=r"pooling .* is for embedding models"):
        lpc.compress(model, TEXTS, 0.1, steps=0, tokenizer=tiny_tokenizer, export={"onnx": OnnxOptions(pooling=True)})

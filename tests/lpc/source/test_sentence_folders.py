from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from conftest import build_tokenizer
from sentence_models import SMALL, sentence_folder

from lpc.source import load_source
from passes.errors import LpcError, ModelError, UnsupportedModelError
from passes.models import Pooling, PoolingMode, pooling_of, sentence_files


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, PoolingMode.MEAN),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, PoolingMode.CLS),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, PoolingMode.LAST),
        ({"pooling_mode": "cls"}, PoolingMode.CLS),
    ],
    ids=str,
)
def test_a_folder_says_how_its_vectors_are_pooled(tmp_path: Path, said: dict[str, Any], mode: PoolingMode) -> None:
    source = load_source(sentence_folder(tmp_path, said))
    assert isinstance(source.model, hf.BertModel)
    assert pooling_of(source.model) == Pooling(mode=mode, normalise=True)
    assert "pooled as modules.json says" in source.notes[0]
    kept = {name for name, _ in sentence_files(source.model).files}
    assert kept == {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"}


def test_of_a_folder_whose_configuration_names_a_head_the_model_without_it_is_taken(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode_mean_tokens": True})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "architectures": ["BertForMaskedLM"]}))
    assert type(load_source(folder).model).__name__ == "BertModel"


def on_the_hub(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder laid into a cache as huggingface_hub lays it there, by links into blobs; the name of the model."""
    repository, commit = cache / "models--own--sentences", "0" * 40
    snapshot = repository / "snapshots" / commit
    for path in folder.rglob("*"):
        if path.is_file():
            content, link = path.read_bytes(), snapshot / path.relative_to(folder)
            blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
            for each in (blob, link):
                each.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return "own/sentences"


def test_a_hub_model_brings_its_files_along_and_is_taken_without_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sentence_folder(tmp_path / "made", {"pooling_mode": "cls"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "architectures": ["BertForMaskedLM"]}))
    build_tokenizer().save_pretrained(folder)
    source = load_source(on_the_hub(folder, tmp_path / "cache", monkeypatch))
    assert type(source.model).__name__ == "BertModel"
    assert pooling_of(source.model) == Pooling(mode=PoolingMode.CLS, normalise=True)
    kept = {name for name, _ in sentence_files(source.model).files}
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= kept
    assert not any("safetensors" in name for name in kept)


def test_a_hub_model_of_which_a_part_is_here_is_refused_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sentence_folder(tmp_path / "made", {"pooling_mode": "cls"})
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(LpcError, match=r"1_Pooling/config\.json"):
        load_source(on_the_hub(folder, tmp_path / "cache", monkeypatch))


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "pools by max,"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "pools by mean and cls,"),
        ({"pooling_mode": "weightedmean"}, "pools by weightedmean,"),
        ({}, "pools by nothing,"),
    ],
    ids=str,
)
def test_a_pooling_that_is_not_known_is_refused_by_name(tmp_path: Path, said: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{named} which lpc does not know; it knows one of mean"):
        load_source(sentence_folder(tmp_path, said))


def test_a_module_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode_mean_tokens": True}, last="Dense")
    with pytest.raises(UnsupportedModelError, match="the module Dense in 2_Dense, which lpc does not know"):
        load_source(folder)


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", '[{"path": ""}]', "nothing"])
def test_modules_that_are_none_are_refused_with_the_file(tmp_path: Path, text: str) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode_mean_tokens": True})
    (folder / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"modules\.json"):
        load_source(folder)


def test_a_file_that_is_too_large_to_be_taken_along_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode_mean_tokens": True})
    with (folder / "words.txt").open("wb") as file:
        file.truncate(17 << 20)
    load_source(folder)
    assert "words.txt has more than 16 MiB and is not taken along" in caplog.text


def test_a_live_decoder_without_a_head_is_pooled_at_its_last_token() -> None:
    config = hf.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=4)
    assert pooling_of(load_source(hf.Qwen3Model(config)).model).mode is PoolingMode.LAST
    assert pooling_of(load_source(hf.BertModel(hf.BertConfig(**SMALL))).model).mode is PoolingMode.MEAN

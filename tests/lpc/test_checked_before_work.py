"""What cannot leave is refused before the data are opened: a missing file of data would be the next complaint."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from conftest import build_model, build_tokenizer
from typer.testing import CliRunner

import lpc
from lpc.cli.app import app

NOWHERE = "nowhere.txt"
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


def test_compress_says_first_what_a_format_refuses() -> None:
    model = build_model("llama")
    with pytest.raises(lpc.TokenizerError, match="needs its tokenizer"):
        lpc.compress(model, NOWHERE, 0.3, export=["hf", "onnx"])
    with pytest.raises(lpc.OptionError, match="nosuch"):
        lpc.compress(model, NOWHERE, 0.3, export=["nosuch"])
    for formats in ((), ["hf"]):
        with pytest.raises(lpc.MissingFileError, match=NOWHERE):
            lpc.compress(model, NOWHERE, 0.3, tokenizer=build_tokenizer(), export=formats)


def test_a_family_that_cannot_be_timed_is_refused_first() -> None:
    with pytest.raises(lpc.UnsupportedModelError, match="not encoder-decoders"):
        lpc.compress_family(zoo.build("t5"), NOWHERE, [0.1, 0.2], export=["hf", "onnx"], benchmark=True)
    with pytest.raises(lpc.OptionError, match="leave benchmark off"):
        lpc.compress_family(build_model("llama"), NOWHERE, [0.1, 0.2], export=["hf"], benchmark=True)


def test_the_command_says_it_before_it_works(text_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    zoo.build("llama", rope_parameters=DYNAMIC).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    words = ["compress", str(model), "--data", str(text_file), "--ratio", "0.3", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, lpc.UnsupportedModelError)
    assert "--no-onnx" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_frequencies_that_depend_on_the_length_go_through_the_proofs(name: str, tmp_path: Path) -> None:
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [2.0] * 2, "rope_theta": 10000.0}
    rope = DYNAMIC if name == "llama" else {**longrope, "original_max_position_embeddings": 64, "factor": 2.0}
    rows = [list(range(start, start + 16)) for start in range(24)]
    model = zoo.build(name, rope_parameters=rope)
    result = lpc.compress(model, rows, 0.2, steps=1, sequence_length=16, samples=8)
    result.save(tmp_path / "out", export=["hf"])
    assert result.model.config.rope_parameters["rope_type"] == rope["rope_type"]

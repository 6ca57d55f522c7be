"""Bases of 8 and 4 bits: ranked and tuned as they are packed, merged into full precision. Needs bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, build_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import lpc
from lpc.source import load_source
from passes.criteria.base import merged_weights, weight_names
from passes.errors import OptionError, PostconditionError
from passes.models import is_packed, unpacked
from passes.pipeline import Program
from passes.trace import TracePass
from passes.tuning import UnpackPass
from passes.tuning.unpack import UnpackReport

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
noisy = pytest.mark.filterwarnings("ignore")  # bitsandbytes's own, of old torch names and of casts

STORY = "The cat sat on the mat number {0}, and the dog ran {0} times round the tree. " * 6
DATA = {"data": [STORY.format(i) for i in range(20)], "ratio": 0.3, "sequence_length": 32, "samples": 16}
QUICK: dict[str, Any] = {**DATA, "batch_size": 4, "steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model"
    changes = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "intermediate_size": 128}
    build_model("llama", **changes).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def live(folder: Path, load_in: str) -> PreTrainedModel:
    config = BitsAndBytesConfig(load_in_4bit=load_in == "4bit", load_in_8bit=load_in == "8bit")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")


@needs_bitsandbytes
@noisy
@pytest.mark.parametrize(
    ("load_in", "more", "far"),
    [
        ("4bit", {}, (0.05, 0.15)),
        ("8bit", {}, (0.001, 0.01)),
        ("4bit", {"criterion": "loraprune", "steps": 3}, (0.05, 0.15)),
        ("4bit", {"steps": 0}, (0.05, 0.15)),
    ],
    ids=["4bit", "8bit", "progressive", "untrained"],
)
def test_a_packed_run_ends_in_the_sources_own_weights(
    folder: Path, tmp_path: Path, load_in: str, more: dict[str, Any], far: tuple[float, float]
) -> None:
    result = lpc.compress(folder, **{**QUICK, **more}, load_in=load_in)
    report = next(record.report for record in result.program.history if record.name == "unpack")
    assert isinstance(report, UnpackReport)
    assert report.weights == 14
    assert far[0] < report.farthest < far[1]
    assert "quantization_config" not in result.model.config.to_dict()
    assert {tensor.dtype for tensor in result.model.state_dict().values()} == {torch.float32}
    result.save(tmp_path / "out", export=["hf"])
    trained = tmp_path / "out" / "adapter"
    again = lpc.apply(tmp_path / "out" / "plan.json", folder, adapter=trained if trained.is_dir() else None)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])


@needs_bitsandbytes
@noisy
def test_a_live_packed_model_is_unpacked_and_stays_as_it_is(folder: Path) -> None:
    model = live(folder, "4bit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = lpc.compress(model, tokenizer=build_tokenizer(), **QUICK)
    report = next(record.report for record in result.program.history if record.name == "unpack")
    assert report == UnpackReport(14, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@needs_bitsandbytes
@noisy
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_scores_see_what_the_packed_model_computes_with(folder: Path, load_in: str) -> None:
    program = TracePass()(Program.start(load_source(live(folder, load_in)).model)).program
    seen = merged_weights(program.model, weight_names(program.traced))
    dense = live(folder, load_in).dequantize()
    assert all(is_packed(weight.weight) for weight in seen.values())
    for name, weight in seen.items():
        expected = dense.get_parameter(name)
        actual = unpacked(weight).merged((slice(None), slice(None)))[0]
        assert actual.shape == expected.shape
        assert torch.allclose(actual, expected.float(), rtol=0, atol=1e-6)


@needs_bitsandbytes
@noisy
def test_another_models_weights_are_not_put_in_the_place_of_packed_ones(folder: Path) -> None:
    program = TracePass()(Program.start(load_source(live(folder, "4bit")).model)).program

    def other() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(folder)
        torch.nn.init.normal_(model.model.layers[1].mlp.up_proj.weight, std=0.2)
        return model

    with pytest.raises(PostconditionError, match=r"layers\.1\.mlp\.up_proj is 1\.\d+ of its length away"):
        UnpackPass(other)(program)


@needs_bitsandbytes
@noisy
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"criterion": "taylor", "steps": 0}, "has no gradient, it holds 8- or 4-bit numbers"),
        ({"compensate": True}, "cannot be re-solved before tuning"),
        ({"dtype": "bf16"}, "is its own"),
    ],
    ids=["taylor", "compensate", "dtype"],
)
def test_what_packed_weights_cannot_do_is_refused(folder: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        lpc.compress(live(folder, "4bit"), tokenizer=build_tokenizer(), **{**QUICK, **more})


def test_what_is_not_packed_is_left_alone() -> None:
    program = TracePass()(Program.start(build_model("llama"))).program
    result = UnpackPass()(program)
    assert result.program.model is program.model
    assert not result.modified


def test_only_a_folder_is_packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="load the live model packed yourself"):
        lpc.compress(build_model("llama"), **QUICK, load_in="4bit")
    with pytest.raises(OptionError, match="unknown load_in"):
        lpc.compress(folder, **QUICK, load_in="2bit")
    monkeypatch.setattr("passes.models.packed.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="pip install bitsandbytes"):
        lpc.compress(folder, **QUICK, load_in="4bit")

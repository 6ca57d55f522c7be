from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugins import installed

import lpc
from exporters.hf import Processor
from exporters.options import DEFAULT_EXPORTS, OnnxOptions
from exporters.registry import EXPORTERS, Exporter, chosen, register_exporter
from passes.errors import OptionError, PostconditionError
from passes.models import Parity, base_model
from passes.pipeline import Pass, PassResult, Program, RunContext


@dataclass(frozen=True)
class ArraysPass(Pass):
    """Writes every tensor as a .npy file, and reads it again."""

    folder: Path = field(metadata={"record": False})
    processor: Processor | None = field(default=None, metadata={"record": False})
    dtype: str = "float32"
    name = "arrays"

    def call(self, program: Program, run: RunContext) -> PassResult:
        self.folder.mkdir()
        for name, tensor in base_model(program.model).state_dict().items():
            np.save(self.folder / f"{name}.npy", tensor.numpy().astype(self.dtype))
        return PassResult(program, modified=False)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        tensors = base_model(after.model).state_dict()
        same = all(
            np.array_equal(np.load(self.folder / f"{name}.npy"), tensor.numpy()) for name, tensor in tensors.items()
        )
        return (Parity("arrays", 0.0 if same else 1.0, 0.0),)


ARRAYS = Exporter(
    name="arrays",
    description="a .npy file for each tensor",
    make=lambda folder, processor, options: ArraysPass(folder, processor, options or "float32"),
    options=str,
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with EXPORTERS.restored():
        yield


@pytest.fixture(scope="module")
def result(tiny_model_folder: Path) -> lpc.Result:
    return lpc.compress(tiny_model_folder, data=["one two three four"] * 200, ratio=0.2, steps=0, criterion="magnitude")


def test_the_formats_that_are_asked_for_are_written_and_no_other(result: lpc.Result, tmp_path: Path) -> None:
    register_exporter(ARRAYS)
    report = result.save(tmp_path / "out", export=["arrays"])
    assert (tmp_path / "out" / "arrays" / "model.norm.weight.npy").is_file()
    assert not (tmp_path / "out" / "hf").exists()
    assert not (tmp_path / "out" / "onnx").exists()
    assert report.to_json()["parity"]["arrays"] == {"value": 0.0, "tolerance": 0.0}
    assert "arrays/model.norm.weight.npy" in (tmp_path / "out" / "lpc.json").read_text(encoding="utf-8")


def test_a_format_that_is_not_what_it_should_be_is_missing_and_the_others_are_kept(
    result: lpc.Result, tmp_path: Path
) -> None:
    register_exporter(ARRAYS)
    with pytest.raises(PostconditionError, match="pass 'arrays' failed its verification"):
        result.save(tmp_path / "out", export={"hf": None, "arrays": "float16"})
    assert not (tmp_path / "out" / "arrays").exists()
    assert (tmp_path / "out" / "hf" / "config.json").is_file()
    missing = json.loads((tmp_path / "out" / "lpc.json").read_text(encoding="utf-8"))["missing"]
    assert list(missing) == ["arrays"]


def test_with_force_an_older_output_loses_the_formats_that_exporters_own(result: lpc.Result, tmp_path: Path) -> None:
    register_exporter(ARRAYS)
    result.save(tmp_path / "out", export=["arrays"])
    (tmp_path / "out" / "mine.txt").write_text("kept")
    result.save(tmp_path / "out", export=["hf"], force=True)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"hf", "mine.txt"} <= left
    assert "arrays" not in left


@pytest.mark.parametrize("name", ["", "../up", "lpc.json"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name!r} cannot be that of a folder"):
        replace(ARRAYS, name=name)


def test_names_are_chosen_in_the_order_of_the_registry_with_their_options() -> None:
    assert list(chosen(["onnx", "hf"])) == list(DEFAULT_EXPORTS) == ["hf", "onnx"]
    options = OnnxOptions(greedy_prompts=0)
    assert chosen({"onnx": options}) == {"onnx": options}
    assert chosen(["onnx"]) == {"onnx": OnnxOptions()}


@pytest.mark.parametrize(
    ("exports", "match"),
    [
        ([], "at least one format to export: hf, onnx"),
        (["gguf"], "unknown exporter 'gguf': choose one of hf, onnx"),
        ({"onnx": 3}, "'onnx' takes OnnxOptions, got 3"),
        ({"hf": OnnxOptions()}, "'hf' takes no options"),
    ],
)
def test_impossible_formats_are_refused_before_anything_is_written(
    exports: Any, match: str, result: lpc.Result, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=match):
        result.save(tmp_path / "out", export=exports)
    assert not list(tmp_path.iterdir())


def test_a_package_brings_an_exporter(tmp_path: Path) -> None:
    code = "from exporters.registry import Exporter\nE = Exporter(name='dust', description='dust', make=print)\n"
    with installed(tmp_path, "dust_package", "lpc.exporters", {"dust": "dust_package:E"}, code) as run:
        said = "from lpc.options import OutputOptions; print(OutputOptions(export=['dust', 'hf']).exports)"
        assert run(said) == "('dust', 'hf')"


def test_each_precision_has_its_bytes_and_its_held_out_quality_in_the_report(
    result: lpc.Result, tmp_path: Path
) -> None:
    asked = OnnxOptions(precision=("auto", "int4"), greedy_prompts=0)
    report = result.save(tmp_path / "out", export={"onnx": asked})
    exact, rounded = report.packages
    assert [(each.precision, each.folder) for each in report.packages] == [("fp32", "onnx/fp32"), ("int4", "onnx/int4")]
    assert report.heldout is not None
    assert exact.measures["perplexity"] == report.heldout.measures["perplexity"].pruned
    assert rounded.measures["perplexity"] == pytest.approx(exact.measures["perplexity"], rel=0.2)
    assert rounded.measures["perplexity"] != exact.measures["perplexity"]
    assert rounded.file_bytes < exact.file_bytes
    manifest = json.loads((tmp_path / "out" / "lpc.json").read_text(encoding="utf-8"))
    assert manifest["packages"][1]["file_bytes"] == rounded.file_bytes
    assert "int4: int4 against torch in fp32" in manifest["parity"]
    assert f"| int4 | {rounded.file_bytes / 1e6:,.1f} |" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "ONNX in int4" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_widths_are_multiples_of_the_blocks_that_are_asked_for(tiny_model_folder: Path) -> None:
    asked = {"onnx": OnnxOptions(precision=("int8", "fp32"), block=16)}
    data = ["one two three four"] * 200
    model = {"ratio": 0.2, "steps": 0, "criterion": "magnitude", "export": asked}
    made = lpc.compress(tiny_model_folder, data=data, **model)
    assert {layer.mlp.down_proj.in_features % 16 for layer in made.model.model.layers} == {0}
    told = lpc.compress(tiny_model_folder, data=data, **model, multiple=8)
    assert {layer.mlp.down_proj.in_features for layer in told.model.model.layers} != {
        layer.mlp.down_proj.in_features for layer in made.model.model.layers
    }

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from onnx_workbench import difference, run_onnx
from transformers import PreTrainedModel

from exporters.calls import OnnxFolder
from exporters.onnx import export_onnx, export_packages, quantised, quantised_proof
from exporters.onnx.calibrated import WINDOWS, grams, spread, windows
from exporters.onnx.options import settled
from exporters.onnx.quantised import readers
from exporters.onnx.quantised_proof import compare
from exporters.onnx.rewrite import rewritten
from exporters.options import OnnxOptions
from lpc.exporting import export_each
from passes.errors import DataError, MissingFileError, OptionError, PostconditionError, UnsupportedModelError
from passes.pipeline import plain

QUICK = {"greedy_prompts": 1, "greedy_tokens": 3}


def _export(model: PreTrainedModel, folder: Path, precision: str, **options: object) -> dict[str, float]:
    package = export_onnx(model, build_tokenizer(), folder, OnnxOptions(precision=(precision,), **{**QUICK, **options}))
    assert package.precision == precision
    return {parity.name: parity.value for parity in package.parity}


def _operators(folder: Path) -> list[str]:
    return [node.op_type for node in ir.load(folder / "model.onnx").graph]


def _narrow() -> PreTrainedModel:
    """Widths that are no multiples of a block: hidden 40, MLP 72."""
    return build_model("llama", hidden_size=40, intermediate_size=72, num_attention_heads=5, num_key_value_heads=5)


@pytest.mark.parametrize(("precision", "far"), [("int8", 0.1), ("int4", 0.6)])
def test_a_quantised_package_computes_nearly_what_torch_computes(precision: str, far: float, tmp_path: Path) -> None:
    model = build_model("llama")
    parity = _export(model, tmp_path, precision)
    assert parity["onnx prefill"] < 1e-5
    assert 1e-3 < parity[f"{precision} against torch in fp32"] < far
    assert parity["genai greedy tokens"] == 0
    operators = _operators(tmp_path)
    assert operators.count("MatMulNBits") == 4 * len(model.model.layers) + 1
    assert "MatMul" not in operators


@pytest.mark.parametrize("options", [{"symmetric": False}, {"rounding": "nearest", "block": 16}, {"head": "float"}])
def test_what_pads_a_block_is_not_seen(options: dict[str, object], tmp_path: Path) -> None:
    parity = _export(_narrow(), tmp_path, "int4", **options)
    assert parity["int4 against torch in fp32"] < 1
    assert ("GatherBlockQuantized" in _operators(tmp_path)) == ("head" not in options)


def test_a_tied_table_is_stored_once_and_an_embedding_of_its_own_beside(tmp_path: Path) -> None:
    for name, options in (("tied", {}), ("apart", {"embedding": "float", "head": "int4"})):
        _export(build_model("llama", tie_word_embeddings=True), tmp_path / name, "int4", **options)
    tied, apart = (
        {n for n in ir.load(tmp_path / name / "model.onnx").graph.initializers if "embed" in n and "shape" not in n}
        for name in ("tied", "apart")
    )
    table = "model.embed_tokens.weight"
    assert tied == {f"{table}.int8.{part}" for part in ("codes", "scales")}
    assert apart == {table, *(f"{table}.int4.{part}" for part in ("codes", "scales"))}


@pytest.mark.parametrize("part", ["codes", "scales", "zeros"])
def test_a_wrong_channel_is_found(part: str, tmp_path: Path) -> None:
    _export(build_model("llama"), tmp_path / "int4", "int4", greedy_prompts=0, symmetric=False)
    _export(build_model("llama"), tmp_path / "fp32", "fp32", greedy_prompts=0)
    before, after = (tmp_path / name / "model.onnx" for name in ("fp32", "int4"))
    assert compare(ir.load(before), after, 4)

    def plant(model: ir.Model) -> None:
        name = f"model.layers.0.mlp.down_proj.weight.int4.{part}"
        array = model.graph.initializers[name].const_value.numpy().copy()
        array[3] = array[3][..., ::-1] if part == "codes" else array[4] * 2
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)

    with pytest.raises(PostconditionError, match="block by block"), rewritten(after, plant) as new:
        compare(ir.load(before), new, 4)
    assert not any(after.parent.glob(".*"))


def test_a_number_that_is_not_finite_is_found_where_no_probe_looks(tmp_path: Path) -> None:
    _export(build_model("llama"), tmp_path / "int4", "int4", greedy_prompts=0)
    _export(build_model("llama"), tmp_path / "fp32", "fp32", greedy_prompts=0)
    before, after = (tmp_path / name / "model.onnx" for name in ("fp32", "int4"))

    def plant(model: ir.Model) -> None:
        name = next(each for each in model.graph.initializers if each.endswith(".scales"))
        array = model.graph.initializers[name].const_value.numpy().copy()
        array[-1, -1] = float("nan")
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)

    with pytest.raises(PostconditionError, match="is not finite"), rewritten(after, plant) as new:
        compare(ir.load(before), new, 4)
    assert not any(after.parent.glob(".*"))


def test_a_kernel_that_computes_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fp32", "int4"):
        _export(build_model("llama"), tmp_path / name, name, greedy_prompts=0)
    monkeypatch.setattr(quantised_proof, "_run", lambda node, fed, run=quantised_proof._run: 1.1 * run(node, fed))
    with pytest.raises(PostconditionError, match="one by one"):
        compare(ir.load(tmp_path / "fp32" / "model.onnx"), tmp_path / "int4" / "model.onnx", 4)


def test_stored_bf16_is_what_a_bf16_model_computes_in_half_of_the_bytes(tmp_path: Path) -> None:
    model = build_model("llama").to(torch.bfloat16)
    (package,) = export_packages(model, build_tokenizer(), tmp_path / "auto", OnnxOptions(**QUICK))
    assert package.precision == "bf16"
    assert max(parity.value for parity in package.parity) < 1e-5
    _export(model, tmp_path / "fp32", "fp32")
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("auto", "fp32")]
    assert sizes[0] < 0.55 * sizes[1]
    ids = torch.arange(12).reshape(2, 6)
    logits = [run_onnx(tmp_path / name, ids, torch.ones_like(ids))["logits"] for name in ("auto", "fp32")]
    assert np.array_equal(*logits)


def test_several_precisions_have_a_folder_each(tmp_path: Path) -> None:
    model, asked = build_model("llama"), ("fp32", "int8")
    packages = export_packages(model, build_tokenizer(), tmp_path, OnnxOptions(precision=asked, **QUICK))
    assert [each.folder for each in packages] == [tmp_path / name for name in asked]
    ids = torch.arange(6)[None]
    logits = [run_onnx(each.folder, ids, torch.ones_like(ids))["logits"] for each in packages]
    assert 1e-4 < difference(logits[1], logits[0], torch.ones_like(ids)) < 0.1
    with pytest.raises(OptionError, match="one package has one precision"):
        export_onnx(model, build_tokenizer(), tmp_path / "new", OnnxOptions(precision=asked))


def test_the_head_is_found_behind_a_bias_and_no_other_product_is(tmp_path: Path) -> None:
    _export(build_model("llama"), tmp_path, "fp32", greedy_prompts=0)
    kinds = [reader.kind for reader in readers(ir.load(tmp_path / "model.onnx").graph)]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("embedding", "head", {"weight"})


def test_a_calibrated_package_is_nearer_on_its_text_than_the_nearest_codes(text_file: Path, tmp_path: Path) -> None:
    model, ids = build_model("llama"), next(windows_of(text_file, tmp_path))
    assert ids.shape[1] == model.config.max_position_embeddings  # no window is longer
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    far = []
    rows = [{"input_ids": ids[0]}]  # what lpc.compress tuned on
    asked = {
        "nearest": {"rounding": "nearest", "rows": rows},
        "text": {"calibration": text_file},
        "rows": {"rows": rows},
    }
    for name, options in asked.items():
        _export(model, tmp_path / name, "int4", greedy_prompts=0, head="float", **options)
        far.append(difference(run_onnx(tmp_path / name, ids, torch.ones_like(ids))["logits"], expected))
    assert max(far[1:]) < 0.9 * far[0]


def test_rows_are_for_int4_of_a_language_model_and_not_in_a_record() -> None:
    asked = OnnxOptions(precision=("fp32", "int4"), rows=[{"input_ids": [1, 2, 3]}])
    assert [each.rows for each in settled(asked, build_model("llama"))] == [None, asked.rows]
    assert [each.rows for each in settled(asked, zoo.build("bert"))] == [None, None]
    assert "rows" not in plain(asked)


def test_the_data_choose_no_codes_where_that_takes_too_much_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quantised, "FREE_FOR_GRAMS", 10**12)
    model, rows = build_model("llama"), [{"input_ids": torch.arange(9)}]
    assert "onnx int4 weights, block by block" in _export(model, tmp_path, "int4", greedy_prompts=0, rows=rows)
    assert "int4 has the nearest codes" in caplog.text


def test_spread_rows_are_as_many_as_a_text_gives() -> None:
    rows = [{"input_ids": torch.full((512,), index)} for index in range(100)]
    taken = [int(each[0, 0]) for each in spread(rows)]
    assert (len(taken), taken[0], taken[-1]) == (WINDOWS, 0, 99)
    assert len(list(spread(rows[:3]))) == 3


def test_every_token_of_the_text_counts_alike(text_file: Path, tmp_path: Path) -> None:
    model, tokens = build_model("llama"), sum(each.shape[1] for each in windows_of(text_file, tmp_path / "package"))
    with torch.no_grad():
        model.get_input_embeddings().weight[7] *= 1000
    _export(model, tmp_path / "package", "fp32", greedy_prompts=0)
    path = tmp_path / "package" / "model.onnx"
    names = [each.input for each in readers(ir.load(path).graph) if each.kind == "weight"]
    for gram in grams(path, names, text_file).values():
        assert float(gram.trace()) == pytest.approx(tokens, rel=1e-4)


def windows_of(text: Path, folder: Path) -> Iterator[torch.Tensor]:
    build_tokenizer().save_pretrained(folder)
    build_model("llama").config.save_pretrained(folder)
    return windows(folder, text)


def test_calibration_of_an_encoder_or_on_nothing_is_refused_before_any_work(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="causal language models"):
        export_onnx(zoo.build("bert"), None, tmp_path, OnnxOptions(precision=("int4",), calibration=text_file))
    with pytest.raises(MissingFileError, match="no text gone"):
        export_onnx(zoo.build("bert"), None, tmp_path, OnnxOptions(precision=("int4",), calibration=Path("gone")))
    with pytest.raises(OptionError, match="is for int4"):
        OnnxOptions(calibration=text_file)
    with pytest.raises(OptionError, match="not rounding 'search'"):
        OnnxOptions(precision=("int4",), calibration=text_file, rounding="search")
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 99)
    (tmp_path / "short").write_text("a")
    for name, told in (("latin", "no UTF-8"), ("short", "has 1 tokens")):
        options = OnnxOptions(precision=("int4",), calibration=tmp_path / name)
        with pytest.raises(DataError, match=told):
            export_onnx(build_model("llama"), build_tokenizer(), tmp_path, options)


def test_several_precisions_are_one_output_of_lpc_export_and_each_is_named_to_be_read(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    asked = OnnxOptions(precision=("fp32", "int4"), greedy_prompts=0)
    (tmp_path / "mine.txt").write_text("kept")
    for _ in range(2):
        export_each(tiny_model_folder, tmp_path, asked, force=True)
    assert {each.name for each in tmp_path.iterdir()} == {"mine.txt", "fp32", "int4"}
    with pytest.raises(MissingFileError, match=r"several precisions \(fp32, int4\): name one"):
        OnnxFolder.find(tmp_path)
    export_each(tiny_model_folder, tmp_path, replace(asked, precision=("int8",)), force=True)
    assert not {"fp32", "int4"} & {each.name for each in tmp_path.iterdir()}
    assert (tmp_path / "mine.txt").is_file()

"""compress_family on a tiny real model; one family is shared by the tests that only look at it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import lpc
from exporters.files import sha256
from exporters.onnx import ExportPass
from lpc.cli import app as cli
from lpc.family_report import FamilyReport
from lpc.options import BenchmarkOptions
from lpc.result import Result

RATIOS = (0.1, 0.2, 0.4)
TUNE = lpc.TuneOptions(steps=15, batch_size=2)
TEXT = lpc.DataOptions(sequence_length=32)
DATA = [list(range(i, i + 100)) for i in range(20)]


@pytest.fixture(scope="module")
def family(tiny_model_folder: Path, text_file: Path) -> lpc.CompactFamily:
    return lpc.compress_family(tiny_model_folder, text_file, RATIOS, cooldown=2, tune=TUNE, data_options=TEXT)


@pytest.fixture(scope="module")
def saved(family: lpc.CompactFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family") / "out"
    family.save(out, export=["hf"])
    return out


def test_each_model_is_as_small_as_a_run_of_its_own_would_make_it(
    family: lpc.CompactFamily, tiny_model_folder: Path, text_file: Path
) -> None:
    for ratio, result in zip(RATIOS, family.results, strict=True):
        target = lpc.Target(ratio=ratio, balance="equal")  # a family's units go while it tunes: nothing is measured
        single = lpc.compress(tiny_model_folder, text_file, target=target, steps=1, data_options=TEXT)
        assert sum(p.numel() for p in result.model.parameters()) == single.plan.target_parameters
        assert result.plan.counts() == single.plan.counts()
        assert result.plan.budget == single.plan.budget
        assert result.report.asked_ratio == ratio
        assert result.report.heldout.measures["perplexity"].removed is not None


def test_each_folder_is_a_complete_output(saved: Path, family: lpc.CompactFamily) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "0.1",
        "0.2",
        "0.4",
        "family.json",
        "report.md",
        "report.html",
        "recipe.yaml",
        "curve.svg",
    }
    for ratio, result in zip(RATIOS, family.results, strict=True):
        folder = saved / str(ratio)
        manifest = json.loads((folder / "lpc.json").read_text())
        assert manifest["ratio"] == {"asked": ratio, "achieved": result.plan.achieved_ratio, "multiple": 8}
        names = [record["name"] for record in manifest["passes"]]
        common = ["load", "trace", "measure", "attach", "tune", "recall"]
        assert names == [*common, "decide", "measure", "merge", "shrink", "measure", "save"]
        assert manifest["parity"]["save"]["value"] == 0
        assert manifest["parity"]["shrink"]["value"] <= 1e-5
        assert all(sha256(folder / name) == entry["sha256"] for name, entry in manifest["files"].items())
        options = lpc.Plan.load(folder / "plan.json").options
        assert options["snapshots"] == {"ratios": list(RATIOS), "cooldown": 2}
    assert options["step"] == options["steps"] == 15


def test_each_model_replays_from_source_plan_and_adapter_bit_for_bit(saved: Path, tiny_model_folder: Path) -> None:
    seen = []
    for ratio in RATIOS:
        folder = saved / str(ratio)
        replayed = lpc.apply(folder / "plan.json", tiny_model_folder, adapter=folder / "adapter").model.state_dict()
        checkpoint = load_file(folder / "hf" / "model.safetensors")
        assert checkpoint.keys() <= replayed.keys()
        assert all(torch.equal(value, replayed[name]) for name, value in checkpoint.items())
        seen.append(sha256(folder / "adapter" / "adapter_model.safetensors"))
    assert len(set(seen)) == len(RATIOS)


def test_the_report_has_one_table_and_one_curve(saved: Path, family: lpc.CompactFamily) -> None:
    values = json.loads((saved / "family.json").read_text())
    assert values["quality"] == "perplexity"
    assert [member["ratio"] for member in values["members"]] == [0.0, *RATIOS]
    dense, *pruned = values["members"]
    assert dense["parameters"] == family.results[0].report.dense.parameters
    for member, result in zip(pruned, family.results, strict=True):
        measure = result.report.heldout.measures["perplexity"]
        assert member["parameters"] == result.plan.target_parameters
        assert member["measures"]["perplexity"] == measure.pruned
        assert member["removed"]["perplexity"] == measure.removed
        assert dense["measures"]["perplexity"] == measure.dense
    text = (saved / "report.md").read_text()
    assert text.count("| --- | ---: |") == 1
    assert "(curve.svg)" in text
    assert all(f"({ratio}/report.md)" in text for ratio in RATIOS)
    root = ET.fromstring((saved / "curve.svg").read_text())
    names = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert all(names.count(name) == 2 for name in ("dense", "0.1", "0.2", "0.4"))  # parameters, weight bytes
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 8


def test_force_removes_what_an_older_family_left_and_nothing_else(family: lpc.CompactFamily, tmp_path: Path) -> None:
    for name in ("0.7", "notes", "0.9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("x")
    (tmp_path / "0.7" / "lpc.json").write_text("{}")
    with pytest.raises(lpc.OutputExistsError):
        family.save(tmp_path, export=["hf"])
    family.save(tmp_path, export=["hf"], force=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "0.1",
        "0.2",
        "0.4",
        "family.json",
        "report.md",
        "report.html",
        "recipe.yaml",
        "curve.svg",
        "notes",
        "0.9",
    }


@pytest.mark.parametrize("where", ["third model", "report"])
def test_a_failure_leaves_nothing_behind(
    family: lpc.CompactFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write = Result.write

    def fail(self: object, *_: object, **__: object) -> None:
        raise lpc.PostconditionError("no")

    def third(self: Result, folder: Path, **options: object) -> object:
        return (fail if folder.name == "0.4" else write)(self, folder, **options)

    if where == "report":
        monkeypatch.setattr(FamilyReport, "write", fail)
    else:
        monkeypatch.setattr(Result, "write", third)
    with pytest.raises(lpc.PostconditionError, match="no"):
        family.save(tmp_path / "out", export=["hf"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [lpc.UnsupportedModelError("no such graph"), KeyboardInterrupt()])
def test_models_without_their_package_are_kept_and_the_error_says_so(
    family: lpc.CompactFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    called: list[str] = []

    def fail(self: ExportPass, program: object, run: object) -> None:
        called.append(self.folder.name)
        raise error

    monkeypatch.setattr(ExportPass, "call", fail)
    out = tmp_path / "out"
    with pytest.raises(type(error)) as raised:
        family.save(out, benchmark=True)
    assert len(called) == (1 if isinstance(error, KeyboardInterrupt) else 3)
    assert {path.name for path in out.iterdir()} == {
        "0.1",
        "0.2",
        "0.4",
        "family.json",
        "report.md",
        "report.html",
        "recipe.yaml",
        "curve.svg",
    }
    assert "onnx" in json.loads((out / "0.1" / "lpc.json").read_text())["missing"]
    assert f"lpc export {out / '0.1' / 'hf'} --out {out / '0.1' / 'onnx'}" in " ".join(raised.value.__notes__)


def test_latency_is_measured_against_the_dense_model(
    tiny_llama: PreTrainedModel, tiny_tokenizer: object, tmp_path: Path
) -> None:
    found = lpc.compress_family(tiny_llama, DATA, [0.2, 0.4], steps=6, tokenizer=tiny_tokenizer, data_options=TEXT)
    options = BenchmarkOptions(
        repeats=2, warmup=0, threads=(1,), batches=(1,), prefill_tokens=(8,), decode_pasts=(8,), max_seconds=0.1
    )
    onnx = lpc.OnnxOptions(greedy_prompts=0)
    report = found.save(tmp_path / "out", export={"hf": None, "onnx": onnx}, benchmark=options)
    workloads = ["prefill, 8 tokens, batch 1", "decode, past 8, batch 1"]
    for member in report.members:
        folder = tmp_path / "out" / (member.folder if member.ratio == 0 else f"{member.folder}/onnx")
        assert list(member.latency_ms) == workloads
        assert all(value > 0 for value in member.latency_ms.values())
        assert member.onnx_bytes == sum(path.stat().st_size for path in folder.glob("*.onnx*"))
    timed = json.loads((tmp_path / "out" / "0.4" / "benchmark.json").read_text())
    assert {name: each["path"] for name, each in timed["models"].items()} == {
        "dense": str(tmp_path / "out/dense-onnx/model.onnx"),
        "pruned": str(tmp_path / "out/0.4/onnx/model.onnx"),
    }
    dense, ratio = report.members[0].latency_ms[workloads[0]], timed["ratios"]["prefill_b1_t8_p0"]
    assert report.members[2].latency_ms[workloads[0]] == pytest.approx(dense * ratio)
    manifest = json.loads((tmp_path / "out" / "0.4" / "lpc.json").read_text())
    assert "benchmark.json" in manifest["files"]
    circles = list(
        ET.fromstring((tmp_path / "out" / "curve.svg").read_text()).iter("{http://www.w3.org/2000/svg}circle")
    )
    assert len(circles) == 4 * 3
    assert "partial" not in "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))


def test_latency_needs_the_packages(family: lpc.CompactFamily, tmp_path: Path) -> None:
    with pytest.raises(lpc.OptionError, match="export onnx too"):
        family.save(tmp_path / "out", export=["hf"], benchmark=True)
    assert list(tmp_path.iterdir()) == []


def test_layers_may_have_widths_of_their_own(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    found = lpc.compress_family(tiny_llama, DATA, (0.15, 0.3), steps=8, layout="per-layer", data_options=TEXT)
    for ratio, result in zip((0.15, 0.3), found.results, strict=True):
        assert result.plan.layout == "per-layer"
        assert result.plan.achieved_ratio >= ratio
    report = found.save(tmp_path / "out", export=["hf"])
    assert report.layout == "per-layer"
    replayed = lpc.apply(tmp_path / "out/0.15/plan.json", tiny_llama, adapter=tmp_path / "out/0.15/adapter").model
    checkpoint = load_file(tmp_path / "out/0.15/hf/model.safetensors")
    assert all(torch.equal(value, replayed.state_dict()[name]) for name, value in checkpoint.items())


@pytest.mark.parametrize(
    ("ratios", "options", "message"),
    [
        ((0.3, 0.1), {}, "must ascend"),
        ((0.1, 0.3), {"steps": 3}, "take 5 steps"),
        ((0.1, 0.3), {"target": lpc.Target(budget=lpc.Budget(macs=0.7))}, "budget of macs"),
        ((0.1, 0.3), {"target": lpc.Target(ratio=0.4)}, "must be the target's"),
        ((0.1, 0.3), {"target": lpc.Target(ratio=0.3), "multiple": 8}, "not both"),
        ((0.1, 0.97), {}, "largest reachable ratio"),
    ],
    ids=str,
)
def test_impossible_families_are_refused_before_the_data_are_read(
    ratios: tuple[float, ...], options: dict[str, object], message: str, tiny_llama: PreTrainedModel
) -> None:
    with pytest.raises(lpc.OptionError, match=message):
        lpc.compress_family(tiny_llama, [[1, 2]], ratios, **options)


def _lpc(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["lpc", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_command_writes_a_family(
    tiny_model_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    common = ["compress", str(tiny_model_folder), "--data", str(text_file), "--steps", "8", "--batch-size", "2"]
    common += ["--sequence-length", "32", "--out", str(out), "--no-onnx"]
    assert _lpc(monkeypatch, *common, "--snapshots", "0.1,0.3", "--snapshot-steps", "2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [member["ratio"] for member in printed["members"]] == [0.0, 0.1, 0.3]
    assert lpc.Plan.load(out / "0.3" / "plan.json").options["snapshots"]["cooldown"] == 2
    assert _lpc(monkeypatch, *common, "--ratio", "0.3", "--snapshot-steps", "2", "--force") == 2
    assert "goes with --snapshots" in capsys.readouterr().err
    assert _lpc(monkeypatch, *common, "--ratio", "0.4", "--snapshots", "0.1,0.3", "--force") == 2
    assert "must be the target's, 0.4" in capsys.readouterr().err

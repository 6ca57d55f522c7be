"""The command line, in process: what it writes, what it prints, and how it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
import zoo
from conftest import build_model

from lpc.cli import app as cli

SHORT = ["--steps", "2", "--batch-size", "2", "--sequence-length", "32"]

FILES = {"plan.json", "scores.safetensors", "lpc.json", "report.md", "report.html", "recipe.yaml"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs ``lpc`` with the given words; returns exit code, standard output and standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lpc", *map(str, words)])
        capsys.readouterr()  # progress bars of what the test has set up
        with pytest.raises(SystemExit) as stop:
            cli.main()
        code = stop.value.code
        captured = capsys.readouterr()
        told = [line for line in captured.err.splitlines(keepends=True) if " elapsed, " not in line]  # where it is slow
        return int(code or 0), captured.out, "".join(told)

    return call


def test_compress_writes_the_output_and_prints_json(
    run, tiny_model_folder: Path, text_file: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    code, stdout, stderr = run(
        "compress", tiny_model_folder, "--data", text_file, "--ratio", 0.3, *SHORT, "--out", out, "--no-onnx", "--json"
    )
    assert (code, stderr) == (0, "")
    values = json.loads(stdout)
    assert values["ratio"]["asked"] == 0.3
    assert values["out"] == str(out)
    assert {path.name for path in out.iterdir()} == {"hf", "adapter", *FILES}


def test_compress_prints_a_table(run, tiny_model_folder: Path, text_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ["--data", text_file, "--ratio", 0.3, *SHORT, "--out", tmp_path / "out", "--no-onnx"]
    code, stdout, _ = run("compress", tiny_model_folder, *words)
    assert code == 0
    assert "perplexity" in stdout
    assert "held-out rows" in stdout
    assert "parities hold" in stdout


def test_compress_without_steps_scores_samples_by_the_criterion(  # type: ignore[no-untyped-def]
    run, tiny_model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--data", text_file, "--ratio", 0.3, "--steps", 0, "--criterion", "wanda", "--samples", 6]
    code, _, stderr = run("compress", tiny_model_folder, *words, "--sequence-length", 32, "--out", out, "--no-onnx")
    assert (code, stderr) == (0, "")
    plan = json.loads((out / "plan.json").read_text())
    assert (plan["criterion"], plan["options"]["steps"], plan["options"]["samples"]) == ("wanda", 0, 6)
    code, _, stderr = run("compress", tiny_model_folder, "--data", text_file, "--ratio", 0.3, "--criterion", "luck")
    assert code == 2
    assert "unknown --criterion 'luck'" in stderr


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    zoo.build("bert-sequence-classification").save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


ROWS = [{"input_ids": [2 + i, 5, 7][: 1 + i % 3], "label": i % 5} for i in range(20)]


@pytest.mark.parametrize("form", ["jsonl", "folder"])
def test_compress_tunes_a_classifier_on_rows(run, form: str, classifier: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = tmp_path / f"rows.{form}"
    if form == "jsonl":
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(data))
    words = ["--data", data, "--ratio", 0.15, "--steps", 2, "--batch-size", 4, "--out", tmp_path / "out", "--no-onnx"]
    code, stdout, stderr = run("compress", classifier, *words)
    assert (code, stderr) == (0, "")
    assert "accuracy" in stdout
    measures = json.loads((tmp_path / "out" / "lpc.json").read_text())["heldout"]["measures"]
    assert set(measures) == {"loss", "accuracy"}


def test_compress_takes_heads_where_custom_code_is_allowed(run, classifier: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["--data", data, "--ratio", 0.15, "--steps", 2, "--out", tmp_path / "out", "--no-onnx", "--json"]
    code, stdout, _ = run("compress", classifier, *words, "--custom-code")
    assert code == 0
    widths = json.loads(stdout)["widths"]["kv_groups"]
    assert widths["most"] < widths["dense"]


def test_text_for_a_classifier_is_refused_with_the_form_that_it_needs(  # type: ignore[no-untyped-def]
    run, classifier: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ["--data", text_file, "--ratio", 0.15, "--out", tmp_path / "out"]
    code, _, stderr = run("compress", classifier, *words)
    assert code == 2
    assert "BertForSequenceClassification" in stderr
    assert "save_to_disk" in stderr
    assert not (tmp_path / "out").exists()


def test_inspect_works_from_a_folder_with_only_a_config(run, tiny_model_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    code, stdout, _ = run("inspect", tmp_path, "--json")
    assert code == 0
    values = json.loads(stdout)
    assert values["cost"]["parameters"] == sum(p.numel() for p in build_model("llama").parameters())
    kinds = {width["width"]: width for width in values["widths"]}
    assert kinds["kv_groups"]["units"] == 4
    assert kinds["kv_groups"]["unit_parameters"] == 2 * (16 * 32) + 2 * (8 * 32)
    assert kinds["mlp_channels"]["unit_parameters"] == 3 * 32
    assert values["least"]["parameters"] / values["cost"]["parameters"] == pytest.approx(
        1 - values["largest_ratio"], abs=1e-4
    )
    assert (values["onnx"], values["no_onnx"]) == ("builder", None)
    assert {"transformers", "vLLM"} <= {each["target"] for each in values["runs_on"] if each["runs"] == "yes"}
    code, stdout, _ = run("inspect", tmp_path)
    assert code == 0
    assert f"budgets go down to parameters={values['least']['parameters'] / values['cost']['parameters']:.3f}" in stdout
    assert "a smaller checkpoint runs on, yes: transformers" in stdout
    assert "ONNX: the graph is written from the weights" in stdout


def test_help_names_every_command(run) -> None:  # type: ignore[no-untyped-def]
    code, stdout, _ = run("--help")
    assert code == 0
    for command in ("compress", "inspect", "export", "benchmark", "evaluate", "demo"):
        assert command in stdout


@pytest.fixture
def nan_folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    folder = tmp_path / "nan"
    shutil.copytree(tiny_model_folder, folder)
    model = build_model("llama")
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] = torch.nan
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def without_tokenizer(tmp_path: Path, tiny_model_folder: Path) -> Path:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model_folder / name, folder)
    return folder


@pytest.fixture
def inputs(
    tmp_path: Path, tiny_model_folder: Path, text_file: Path, nan_folder: Path, without_tokenizer: Path
) -> dict[str, Path]:
    """Good and bad inputs by name."""
    texts = {"empty": "", "blank": " \n ", "tiny": "The cat."}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 100)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnot json\n')
    mamba = tmp_path / "mamba"
    mamba.mkdir()
    (mamba / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    named = {path.stem: path for path in tmp_path.iterdir()}
    return {
        **named,
        "model": tiny_model_folder,
        "text": text_file,
        "absent": tmp_path / "absent",
        "new": tmp_path / "new",
    }


BAD = [
    ("absent model", "absent", "text", 0.3, "new", "no model folder"),
    ("absent text", "model", "absent", 0.3, "new", "absent"),
    ("empty text", "model", "empty", 0.3, "new", "empty"),
    ("blank text", "model", "blank", 0.3, "new", "blank.txt"),
    ("text shorter than one sequence", "model", "tiny", 0.3, "new", "32"),
    ("text that is not UTF-8", "model", "latin", 0.3, "new", "UTF-8"),
    ("bad line in jsonl", "model", "bad", 0.3, "new", "2"),
    ("ratio zero", "model", "text", 0, "new", "ratio"),
    ("ratio too large", "model", "text", 1.2, "new", "1.2"),
    ("unreachable ratio", "model", "text", 0.97, "new", "largest reachable ratio"),
    ("NaN weights", "nan", "text", 0.3, "new", "model.norm.weight"),
    ("no tokenizer", "bare", "text", 0.3, "new", "tokenizer"),
    ("unsupported family", "mamba", "text", 0.3, "new", "mamba"),
    ("output folder not empty", "model", "text", 0.3, "full", "--force"),
]


@pytest.mark.parametrize(
    ("model", "text", "ratio", "out", "said"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_bad_input_gives_one_message_and_code_2_and_writes_nothing(  # type: ignore[no-untyped-def]
    run, inputs: dict[str, Path], model: str, text: str, ratio: float, out: str, said: str
) -> None:
    words = ["--data", inputs[text], "--ratio", ratio, *SHORT, "--out", inputs[out]]
    code, stdout, stderr = run("compress", inputs[model], *words)
    assert code == 2
    assert stdout == ""
    assert said in stderr
    assert "Traceback" not in stderr
    assert not inputs["new"].exists()
    assert [path.name for path in inputs["full"].iterdir()] == ["x"]
    assert not list(inputs["new"].parent.glob(".*partial*"))

"""The recipes run, on a tiny model with a few rows: every method, from the command line's words to the output."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, build_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from recipes import loraprune_llama_7b as recipe

ROWS = [
    {"instruction": f"Say {i}.", "response": f"{i} it is.", "instruction_source": "flan"} for i in range(70)
]  # two epochs are two steps of 128
TEXT = "The cat sat on the mat. " * 60
CONTEXT = 512


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    build_model("llama", max_position_embeddings=CONTEXT).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    (folder / "lamini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "text.txt").write_text(TEXT)
    return folder


def words(home: Path, out: Path, method: str) -> list[str]:
    given = {"model": home / "model", "data": home / "lamini.jsonl", "out": out, "text": home / "text.txt"}
    return [w for name, value in given.items() for w in (f"--{name}", str(value))] + [
        *("--ratio", "0.3", "--method", method, "--micro-batch", "32")
    ]


def by_hand(model: PreTrainedModel) -> float:
    """Blocks of the context; the loss of each token but a block's first, one block at a time."""
    ids = torch.tensor(list(build_tokenizer()(TEXT)["input_ids"]))
    losses = []
    for start in range(0, len(ids) - CONTEXT + 1, CONTEXT):
        block = ids[start : start + CONTEXT]
        with torch.no_grad():
            logits = model(input_ids=block[None]).logits[0]
        losses += [float(-logits[i].log_softmax(-1)[block[i + 1]]) for i in range(CONTEXT - 1)]
    return math.exp(sum(losses) / len(losses))


def passes_of(out: Path) -> dict[str, Any]:
    records = json.loads((out / "lpc.json").read_text())["passes"]
    return {record["name"]: record["options"] for record in records}


@pytest.fixture(scope="module")
def runs(home: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The output and what was printed, by method."""
    found = {}
    for method in recipe.METHODS:
        printed = io.StringIO()
        with redirect_stdout(printed):
            recipe.main(words(home, home / method, method))
        found[method] = home / method, json.loads(printed.getvalue())
    return found


@pytest.mark.parametrize("method", recipe.METHODS)
def test_each_method_prunes_saves_and_measures(
    method: str, home: Path, runs: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    out, printed = runs[method]
    dense = AutoModelForCausalLM.from_pretrained(home / "model")
    pruned = AutoModelForCausalLM.from_pretrained(out / "hf")
    counts = [sum(p.numel() for p in model.parameters()) for model in (dense, pruned)]
    assert counts[1] <= 0.7 * counts[0]
    assert printed["parameters_removed"] == pytest.approx(1 - counts[1] / counts[0])
    assert (printed["steps"], printed["context"]) == (2, CONTEXT)
    found = printed["perplexity"]["text.txt"]
    assert found["dense"] == pytest.approx(by_hand(dense), rel=1e-4)
    assert found["pruned"] == pytest.approx(by_hand(pruned), rel=1e-4)


def test_the_methods_are_what_their_names_say(runs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    made = {method: passes_of(out)["tune"] for method, (out, _) in runs.items()}
    adapters = {
        method: json.loads((out / "adapter" / "adapter_config.json").read_text()) for method, (out, _) in runs.items()
    }
    for tune in made.values():
        assert tune["batch_size"] * tune["gradient_accumulation"] == 128
        assert tune["max_grad_norm"] == 1.0
    paper, code, own = (made[name] for name in ("paper", "code", "lpc"))
    assert paper["criterion"] == "loraprune"
    assert code["criterion"] == "loraprune-code"
    assert (paper["lr_scheduler"], code["lr_scheduler"]) == ("cosine", "linear")
    assert paper["importance"] == {"form": "square", "normalise": False, "quadratic": True, "smoothing": 0.9}
    assert code["importance"] == {"form": "abs", "normalise": True, "quadratic": True, "smoothing": 0.9}
    assert (paper["revival"], code["revival"]) == (True, False)
    for tune, name in ((paper, "paper"), (code, "code")):
        assert tune["learning_rate"] == 1e-4
        assert tune["distill"] is None
        assert tune["schedule"] == {"warmup": 0.1, "cooldown": 0.1, "every": 10}
        lora = adapters[name]
        assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"]) == (8, 16, 0.05)
        assert len(lora["target_modules"]) == 7 * 2  # seven projections of two layers
    plain = recipe.lpc.TuneOptions()
    assert (plain.criterion, own["criterion"], own["learning_rate"]) == ("auto", "obs", None)
    assert own["distill"]["hidden_weight"] == plain.distill.hidden_weight
    assert own["schedule"]["cooldown"] == 1


def test_the_authors_methods_learn_prompts_too() -> None:
    masked = [recipe.data_options(method).instructions.mask_prompt for method in recipe.METHODS]
    assert masked == [False, False, True]


@pytest.mark.parametrize(("rows", "steps"), [(20_000, 313), (64, 1), (65, 2), (2_580_000, 40_313)])
def test_steps_are_two_epochs_of_128_rows(rows: int, steps: int) -> None:
    assert recipe.step_count(rows) == steps


def test_samples_are_the_same_ones_of_a_file_and_of_a_saved_data_set(home: Path, tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    found = [list(recipe.read_rows(path, 9)) for path in (home / "lamini.jsonl", tmp_path / "saved")]
    assert found[0] == found[1]
    assert len({row["instruction"] for row in found[0]}) == 9
    for samples in (0, 70, 500):
        assert list(recipe.read_rows(home / "lamini.jsonl", samples)) == ROWS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--micro-batch", "48"], "must divide 128"),
        (["--samples", "-1"], "0 for all"),
        (["--data", "absent.jsonl"], "there is no absent.jsonl"),
    ],
)
def test_impossible_words_are_refused(
    more: list[str], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        recipe.main([*words(home, tmp_path / "out", "lpc"), *more])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_output_that_is_not_empty_is_refused_before_anything_is_loaded(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(SystemExit) as stop:
        recipe.main(words(home, tmp_path / "out", "lpc"))
    assert stop.value.code == 2
    assert "not empty" in capsys.readouterr().err

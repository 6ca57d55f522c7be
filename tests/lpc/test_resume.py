"""A run that was stopped at any moment goes on from its run folder, and ends with the same bits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lpc
from exporters.files import sha256
from exporters.onnx import ExportPass
from lpc.recipe import Recipe
from lpc.run_folder import RunFolder
from passes.pipeline import silent

ROWS = [[(7 * i * j) % 250 for j in range(32)] for i in range(1, 40)]
TIMED = {"lpc.json", "report.html", "report.md"}
ASKED_FOR = {"recipe.yaml"}
"""What says the options, among them how often a run saves, which these runs differ in."""
ASKED = {
    "data": ROWS,
    "ratio": 0.3,
    "run": lpc.RunOptions(batch_size=4, samples=8),
    "tune": lpc.TuneOptions(steps=4, save_every=2),
    "sequence_length": 32,
    "recover": lpc.RecoverOptions(steps=4, every=1),
    "compensate": lpc.CompensateOptions(guard=False),
}
WAYS = {"default": {}, "loraprune": {"criterion": "loraprune"}, "untrained": {"steps": 0}}

Progress = Callable[[str, int, int], None]


class Seen(list[tuple[str, int]]):
    """A progress that remembers what it was told, and interrupts at any of ``stops``."""

    def __init__(self, stops: Iterable[tuple[str, int]] = ()) -> None:
        super().__init__()
        self.stops = set(stops)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.append((stage, done))
        if (stage, done) in self.stops:
            raise KeyboardInterrupt


def compress(model: PreTrainedModel, folder: Path | None, progress: Progress = silent, **more: object) -> lpc.Result:
    asked = {**ASKED, "run_folder": folder, "progress": progress, **more}
    return lpc.compress(model, **asked if folder else {**asked, "tune": replace(ASKED["tune"], save_every=None)})


def tree(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED | ASKED_FOR)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in found}


@pytest.mark.parametrize(
    ("way", "every"),
    [
        ("default", 3),
        pytest.param("default", 1, marks=pytest.mark.matrix),
        pytest.param("loraprune", 3, marks=pytest.mark.matrix),
        pytest.param("untrained", 3, marks=pytest.mark.matrix),
    ],
)
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    tiny_llama: PreTrainedModel, tmp_path: Path, way: str, every: int
) -> None:
    """Before passes and after steps of training, all or one of so many; it goes on, and is stopped at the next."""
    seen = Seen()
    compress(tiny_llama, None, seen, **WAYS[way]).save(tmp_path / "straight", export=["hf"], progress=seen)
    order = [event for event in dict.fromkeys(seen) if event[1] == 0 or event[0] in ("tune", "recover")]
    stops = order[every // 2 :: every]
    for place in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            progress = Seen(stops[place:])
            result = compress(tiny_llama, tmp_path / "run", progress, **WAYS[way])
            result.save(tmp_path / "resumed", export=["hf"], progress=progress)
        assert not (tmp_path / "resumed").exists()
    compress(tiny_llama, tmp_path / "run", **WAYS[way]).save(tmp_path / "resumed", export=["hf"])
    assert tree(tmp_path / "resumed") == tree(tmp_path / "straight")
    straight, resumed = (json.loads((tmp_path / name / "lpc.json").read_text()) for name in ("straight", "resumed"))
    for name in ("heldout", "parity", "pipeline", "widths"):
        assert resumed[name] == straight[name]


def test_a_finished_run_trains_no_step_more(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    first, again = Seen(), Seen()
    one = compress(tiny_llama, tmp_path, first)
    other = compress(tiny_llama, tmp_path, again, resume=True)
    trained = {("tune", step) for step in range(2, 5)} | {("recover", step) for step in range(2, 5)}
    assert trained <= set(first)
    assert not trained & set(again)
    assert [replace(r, seconds=0, peak_memory_bytes=0) for r in one.report.passes if r.name == "tune"] == [
        replace(r, seconds=0, peak_memory_bytes=0) for r in other.report.passes if r.name == "tune"
    ]
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a run that was stopped while it was tuned."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    with pytest.raises(KeyboardInterrupt) as raised:
        compress(build_model("llama"), folder, Seen([("tune", 3)]))
    assert raised.value.__notes__ == [
        f"kept in {folder}: score, compensate, tune up to step 2; the same command goes on from there"
    ]
    return folder


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 3}, r"differs in seed \(0 there, 3 here\)"),
        ({"steps": 5}, r"differs in steps \(4 there, 5 here\)"),
        ({"data": ROWS[1:]}, "differs in data"),
        ({"ratio": 0.4}, r"differs in ratio \(0\.3 there, 0\.4 here\)"),
        ({"criterion": "magnitude"}, r"criterion \(obs there, magnitude here\)"),
        ({"samples": 9}, r"differs in samples \(8 there, 9 here\)"),
        ({"dtype": "bf16"}, "dtype"),
        ({"lora": lpc.LoraOptions(rank=8)}, r"differs in rank \(32 there, 8 here\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_another_recipe_is_refused_by_name(
    tiny_llama: PreTrainedModel, kept: Path, other: dict[str, object], said: str
) -> None:
    before = tree(kept)
    with pytest.raises(lpc.OptionError, match=said):
        compress(tiny_llama, kept, **other)
    assert tree(kept) == before


def test_another_model_is_refused_by_name(tiny_llama: PreTrainedModel, kept: Path) -> None:
    other = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    with pytest.raises(lpc.OptionError, match="differs in model"):
        compress(other, kept)


def test_what_is_written_beside_the_weights_is_refused_by_name(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, kept: Path
) -> None:
    """The finished checkpoint of the run that is kept has the old ones."""
    other = copy.deepcopy(tiny_llama)
    other.generation_config.max_new_tokens = 7
    with pytest.raises(lpc.OptionError, match="differs in configuration"):
        compress(other, kept)
    with pytest.raises(lpc.OptionError, match="differs in tokenizer"):
        compress(tiny_llama, kept, tokenizer=tiny_tokenizer)


def test_other_packages_are_refused_by_name(tiny_llama: PreTrainedModel, kept: Path, tmp_path: Path) -> None:
    values = json.loads((kept / "recipe.json").read_text())
    here = Recipe.read({**values, "versions": {**values["versions"], "torch": "1.0"}})
    with pytest.raises(lpc.OptionError, match=r"differs in torch \(.* there, 1\.0 here\)"):
        RunFolder(path=kept).begin(here)


def test_resume_where_nothing_is_kept_is_refused(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(lpc.MissingFileError, match="no run to go on with"):
        compress(tiny_llama, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_run_without_work_leaves_nothing(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as raised:
        compress(tiny_llama, tmp_path / "run", Seen([("score", 0)]))
    assert not hasattr(raised.value, "__notes__")
    assert not (tmp_path / "run").exists()


def test_a_fresh_run_removes_what_is_kept_and_nothing_else(tmp_path: Path) -> None:
    for name in ("00-measure", "04-tune", "exports", "0.3", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "recipe.json").write_text("{}")
    RunFolder(path=tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_finished_checkpoint_is_kept_when_the_export_is_killed(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        """What nobody catches."""

    def kill(self: ExportPass, *_: object) -> None:
        raise Killed

    more = {"tokenizer": tiny_tokenizer, "recover": None, "compensate": False}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(ExportPass, "call", kill)
        compress(tiny_llama, tmp_path / "run", **more).save(tmp_path / "out")
    (saved,) = (tmp_path / "run" / "exports" / "hf").iterdir()
    written = tree(saved / "outcome" / "files")
    assert "model.safetensors" in written
    progress = Seen()
    report = compress(tiny_llama, tmp_path / "run", progress, **more).save(tmp_path / "out", progress=progress)
    card = {"README.md": sha256(tmp_path / "out" / "hf" / "README.md")}  # of the whole output, so it comes last
    assert tree(tmp_path / "out" / "hf") == {**written, **card}
    assert ("tune", 2) not in progress
    assert [record.name for record in report.passes][-2:] == ["save", "export"]
    assert not (tmp_path / "run" / "exports").exists()


def test_what_was_damaged_is_made_again(
    tiny_llama: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = compress(tiny_llama, tmp_path)
    (tune,) = tmp_path.glob("*-tune")
    file = tune / "outcome" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    (score,) = tmp_path.glob("*-score")
    (score / "outcome" / "done.json").write_text("{")
    actual = compress(tiny_llama, tmp_path)
    assert "is not as it was written and is made again" in caplog.text
    assert "cannot be read and is made again" in caplog.text
    assert actual.plan == expected.plan
    assert all(torch.equal(p, q) for p, q in zip(actual.model.parameters(), expected.model.parameters(), strict=True))
    assert list(tune.iterdir()) == [tune / "outcome"]


def test_a_family_goes_on_too(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    asked = {
        "data": ROWS,
        "ratios": (0.2, 0.35),
        "run": lpc.RunOptions(batch_size=4, samples=8),
        "tune": lpc.TuneOptions(steps=8, save_every=2),
        "sequence_length": 32,
    }

    lpc.compress_family(tiny_llama, **asked, run_folder=tmp_path / "other").save(tmp_path / "straight", export=["hf"])
    with pytest.raises(KeyboardInterrupt):
        lpc.compress_family(tiny_llama, **asked, run_folder=tmp_path / "run", progress=Seen([("tune", 5)]))
    family = lpc.compress_family(tiny_llama, **asked, run_folder=tmp_path / "run", resume=True)
    family.save(tmp_path / "resumed", export=["hf"])
    skipped = {"family.json", "curve.svg"}
    straight, resumed = (tree(tmp_path / name) for name in ("straight", "resumed"))
    assert {n: s for n, s in resumed.items() if n not in skipped} == {
        n: s for n, s in straight.items() if n not in skipped
    }

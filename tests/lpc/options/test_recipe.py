from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

import lpc
from lpc.cli import app
from lpc.cli.compress import PARTS, options_of
from lpc.cli.words import Given, add_command
from lpc.options import (
    CompressOptions,
    DataOptions,
    InstructionFormat,
    known_recipes,
    read_recipe,
    recipe_options,
    recipe_schema,
    recipe_text,
)
from passes.errors import DataError, LpcError, MissingFileError, OptionError
from passes.options import (
    Budget,
    CompensateOptions,
    DistillOptions,
    ImportanceOptions,
    LoraOptions,
    RecoverOptions,
    RunOptions,
    Schedule,
    SnapshotOptions,
    Target,
    TraceOptions,
    TuneOptions,
)


def made(*words: object) -> CompressOptions:
    """The options that the words of ``lpc compress`` ask for; an error is raised as it is."""
    found: list[CompressOptions] = []

    def compress(given: Given) -> None:
        found.append(options_of(given))

    command = typer.Typer()
    add_command(command, compress, [], PARTS)
    ran = CliRunner().invoke(command, [str(word) for word in words])
    if isinstance(ran.exception, Exception):
        raise ran.exception
    return found[0]


def test_presets_are_recipes() -> None:
    assert made("--ratio", 0.3, "--preset", "fast") == made("--ratio", 0.3, "--recipe", "fastest")
    assert made("--ratio", 0.3, "--preset", "default") == made("--ratio", 0.3)
    assert made("--ratio", 0.3, "--preset", "best", "--steps", 7).tune.steps == 7
    with pytest.raises(OptionError, match="did you mean 'fast'"):
        made("--ratio", 0.3, "--preset", "fasst")


ODD = [
    CompressOptions(target=Target(ratio=0.3)),
    CompressOptions(
        target=Target(budget=Budget(latency="12ms", parameters=0.5), layout="per-layer", protect=("layers.0",)),
        trace=TraceOptions(hidden=True),
        run=RunOptions(seed=3, dtype="bf16", device="cpu"),
        data_options=DataOptions(sequence_length=64, instructions=InstructionFormat(template="{instruction}\n: ")),
        lora=LoraOptions(rank=4),
        tune=TuneOptions(
            steps=7, learning_rate=1e-5, distill=None, schedule=Schedule(), importance=ImportanceOptions(form="abs")
        ),
        compensate=CompensateOptions(ridge=0.5),
        recover=RecoverOptions(steps=5, distill=DistillOptions(weight=0.25)),
    ),
    CompressOptions(target=Target(ratio=0.3), snapshots=SnapshotOptions(ratios=(0.1, 0.3)), trust_remote_code=True),
]


@pytest.mark.parametrize("options", ODD)
def test_recipe_of_a_run_makes_its_options_again(options: CompressOptions, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_text(options, "two\nlines"))
    assert made("--recipe", tmp_path) == options
    assert made("--recipe", tmp_path / "recipe.yaml", "--steps", 9) == replace(
        options, tune=replace(options.tune, steps=9)
    )


@pytest.mark.parametrize("name", known_recipes())
def test_every_recipe_that_comes_with_lpc_is_one(name: str) -> None:
    goal = [] if name == "latency" else ["--ratio", 0.2]
    options = made("--recipe", name, *goal)
    assert options != CompressOptions(target=options.target) or name == "latency"
    assert options.target == (Target(budget=Budget(latency=0.7)) if name == "latency" else Target(ratio=0.2))


def test_words_win_over_the_recipe_and_one_goal_over_the_other() -> None:
    assert made("--recipe", "latency", "--ratio", 0.2).target == Target(ratio=0.2)
    assert made("--recipe", "loraprune", "--ratio", 0.2, "--criterion", "wanda").tune.criterion == "wanda"
    assert made("--recipe", "latency", "--snapshots", "0.1,0.2").target == Target(ratio=0.2)


def test_loraprune_is_what_the_script_for_llama_7b_says() -> None:
    from recipes import loraprune_llama_7b as script

    options = made("--recipe", "loraprune", "--ratio", 0.5)
    assert options.lora == script.AUTHORS_LORA
    assert options.tune == script.tune_options("paper", 313, 8, bf16=False)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("tune: {step: 3}", OptionError, r"unknown option tune.step \(did you mean 'steps'\?\)"),
        ("tone: {steps: 3}", OptionError, r"unknown option tone \(did you mean 'tune'\?\)"),
        ("tune: {steps: many}", OptionError, "steps must be a whole number, got 'many'"),
        ("tune: {schedule: {warm: 1}}", OptionError, "unknown option tune.schedule.warm"),
        ("target: 3", OptionError, "target must hold options, got 3"),
        ("[1, 2]", DataError, "a recipe is a mapping of options"),
        ("a: [", DataError, "the recipe is no YAML"),
    ],
)
def test_recipe_of_no_use_is_refused(text: str, error: type[LpcError], message: str) -> None:
    with pytest.raises(error, match=message):
        recipe_options(read_recipe(text))


def test_number_without_a_point_is_one() -> None:
    assert recipe_options(read_recipe("tune: {learning_rate: 1e-4}"))[TuneOptions] == {"learning_rate": 1e-4}


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(MissingFileError, match="did you mean 'loraprune'"):
        made("--recipe", "lorapruna", "--ratio", 0.2)


def test_schema_knows_every_part_and_asks_for_none() -> None:
    found = recipe_schema()
    assert set(found["properties"]) >= {"target", "tune", "run", "lora", "snapshots"}
    assert found["additionalProperties"] is False
    assert "required" not in found


def test_show_prints_names_a_recipe_and_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ([], "fastest: Nothing is trained"), (["fastest"], "steps: 0"), (["--schema"], '"$schema"'):
        with pytest.raises(SystemExit) as ended:
            app.app(["recipe", "show", *words])
        assert ended.value.code == 0
        assert said in capsys.readouterr().out


def test_output_has_the_recipe_that_repeats_it(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = ["The cat sat on the mat and the dog ran round the tree. " * 20]
    words = {"tokenizer": tiny_tokenizer, "ratio": 0.2, "steps": 0, "samples": 4, "sequence_length": 16}
    result = lpc.compress(tiny_llama, rows, **words)
    result.save(tmp_path / "out", export=["hf"])
    text = (tmp_path / "out" / "recipe.yaml").read_text()
    assert yaml.safe_load(text)["run"]["samples"] == 4
    options = made("--recipe", tmp_path / "out")
    assert (options.tune.steps, options.target, options.data_options.sequence_length) == (0, Target(ratio=0.2), 16)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from handmade import graph_of, worn
from plugins import installed
from workbench import build_model

from passes.criteria import CRITERIA, Needs, Random, criterion_named, make_criterion, register_criterion
from passes.errors import OptionError
from passes.options import ImportanceOptions, TraceOptions, TuneOptions
from passes.trace import trace
from passes.tuning import settled

OPTIONS = ImportanceOptions()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with CRITERIA.restored():
        yield


def first_weights(model, graph):
    """The largest weight of each unit's first slice."""
    return {d.name: torch.arange(1.0, d.size + 1) for d in graph.dimensions}


def test_every_criterion_has_a_line_of_its_own() -> None:
    lines = [entry.description for entry in CRITERIA.values()]
    assert len(set(lines)) == len(lines) == 12
    assert all(line and "\n" not in line for line in lines)
    assert all(name == entry.name for name, entry in CRITERIA.items())


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_reads_the_options_that_it_says(name: str) -> None:
    model, graph = worn("llama")
    base = ImportanceOptions(form="square", normalise=False, quadratic=False, smoothing=0.5)
    changes = {"form": "abs", "normalise": True, "quadratic": True, "smoothing": 0.25}

    def scores(options: ImportanceOptions) -> torch.Tensor:
        criterion = make_criterion(name, graph, options, 0)
        criterion.begin(model)
        batch = zoo.inputs("llama", zoo.ZOO["llama"])
        model.zero_grad()
        model(**batch, **zoo.labels(zoo.ZOO["llama"], batch)).loss.backward()
        assert criterion.observe(model)
        criterion.end(model)
        return torch.cat(list(criterion.scores.values()))

    plain = scores(base)
    read = {key for key, value in changes.items() if not torch.equal(plain, scores(replace(base, **{key: value})))}
    assert read == set(CRITERIA[name].reads)


def test_a_function_of_the_user_s_own_is_a_criterion() -> None:
    register_criterion("mine", function=first_weights)
    assert CRITERIA["mine"].description == "The largest weight of each unit's first slice."
    assert TuneOptions(criterion="mine").criterion == "mine"
    model, graph = worn("llama")
    criterion = make_criterion("mine", graph, OPTIONS, 0)
    criterion.begin(model)
    assert criterion.observe(model)
    criterion.end(model)
    assert criterion.scores["layers.0.kv_groups"].tolist() == [1, 2, 3, 4]


def test_a_factory_of_the_user_s_own_is_a_criterion() -> None:
    register_criterion(
        "dice", lambda graph, options, seed: Random(graph, seed + 1), description="another seed", needs="activations"
    )
    graph = graph_of("llama", zoo.build("llama"))
    mine, theirs = make_criterion("dice", graph, OPTIONS, 1), make_criterion("random", graph, OPTIONS, 2)
    assert all(torch.equal(score, theirs.scores[name]) for name, score in mine.scores.items())
    assert (CRITERIA["dice"].description, CRITERIA["dice"].needs) == ("another seed", Needs.ACTIVATIONS)


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("taylor", {"function": first_weights}, "'taylor' is taken"),
        ("", {"function": first_weights}, "empty"),
        ("mine", {}, "either a factory or a function"),
        ("mine", {"function": first_weights, "factory": Random}, "either a factory or a function"),
        ("mine", {"function": first_weights, "needs": "luck"}, "'luck'.*weights, activations, gradients, adapter"),
    ],
)
def test_an_impossible_registration_is_refused(name: str, more: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        register_criterion(name, **more)
    assert "mine" not in CRITERIA


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ({}, r"gave nothing for layers\.0\.kv_groups.*\[4\]"),
        ({"layers.0.kv_groups": torch.ones(3)}, r"gave \[3\] for layers\.0\.kv_groups"),
        ({"layers.0.kv_groups": torch.tensor([1, 2, 3, -1.0])}, "below 0"),
        ({"layers.0.kv_groups": torch.tensor([1, 2, 3, float("nan")])}, "not finite"),
    ],
)
def test_an_answer_that_is_no_score_of_every_unit_is_refused(answer: dict[str, torch.Tensor], match: str) -> None:
    register_criterion("mine", function=lambda model, graph: answer)
    model, graph = worn("llama")
    with pytest.raises(OptionError, match=match):
        make_criterion("mine", graph, OPTIONS, 0).observe(model)


def test_the_documentation_lists_every_criterion() -> None:
    page = (Path(__file__).parents[3] / "docs" / "criteria.md").read_text(encoding="utf-8")
    for name, entry in CRITERIA.items():
        assert f"| `{name}` | {entry.description.replace('|', chr(92) + '|')} | {entry.needs} |" in page


@pytest.mark.parametrize("name", [entry.name for entry in CRITERIA.values() if entry.widths_only])
@pytest.mark.parametrize("options", [{"depth": "layers"}, {"hidden": True}])
def test_criteria_that_rank_widths_only_refuse_layers_and_the_hidden_size(
    name: str, options: dict[str, object]
) -> None:
    graph = trace(build_model("llama").config, options=TraceOptions(**options))
    with pytest.raises(OptionError, match=f"'{name}' does not rank (layers|hidden): choose one of .*loraprune"):
        make_criterion(name, graph, ImportanceOptions(), 0)


def test_all_facts_of_a_criterion_can_be_given_from_outside() -> None:
    held = CRITERIA["obs"].held
    register_criterion(
        "mine",
        lambda graph, options, seed: Random(graph, round(options.smoothing)),
        needs="gradients",
        reads=("smoothing",),
        fixed={"normalise": True},
        revival=False,
        widths_only=True,
        one_shot=True,
        held=held,
    )
    entry = CRITERIA["mine"]
    assert (entry.needs, entry.held, entry.revival) == (Needs.GRADIENTS, held, False)
    assert entry.settle(ImportanceOptions(normalise=False)).normalise
    graph = trace(build_model("llama").config, options=TraceOptions(hidden=True))
    assert settled(TuneOptions(criterion="mine"), graph).one_shot
    with pytest.raises(OptionError, match="'mine' does not rank hidden"):
        make_criterion("mine", graph, OPTIONS, 0)


@pytest.mark.parametrize("facts", [{"reads": ("colour",)}, {"fixed": {"colour": 1}}])
def test_a_criterion_that_names_an_unknown_option_is_refused(facts: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="'mine' names the option 'colour': there are form,"):
        register_criterion("mine", function=first_weights, **facts)


def test_a_package_brings_a_criterion(tmp_path: Path) -> None:
    code = "import passes.criteria as c\nENTRY = c.criterion('dice', lambda g, o, s: c.Random(g, s))\n"
    with installed(tmp_path, "dice_package", "lpc.criteria", {"dice": "dice_package:ENTRY"}, code) as run:
        assert run("from passes.options import TuneOptions; print(TuneOptions(criterion='dice').criterion)") == "dice"


@pytest.mark.parametrize(("smoothing", "memory"), [(0.0, 1), (0.5, 7), (0.9, 44)])
def test_what_is_older_than_the_memory_weighs_a_hundredth_at_most(smoothing: float, memory: int) -> None:
    options = ImportanceOptions(smoothing=smoothing)
    found = criterion_named("loraprune").memory(options)
    assert found == memory
    assert smoothing**found <= 0.01 < (smoothing ** (found - 1) if smoothing else 1)
    assert criterion_named("random").memory(options) is None

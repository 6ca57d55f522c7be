"""What holds for every declared option: help, limits that are kept, plain values and back, a schema."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import typing
from collections import defaultdict
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_origin

import pytest
import torch
from transformers import SchedulerType

import exporters.options
import lpc.options
import passes.options
from exporters.onnx import PRECISIONS
from exporters.options import EXPORTER_NAMES, PRECISION_NAMES
from exporters.registry import EXPORTERS
from lpc.options import BenchmarkOptions, CompressOptions, DataOptions, EvaluateOptions
from passes.criteria import CRITERIA
from passes.errors import OptionError
from passes.options import (
    CRITERION_NAMES,
    Budget,
    DistillOptions,
    ImportanceOptions,
    LoraOptions,
    Option,
    RecoverOptions,
    RunOptions,
    ScoreOptions,
    SnapshotOptions,
    Target,
    TuneOptions,
    alternatives,
    declared,
    from_dict,
    main_type,
    schema,
    to_dict,
)
from passes.options.tune import CURVES

ROOT = Path(__file__).parents[3]
SURFACE = [getattr(room, name) for room in (passes.options, lpc.options) for name in room.__all__]
SURFACE.append(exporters.options.OnnxOptions)
KINDS = [each for each in SURFACE if isinstance(each, type) and is_dataclass(each) and declared(each)]
EVERY = [(kind, option) for kind in KINDS for option in declared(kind)]
LIMITED = [(kind, option) for kind, option in EVERY if option.facts.range]
NEEDED: dict[type, dict[str, Any]] = {
    Target: {"ratio": 0.3},
    Budget: {"macs": 0.5},
    SnapshotOptions: {"ratios": (0.1, 0.3)},
    EvaluateOptions: {"tasks": ("arc",)},
    CompressOptions: {"target": Target(ratio=0.3)},
    lpc.options.InputOptions: {"data": ("train.txt",)},
    lpc.options.StoppingOptions: {"first": 4},
    lpc.options.SweepOptions: {"model": "m", "data": ("train.txt",), "grid": {"target": {"ratio": [0.1, 0.3]}}},
}
"""What must be given for a dataclass to exist."""


def made(kind: type, **more: Any) -> Any:
    return kind(**{**NEEDED.get(kind, {}), **more})


def named(pair: tuple[type, Option]) -> str:
    return f"{pair[0].__name__}.{pair[1].name}"


def test_the_rooms_have_their_options() -> None:
    assert {TuneOptions, Target, DataOptions, BenchmarkOptions} <= {*KINDS}
    assert len(EVERY) > 90


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_declared_with_help(kind: type) -> None:
    assert [each.name for each in declared(kind)] == [each.name for each in fields(kind)]
    for option in declared(kind):
        assert option.facts.help.endswith((".", ")")), option.name


HOMONYMS = {
    "batch_size": "sequences of a run; requests of lm-eval, where auto may stand",
    "cooldown": "a schedule's share of the steps; steps at each snapshot",
    "criterion": "of a run, where auto may stand; of one ranking, which is past that",
    "data": "of a run, where it may be left out; of a sweep, whose runs share it",
    "distill": "tuning distils by default; a recovery only when asked, as that loads the dense model once more",
    "every": "steps between two events of a schedule; between two looks of a recovery",
    "export": "formats of an output; of each run of a sweep, where one is enough",
    "lora": "the adapter of a run; that of a recovery",
    "steps": "of tuning, which may be none; of a recovery",
    "warmup": "a schedule's share of the steps; rounds of a benchmark",
}
"""Names that stand for different things in different places, each with what they are."""


def said(option: Option) -> tuple[object, ...]:
    """What a declaration says: all but what is the command line's."""
    facts = option.facts
    return option.default, facts.help, facts.range, facts.allowed(), facts.noun, facts.hint


def test_no_option_is_declared_twice() -> None:
    """Another dataclass may have an option of the same name if it points to the one declaration."""
    places = defaultdict(list)
    for kind, option in EVERY:
        owner = option.facts.overrides
        if owner is None:
            places[option.name].append((kind, option))
            continue
        main = next(each for each in declared(owner) if each.name == option.name)
        assert option.facts.help == f"{main.facts.help} By default the run's.", named((kind, option))
        assert said(option)[2:] == said(main)[2:], named((kind, option))
        assert option.default is None, named((kind, option))
        assert typing.get_args(option.type)[0] == main.type, named((kind, option))
    twice = {name: found for name, found in places.items() if len({repr(said(each)) for _, each in found}) > 1}
    assert {*twice} == {*HOMONYMS}


def test_one_declaration_has_the_flag() -> None:
    """``lpc evaluate`` is a command by itself, whose words may be those of the others."""
    others = [(kind, option) for kind, option in EVERY if kind is not EvaluateOptions]
    flagged = [option.flag for _, option in others if option.facts.group is not None]
    assert sorted(flagged) == sorted({*flagged})


def test_the_run_is_what_passes_may_override() -> None:
    overridden = {(kind, option.name) for kind, option in EVERY if option.facts.overrides is RunOptions}
    for kind in (TuneOptions, RecoverOptions, ScoreOptions, passes.options.CompensateOptions):
        assert {(kind, "seed"), (kind, "batch_size")} <= overridden
    assert {name for _, name in overridden} == {"seed", "batch_size", "samples"}


@pytest.mark.parametrize(("kind", "option"), LIMITED, ids=[named(pair) for pair in LIMITED])
def test_limits_are_kept(kind: type, option: Option) -> None:
    facts = option.facts
    tiny = 1 if main_type(option.type) is int or get_origin(main_type(option.type)) is tuple else 1e-9
    outside = [limit - tiny for limit in (facts.least,) if limit is not None]
    outside += [limit + tiny for limit in (facts.most,) if limit is not None]
    outside += [limit for limit in (facts.above, facts.below) if limit is not None]
    several = get_origin(main_type(option.type)) is tuple
    for value in outside:
        with pytest.raises(OptionError) as refused:
            made(kind, **{option.name: (value,) if several else value})
        assert str(value) in str(refused.value)
        assert option.label in str(refused.value)
        assert facts.range in str(refused.value)


NUMBERS = [
    (kind, option)
    for kind, option in EVERY
    if main_type(option.type) in (int, float) and str not in alternatives(option.type)
]


@pytest.mark.parametrize(("kind", "option"), NUMBERS, ids=[named(pair) for pair in NUMBERS])
def test_what_is_no_number_is_refused_by_name(kind: type, option: Option) -> None:
    for value in ("1", True, math.nan, math.inf, [1]):
        with pytest.raises(OptionError, match="must be"):
            made(kind, **{option.name: value})


CHOSEN = [(kind, option) for kind, option in EVERY if option.facts.allowed()]


@pytest.mark.parametrize(("kind", "option"), CHOSEN, ids=[named(pair) for pair in CHOSEN])
def test_what_is_no_choice_is_refused_with_the_choices_and_the_nearest(kind: type, option: Option) -> None:
    first = option.facts.allowed()[0]
    with pytest.raises(OptionError, match=f"choose one of .*did you mean '{first}'"):
        made(kind, **{option.name: (f"{first}x",) if get_origin(main_type(option.type)) is tuple else f"{first}x"})
    with pytest.raises(OptionError, match=r"must be a (text|list)"):
        made(kind, **{option.name: 3})


@pytest.mark.parametrize("kind", KINDS)
def test_plain_values_make_the_same_options_again(kind: type) -> None:
    options = made(kind)
    text = json.dumps(to_dict(options))
    assert from_dict(kind, json.loads(text)) == options


def test_plain_values_of_options_inside_of_options() -> None:
    tune = TuneOptions(
        steps=3, importance=ImportanceOptions(form="abs"), distill=None, checkpoints=Path("a"), resume=True
    )
    options = CompressOptions(target=Target(budget=Budget(latency="12ms"), layout="per-layer"), tune=tune)
    plain = json.loads(json.dumps(to_dict(options)))
    assert plain["tune"]["importance"]["form"] == "abs"
    assert plain["target"]["layout"] == "per-layer"
    assert from_dict(CompressOptions, plain) == options
    assert from_dict(CompressOptions, {**plain, "compensate": True}).compensate is True
    assert from_dict(CompressOptions, {**plain, "compensate": {"ridge": 0.5}}).compensate.ridge == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": {"ratio": 0.3}, "tun": {}}, r"unknown option tun \(did you mean 'tune'\?\)"),
        ({"target": {"ratio": 0.3}, "tune": {"step": 3}}, r"unknown option tune\.step \(did you mean 'steps'\?\)"),
        ({"target": {"ratio": 0.3}, "tune": {"importance": {"smooth": 3}}}, r"tune\.importance\.smooth .*'smoothing'"),
        ({"target": {"ratio": 0.3}, "tune": 3}, r"tune must hold options \(steps, batch_size"),
        ({"tune": {}}, "target is missing"),
        ({"target": {"ratio": "0.3"}}, "ratio must be a number, got '0.3'"),
    ],
)
def test_plain_values_that_say_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        from_dict(CompressOptions, values)


JSON = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
LIMITS = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
}


def takes(rule: dict[str, Any], value: Any) -> bool:
    """Whether a JSON schema takes a value: the keywords that ours have, as the standard defines them."""
    assert {*rule} <= {*LIMITS, "type", "properties", "additionalProperties", "required", "description", "default",
                       "enum", "anyOf", "items"}  # fmt: skip
    if "anyOf" in rule:
        return any(takes(each, value) for each in rule["anyOf"])
    if "enum" in rule:
        return value in rule["enum"]
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in kinds
    if not any(isinstance(value, JSON[kind]) for kind in kinds if kind not in ("null", "boolean")):
        return False
    if isinstance(value, dict) and "properties" in rule:
        if not ({*rule.get("required", ())} <= {*value} <= {*rule["properties"]}):
            return False
        return all(takes(rule["properties"][name], each) for name, each in value.items())
    if isinstance(value, dict):
        return True
    if isinstance(value, list):
        return all(takes(rule["items"], each) for each in value)
    return all(holds(value, rule[word]) for word, holds in LIMITS.items() if word in rule)


@pytest.mark.parametrize("kind", KINDS)
def test_schema_takes_what_the_options_are_and_nothing_else(kind: type) -> None:
    rule, plain = schema(kind), json.loads(json.dumps(to_dict(made(kind))))
    assert rule["additionalProperties"] is False
    assert takes(rule, plain)
    assert not takes(rule, {**plain, "nonsense": 1})
    for option in declared(kind):
        if main_type(option.type) in (int, float) and str not in alternatives(option.type):
            assert not takes(rule, {**plain, option.name: "many"})
            if option.facts.least is not None:
                assert not takes(rule, {**plain, option.name: option.facts.least - 1})
        if option.default is MISSING:
            assert not takes(rule, {name: value for name, value in plain.items() if name != option.name})


def test_what_can_be_said_in_two_ways_is_stored_in_one() -> None:
    said = TuneOptions(checkpoints="folder", save_every=1)  # type: ignore[arg-type]
    assert said.checkpoints == Path("folder")
    assert Target(ratio=0.3, layout="uniform") == Target(ratio=0.3)
    assert SnapshotOptions(ratios=[0.1, 0.2]).ratios == (0.1, 0.2)  # type: ignore[arg-type]
    assert replace(LoraOptions(), alpha=16).alpha == 16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"importance": {"form": "abs"}}, r"importance must be ImportanceOptions\(\.\.\.\), got"),
        ({"distill": 0.5}, r"distill must be DistillOptions"),
        ({"checkpoints": 3}, "checkpoints must be a path"),
        ({"bf16": 1}, "bf16 must be True or False"),
        ({"steps": 10**30}, "at most 1,000,000,000"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be .* at most 4,294,967,295"),
        ({"learning_rate": 1e30}, "learning_rate must be above 0 and at most 1.0, got 1e"),
    ],
)
def test_impossible_tuning_is_refused_when_it_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TuneOptions(**values)


def test_distillation_names_itself() -> None:
    with pytest.raises(OptionError, match="weight of distillation must be at least 0 and at most 1, got 2"):
        DistillOptions(weight=2)


def test_a_torch_dtype_is_told_by_its_name() -> None:
    assert RunOptions(dtype=torch.bfloat16) == RunOptions(dtype="torch.bfloat16") == RunOptions(dtype="bfloat16")
    with pytest.raises(OptionError, match="unknown dtype 'int8'"):
        RunOptions(dtype=torch.int8)


@pytest.mark.parametrize("device", ["abacus", "cuda:x", "cpu:0:1", ""])
def test_a_device_that_cannot_be_is_refused_without_torch(device: str) -> None:
    with pytest.raises(OptionError, match="device must be auto, cpu, cuda, cuda:N or mps"):
        RunOptions(device=device)


def test_names_are_those_of_the_registries() -> None:
    assert [*CRITERIA][: len(CRITERION_NAMES.own)] == [*CRITERION_NAMES.own]
    assert [*EXPORTERS][: len(EXPORTER_NAMES.own)] == [*EXPORTER_NAMES.own]
    assert [*PRECISIONS][: len(PRECISION_NAMES.own)] == [*PRECISION_NAMES.own]


def test_the_curves_are_those_of_transformers() -> None:
    assert {*CURVES} <= {each.value for each in SchedulerType}


def test_options_need_no_torch() -> None:
    code = (
        "import sys, passes.options, lpc.options, lpc; lpc.TuneOptions(); lpc.Target(ratio=0.3); lpc.DataOptions()\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'datasets') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"

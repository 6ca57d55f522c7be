from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from workbench import adapted, build_model, plan_of, random_kept, traced

from passes.errors import MissingFileError, PlanError
from passes.graph import Plan
from passes.models import fingerprint

KEPT = {"layers.0.kv_groups": (0, 2), "layers.0.mlp_channels": (1, 3, 63)}


def plan(**changes: object) -> Plan:
    values = {
        "source": "ab" * 32,
        "family": "llama",
        "budget": {"parameters": 0.7},
        "source_parameters": 100,
        "target_parameters": 70,
    }
    return Plan(**{**values, "kept": KEPT, "options": {"steps": 3, "importance": {"form": "abs"}}, **changes})


@settings(max_examples=30, deadline=None)
@given(
    kept=st.dictionaries(
        st.text(min_size=1), st.sets(st.integers(0, 10**6), min_size=1).map(lambda s: tuple(sorted(s)))
    ),
    budget=st.dictionaries(st.sampled_from(["parameters", "macs"]), st.floats(0.001, 0.999)),
    criterion=st.text(),
)
def test_json_round_trip(kept: dict[str, tuple[int, ...]], budget: dict[str, float], criterion: str) -> None:
    expected = plan(kept=kept, budget=budget, criterion=criterion)
    text = expected.to_json()
    assert Plan.from_json(text) == expected
    assert Plan.from_json(text).to_json() == text


def test_counts_and_achieved_ratio() -> None:
    assert plan().counts() == {"layers.0.kv_groups": 2, "layers.0.mlp_channels": 3}
    assert plan().achieved_ratio == pytest.approx(0.3)


def changed(**values: object) -> str:
    content = json.loads(plan().to_json())
    return json.dumps({name: value for name, value in {**content, **values}.items() if value is not ...})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        "[]",
        "{}",
        changed(schema_version=...),
        changed(schema_version=1),
        changed(source=...),
        changed(surprise=1),
        changed(layout="per-lane"),
        changed(kept=[1, 2]),
        changed(kept={"a": []}),
        changed(kept={"a": 3}),
        changed(kept={"a": [2, 1]}),
        changed(kept={"a": [1, 1]}),
        changed(kept={"a": [-1, 1]}),
        changed(kept={"a": [0.5, 1]}),
        changed(kept={"a": [True]}),
        changed(kept={"a": ["0"]}),
        changed(kept={"a": [None]}),
    ],
)
def test_a_malformed_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_another_schema_version_is_named() -> None:
    with pytest.raises(PlanError, match="schema version 1; this lpc reads versions 2 and 3"):
        Plan.from_json(changed(schema_version=1))


def test_plan_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        Plan.load(tmp_path / "nowhere.json")
    (tmp_path / "plan.json").write_text(plan().to_json(), encoding="utf-8")
    assert Plan.load(str(tmp_path / "plan.json")) == plan()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PlanError, match="binary"):
        Plan.load(tmp_path / "binary.json")


def test_masks_let_exactly_the_kept_units_through() -> None:
    program = traced(build_model("llama"))
    kept = random_kept(program.traced, 2, 24, seed=4)
    masks = plan_of(program, kept).masks(program.traced)
    assert {name: tuple(mask.nonzero().flatten().tolist()) for name, mask in masks.items()} == kept
    assert {name: len(mask) for name, mask in masks.items()} == {d.name: d.size for d in program.traced.dimensions}


@pytest.mark.parametrize(
    ("name", "units", "message"),
    [
        ("layers.1.kv_groups", (0, 4), r"unit 4 of layers\.1\.kv_groups, which has only 4"),
        ("layers.7.kv_groups", (0, 1), r"disagree on the dimension layers\.7"),
        ("layers.1.kv_groups", (0, 1, 2), "uniform plan keeps as many kv_groups in every layer"),
        ("layers.0.mlp_channels", (0,), "uniform plan keeps as many mlp_channels in every layer"),
        ("layers.0.mlp_channels", None, r"disagree on the dimension layers\.0\.mlp_channels"),
    ],
)
def test_a_plan_that_does_not_fit_the_graph_is_refused(name: str, units: tuple[int, ...] | None, message: str) -> None:
    program = traced(build_model("llama"))
    kept = {**random_kept(program.traced, 2, 24, seed=4), name: units}
    kept = {key: value for key, value in kept.items() if value is not None}
    with pytest.raises(PlanError, match=message):
        plan(kept=kept).masks(program.traced)


def test_the_fingerprint_is_of_every_weight() -> None:
    original = fingerprint(build_model("llama", num_hidden_layers=1))
    assert original == fingerprint(build_model("llama", num_hidden_layers=1))
    assert len(original) == 64
    for name, _ in build_model("llama", num_hidden_layers=1).named_parameters():
        model = build_model("llama", num_hidden_layers=1)
        with torch.no_grad():
            weight = model.get_parameter(name).view(-1)
            weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
        assert fingerprint(model) != original, name


def test_the_fingerprint_knows_family_and_dtype() -> None:
    assert fingerprint(build_model("llama")) != fingerprint(build_model("mistral"))
    assert fingerprint(build_model("llama")) != fingerprint(build_model("llama").bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapters_do_not_count(dtype: torch.dtype) -> None:
    expected = fingerprint(build_model("llama").to(dtype))
    program = adapted(build_model("llama").to(dtype))
    assert fingerprint(program.model) == expected


def test_fingerprint_changes_with_the_configuration_that_changes_the_function() -> None:
    plain = build_model("llama")
    other = build_model("llama", rms_norm_eps=1e-3)
    assert fingerprint(plain) == fingerprint(build_model("llama"))
    assert fingerprint(plain) != fingerprint(other)

"""A plan applied a tensor at a time: the same files as with the model in memory, and what it holds in memory."""

from __future__ import annotations

import hashlib
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from deepening import deep, random_choice
from hiding import units
from safetensors.torch import load_file, save_file
from shrinking import some_units
from transformers import PreTrainedModel
from uneven import uneven_units
from workbench import adapted

import lpc
from lpc.source import find_unloaded
from passes.errors import ModelError, PlanError, PostconditionError
from passes.graph import Plan, PruningGraph
from passes.models import Adapter, Unloaded, fingerprint
from passes.options import TraceOptions
from passes.trace import trace

SHARD = "40KB"
TIMED = ("lpc.json", "report.md", "report.html", "README.md")
"""The files that tell of the run."""
FAMILIES = {
    "llama": torch.bfloat16,
    "qwen3": torch.float32,
    "phi3": torch.bfloat16,
    "gpt2": torch.float32,
    "falcon-grouped": torch.bfloat16,
    "bloom": torch.float32,
    "mixtral": torch.bfloat16,
    "qwen3_moe": torch.float32,
    "bert": torch.float32,
    "t5": torch.bfloat16,
}


def plan_for(model: PreTrainedModel, graph: PruningGraph, kept: dict[str, tuple[int, ...]], **changes: object) -> Plan:
    plan = Plan(
        source=fingerprint(model),
        family=graph.family,
        budget={"parameters": 0.5},
        source_parameters=graph.parameters(),
        target_parameters=graph.parameters(kept),
        kept={name: tuple(each) for name, each in kept.items()},
        layout="per-layer",
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def graph_of(model: PreTrainedModel, options: TraceOptions) -> PruningGraph:
    return trace(model.config, model.dtype, model_type=type(model), options=options)


def stored(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def both_ways(plan: Plan, source: Path, folder: Path, **given: object) -> tuple[Path, Path]:
    """The outputs in memory and a tensor at a time."""
    lpc.apply(plan, source, **given).save(folder / "whole", export=["hf"])  # type: ignore[arg-type]
    lpc.apply_to(plan, source, folder / "streamed", **given)  # type: ignore[arg-type]
    assert "write" in [each["name"] for each in manifest(folder / "streamed")["passes"]]
    return folder / "whole", folder / "streamed"


def manifest(out: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((out / "lpc.json").read_text())


def digests(out: Path) -> dict[str, str]:
    """All files but those that tell of the run."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in TIMED]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_same(whole: Path, streamed: Path) -> None:
    assert digests(whole) == digests(streamed)
    one, other = manifest(whole), manifest(streamed)
    same = ("source", "target", "budget", "layout", "ratio", "cost", "widths", "untouched", "compensated", "missing")
    for entry in same:
        assert one[entry] == other[entry], entry


@pytest.mark.parametrize("name", FAMILIES)
def test_the_files_are_the_same_for_every_family(name: str, tmp_path: Path) -> None:
    model = zoo.build(name).to(FAMILIES[name])
    graph = graph_of(model, TraceOptions())
    check_same(*both_ways(plan_for(model, graph, some_units(graph)), stored(model, tmp_path / "model"), tmp_path))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_files_are_the_same_with_widths_a_layer(name: str, tmp_path: Path) -> None:
    model = zoo.build(name)
    graph = graph_of(model, TraceOptions(custom_code=True))
    check_same(*both_ways(plan_for(model, graph, uneven_units(graph)), stored(model, tmp_path / "model"), tmp_path))


@pytest.mark.parametrize("depth", ["layers", "blocks"])
def test_the_files_are_the_same_without_some_layers(depth: str, tmp_path: Path) -> None:
    model = deep("llama")
    graph = graph_of(model, TraceOptions(depth=depth, custom_code=True))
    check_same(*both_ways(plan_for(model, graph, random_choice(graph, 3)), stored(model, tmp_path / "model"), tmp_path))


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_the_files_are_the_same_with_a_smaller_hidden_size(name: str, tmp_path: Path) -> None:
    model = zoo.build(name, rms_norm_eps=0.3).to(torch.bfloat16)
    graph = graph_of(model, TraceOptions(hidden=True))
    check_same(*both_ways(plan_for(model, graph, units(graph, 16, 0)), stored(model, tmp_path / "model"), tmp_path))


def adapter_of(model: PreTrainedModel, folder: Path) -> Path:
    """A random adapter for the model, in peft's format."""
    copied = type(model)(model.config).to(model.dtype)
    copied.load_state_dict(model.state_dict())
    return folder / Adapter.of(adapted(copied.eval()).model).save(folder)[0].parent  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "mixtral"])
def test_the_files_are_the_same_with_an_adapter(name: str, tmp_path: Path) -> None:
    model = zoo.build(name).to(FAMILIES[name])
    graph = graph_of(model, TraceOptions())
    adapter = adapter_of(model, tmp_path)
    source = stored(model, tmp_path / "model")
    whole, streamed = both_ways(plan_for(model, graph, some_units(graph)), source, tmp_path, adapter=adapter)
    check_same(whole, streamed)
    assert manifest(whole)["parity"]["merge"] == manifest(streamed)["parity"]["merge"]


@pytest.mark.parametrize("first", [True, False])
def test_the_files_are_the_same_with_solved_weights_and_an_adapter(first: bool, tmp_path: Path) -> None:
    model = zoo.build("llama").to(torch.bfloat16)
    graph = graph_of(model, TraceOptions())
    options = {"compensate": {}, "schedule": {"cooldown": 1 if first else 0.2}}
    plan = plan_for(model, graph, some_units(graph), options=options)
    solved = {
        name: 0.1 * torch.randn(parameter.shape, dtype=torch.bfloat16)
        for name, parameter in model.named_parameters()
        if name.endswith(("o_proj.weight", "down_proj.weight"))
    }
    save_file(solved, tmp_path / "solved.safetensors")
    given = {"adapter": adapter_of(model, tmp_path), "compensation": tmp_path / "solved.safetensors"}
    check_same(*both_ways(plan, stored(model, tmp_path / "model"), tmp_path, **given))


def test_the_dtype_of_the_run_is_taken_up(tmp_path: Path) -> None:
    model = zoo.build("llama")
    source = stored(model, tmp_path / "model")
    graph = graph_of(model, TraceOptions())
    plan = plan_for(model.to(torch.bfloat16), graph, some_units(graph), options={"dtype": "bf16"})
    whole, streamed = both_ways(plan, source, tmp_path)
    check_same(whole, streamed)
    assert {each.dtype for each in load_file(streamed / "hf" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.fixture
def case(tmp_path: Path) -> tuple[Plan, Path]:
    """A plan for a tiny Llama, and its folder."""
    model = build_model("llama")
    build_tokenizer().save_pretrained(tmp_path / "model")
    graph = graph_of(model, TraceOptions())
    return plan_for(model, graph, some_units(graph)), stored(model, tmp_path / "model")


def test_the_report_says_what_was_not_run_and_the_result_loads(case: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, source = case
    report = lpc.apply_to(plan, source, tmp_path / "out")
    assert "no layer was run" in (tmp_path / "out" / "report.md").read_text()
    assert [each.name for each in report.passes] == ["trace", "replay", "merge", "shrink", "write"]
    assert all(verdict.evidence != "run here" for verdict in report.compatibility)
    loaded = lpc.load(tmp_path / "out" / "hf")
    ids = torch.arange(9)[None]
    assert torch.equal(loaded(ids).logits, lpc.apply(plan, source).model(ids).logits)
    assert (tmp_path / "out" / "hf" / "tokenizer.json").is_file()


def test_another_model_is_refused_and_leaves_nothing(case: tuple[Plan, Path], tmp_path: Path) -> None:
    other = stored(build_model("llama", seed=3), tmp_path / "other")
    with pytest.raises(PlanError, match="load the model that the plan was made for"):
        lpc.apply_to(case[0], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_is_refused_by_name(case: tuple[Plan, Path], tmp_path: Path) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        lpc.apply_to(case[0], stored(model, tmp_path / "other"), tmp_path / "out")


def test_what_cannot_be_had_one_by_one_is_loaded(case: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, source = case
    report = lpc.apply_to(plan, source, tmp_path / "out", device="cpu")
    assert "write" not in [each.name for each in report.passes]
    state = {name: tensor.clone() for name, tensor in build_model("llama").state_dict().items()}
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})  # the tied head as well
    (source / "model.safetensors.index.json").unlink()
    report = lpc.apply_to(plan, source, tmp_path / "both")
    assert "write" not in [each.name for each in report.passes]
    assert digests(tmp_path / "out") == digests(tmp_path / "both")


def test_a_wrong_cut_and_a_wrong_byte_are_found(
    case: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporters.hf.weights_file import WeightsFile
    from passes.shrink import cut

    right, write = cut.cut_tensor, WeightsFile.write
    monkeypatch.setattr(cut, "cut_tensor", lambda tensor, *more: right(tensor, *more).flip(0))
    with pytest.raises(PostconditionError, match="is not what the plan leaves of it"):
        lpc.apply_to(*case, tmp_path / "out")
    monkeypatch.setattr(cut, "cut_tensor", right)

    def scribble(self: WeightsFile, name: str, tensor: torch.Tensor) -> None:
        write(self, name, tensor)
        self._file.seek(self._start + self._places[name])
        self._file.write(b"\x00\x01")

    monkeypatch.setattr(WeightsFile, "write", scribble)
    with pytest.raises(PostconditionError, match="is not what was written"):
        lpc.apply_to(*case, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_is_in_memory_only_while_it_is_worked_on(tmp_path: Path) -> None:
    source, _ = find_unloaded(stored(build_model("llama"), tmp_path / "model"))
    assert all(parameter.is_meta for parameter in source.model.parameters())
    kept = []
    for name, tensor in source.tensors():
        kept.append((name, tensor.untyped_storage().data_ptr()))
        assert not tensor.is_meta
        del tensor
    assert [name for name, _ in kept] == sorted(source.parameters)
    assert all(parameter.is_meta for parameter in source.model.parameters())


def test_no_two_tensors_of_the_source_are_in_memory_together(
    case: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most, read = [0], [0], Unloaded._read

    def counting(self: Unloaded, stored: str, like: torch.Tensor) -> torch.Tensor:
        tensor = read(self, stored, like)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(tensor, lambda: alive.__setitem__(0, alive[0] - 1))
        return tensor

    monkeypatch.setattr(Unloaded, "_read", counting)
    lpc.apply_to(*case, tmp_path / "out")
    assert (most[0], alive[0]) == (1, 0)

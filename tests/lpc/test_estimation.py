"""What a run will cost: closed forms against counting, and what is said where there is no room."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build_model
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import lpc
from lpc.cli.app import app
from lpc.estimation import Costs, check_room, memory, work
from lpc.estimation.pace import Pace
from lpc.estimation.rate import measured_rate
from lpc.opening import check_loads
from passes.algebra import NormalEquations
from passes.errors import OptionError
from passes.models import HOST_TOKENS
from passes.options import LoraOptions
from passes.pipeline import RunContext
from passes.trace import trace

CONTEXT, BATCH, RANK = 64, 2, 4
SIZES = {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 512, "max_position_embeddings": 256}


def costs(model: torch.nn.Module, **tune: object) -> Costs:
    graph = trace(model.config, model.dtype, model_type=type(model))
    options = lpc.CompressOptions(
        target=lpc.Target(ratio=0.3),
        run=lpc.RunOptions(batch_size=BATCH, samples=8),
        tune=lpc.TuneOptions(**tune),  # type: ignore[arg-type]
        data_options=lpc.DataOptions(sequence_length=CONTEXT),
        lora=LoraOptions(rank=RANK),
    )
    return Costs.of(graph, model.config, options, on_cpu=True)


def counted(model: torch.nn.Module, *, backward: bool) -> float:
    """The operations of one batch, by torch's own counter."""
    ids = torch.randint(0, 500, (BATCH, CONTEXT))
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, labels=ids).loss
        if backward:
            loss.backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_forward_pass_is_what_torch_counts(family: str) -> None:
    model = build_model(family, **SIZES)
    sizes = costs(model).sizes
    without_attention = sizes.forward(0) * BATCH * CONTEXT  # which torch does not count in its fused kernel
    assert without_attention == counted(model, backward=False)
    assert sizes.forward(CONTEXT) - sizes.forward(0) == 2 * 2 * 64 * CONTEXT  # two layers of 8 heads of 8


def test_the_shares_that_are_measured_cost_a_forward_pass_each() -> None:
    wanted = costs(build_model("llama", **SIZES), criterion="obs", schedule=lpc.ONE_SHOT)
    none = replace(wanted.load, ways=0)
    assert wanted.load.ways > 1
    more = work.rank_units(wanted.sizes, wanted.load) - work.rank_units(wanted.sizes, none)
    assert more == pytest.approx(wanted.load.ways * 8 * CONTEXT * wanted.sizes.forward(CONTEXT))
    assert costs(build_model("llama", **SIZES), criterion="loraprune").load.ways == 0


def test_a_step_is_what_torch_counts() -> None:
    from workbench import adapted

    model = build_model("llama", **SIZES)
    wanted = costs(model, distill=None)
    worn = adapted(model, rank=RANK).model.train()
    for name, parameter in worn.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    assert work.step(wanted.sizes, wanted.load) == pytest.approx(counted(worn, backward=True), rel=0.08)
    distilled = costs(model)
    teacher = distilled.sizes.forward(CONTEXT) * BATCH * CONTEXT
    assert work.step(distilled.sizes, distilled.load) - work.step(wanted.sizes, wanted.load) == pytest.approx(teacher)


@pytest.mark.parametrize("width", [96, 600, 1536])
def test_sums_of_what_a_projection_reads_and_lacks_are_what_torch_counts(width: int) -> None:
    equations = NormalEquations(intercept=False)
    with FlopCounterMode(display=False) as counter:
        equations.add(torch.randn(4, width), torch.randn(4, 32), torch.randn(4, 32))
    assert counter.get_total_flops() == 4 * work.added(width, 32)


def test_what_is_gone_is_not_solved_for() -> None:
    found = costs(build_model("llama", **SIZES), criterion="obs", schedule=lpc.ONE_SHOT)
    assert found.load.compensated
    whole, half = (work.compensate(found.sizes, found.load, kept=share) for share in (1.0, 0.5))
    passes = work.compensate(found.sizes, found.load, kept=0.0)
    assert (half - passes) < 0.6 * (whole - passes)
    assert found.flops()["compensate"] == work.compensate(found.sizes, found.load, kept=found.left)


def saved_bytes(model: torch.nn.Module) -> int:
    """What autograd keeps of one batch, besides parameters, in bytes; memory that several nodes share once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that the place is not used again
        return tensor

    ids = torch.randint(0, 300, (BATCH, CONTEXT))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, labels=ids).loss
    del loss
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_step_keeps_is_what_autograd_keeps(dtype: torch.dtype) -> None:
    from workbench import adapted

    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 1024, "head_dim": 32, "vocab_size": 300}
    model = build_model("llama", **sizes).to(dtype)
    found = costs(model)
    worn = adapted(model, rank=RANK).model.train()
    for name, parameter in worn.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    expected = BATCH * CONTEXT * memory.trained_activations(found.sizes, found.load)
    logits = BATCH * CONTEXT * 300 * 4
    assert expected + logits == pytest.approx(saved_bytes(worn), rel=0.05)


def test_the_true_gradient_costs_a_forward_pass_and_the_weights_once_more() -> None:
    found = costs(build_model("llama", **SIZES), small=False)
    method, true = found.way(found.even(1e12)), found.way(found.even(1e12), true_gradient=True)
    assert true.step_flops - method.step_flops == pytest.approx(found.sizes.forward(CONTEXT) * BATCH * CONTEXT)
    tune, same = ({each.name: each for each in way.stages}["tune"] for way in (method, true))
    assert same.memory_bytes - tune.memory_bytes == pytest.approx(found.sizes.adapted * 4, abs=2)
    assert method.step_seconds == pytest.approx(method.step_flops / 1e12)


def test_the_adapter_and_the_solved_weights_are_counted_exactly() -> None:
    from workbench import adapted

    model = build_model("llama", **SIZES)
    sizes = costs(model).sizes
    named = dict(model.named_parameters())
    solved = sum(p.numel() for n, p in named.items() if n.endswith(("o_proj.weight", "down_proj.weight")))
    assert (sizes.solved, sizes.weight_bytes) == (solved, sum(4 * p.numel() for p in named.values()))
    worn = adapted(model, rank=RANK).model
    assert RANK * sizes.lora_elements == sum(p.numel() for n, p in worn.named_parameters() if ".lora_" in n)


def test_an_8b_model_is_estimated_from_its_configuration_alone(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = lpc.estimate(tmp_path, 0.2, flops=400e12, device_bytes=80 * 10**9, steps=200)
    assert found.parameters == 8_030_261_248
    assert not found.measured
    tokens = 8 * 256
    assert found.method.step_flops == pytest.approx((1 + 2 * 0.78) * 2 * 7.5e9 * tokens, rel=0.1)
    assert found.method.peak.memory_bytes > 16 * 10**9
    values = json.loads(json.dumps(found.to_json()))
    assert values["method"]["hours"] == pytest.approx(found.method.hours)


def on_a_gpu(found: Costs) -> Costs:
    """Whole batches at a time, and large ones: what the options change is more than what they do not."""
    return replace(found, load=replace(found.load, batch=64, on_cpu=False))


def test_where_it_does_not_fit_the_option_to_change_is_named() -> None:
    found = on_a_gpu(costs(build_model("llama", **SIZES)))
    room = int(0.9 * found.peak())
    words = found.remedy(room)
    assert words is not None
    flag, value = words.split()
    assert flag in ("--batch-size", "--samples", "--sequence-length")
    names = {"--batch-size": "batch", "--samples": "samples", "--sequence-length": "context"}
    smaller = replace(found, load=replace(found.load, **{names[flag]: int(value)}))
    assert smaller.peak() <= room
    assert found.remedy(found.sizes.weight_bytes // 2) is None


def test_the_door_warns_and_refuses_only_what_is_hopeless(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lpc.estimation import outlook as module

    found = on_a_gpu(costs(build_model("llama", **SIZES)))
    device = torch.device("cpu")
    monkeypatch.setattr(module, "room_on", lambda device: int(found.peak()) + 1)
    check_room(found, device, already=0)
    assert not caplog.messages
    monkeypatch.setattr(module, "room_on", lambda device: int(0.9 * found.peak()))
    with caplog.at_level(logging.WARNING, logger="lpc"):
        check_room(found, device, already=0)
    assert "if it fails, try --" in caplog.text
    monkeypatch.setattr(module, "room_on", lambda device: 1000)
    with pytest.raises(OptionError, match=r"GiB still: take a device with more memory"):
        check_room(found, device, already=0)


def test_a_rate_is_operations_over_the_time_of_a_clock() -> None:
    ticks = iter(range(1000))
    rate = measured_rate(8, 16, torch.float32, torch.device("cpu"), seconds=4, clock=lambda: float(next(ticks)))
    assert rate > 0
    assert rate % (4.0 * 1024 * 8 * 16 / 12) < 1e9


def test_the_command_shows_both_ways(tiny_model_folder: Path) -> None:
    words = ["estimate", str(tiny_model_folder), "--ratio", "0.3", "--flops", "1e12", "--device", "80GB"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "fits into 74.5 GiB" in shown.output
    assert "ranked by the true gradient" in shown.output
    told = CliRunner().invoke(app, [*words[:-1], "1MB", "--json"])
    values = json.loads(told.output)
    assert values["fits"] == (values["method"]["stages"][0]["memory_bytes"] < 10**6 and values["fits"])


def test_a_run_tells_its_progress_what_is_to_come(tiny_model_folder: Path, text_file: Path) -> None:
    class Told:
        stages: list[str] = []  # noqa: RUF012

        def expect(self, stages: list) -> None:  # type: ignore[type-arg]
            self.stages = [each.name for each in stages]
            assert all(each.seconds >= 0 for each in stages)
            assert sum(each.seconds for each in stages) > 0

        def __call__(self, stage: str, done: int, total: int) -> None:
            pass

    told = Told()
    options = {"steps": 0, "samples": 8, "sequence_length": 32, "export": ["hf"]}
    result = lpc.compress(tiny_model_folder, text_file, 0.3, progress=told, **options)  # type: ignore[arg-type]
    ran = [each.name for each in result.report.passes]
    assert ran[0] == "load"
    assert told.stages == [*ran[2:], "save"]


def test_weights_that_cannot_be_loaded_are_refused_before(
    tiny_model_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpc.opening.room_on", lambda device: 1000)
    with pytest.raises(OptionError, match=r"GiB of weights, and 0\.0 GiB are free on cpu"):
        lpc.compress(tiny_model_folder, text_file, 0.3)


def test_weights_that_are_packed_while_they_are_loaded_are_not_measured_by_their_files(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpc.opening.room_on", lambda device: 1000)
    run = RunContext(device="cpu")
    with pytest.raises(OptionError, match="GiB of weights"):
        check_loads(tiny_model_folder, run)
    check_loads(tiny_model_folder, run, load_in="4bit")


def test_a_pace_is_that_of_one_layer_in_all_of_them_and_of_the_head() -> None:
    """By a clock that ticks once a look: each trial takes a tick, whatever it does."""
    model = build_model("llama", **SIZES)
    found, ticks = costs(model), iter(range(1000))
    clock = lambda: float(next(ticks))  # noqa: E731
    pace = Pace.measured(model.config, found.sizes, found.load, model.dtype, torch.device("cpu"), clock)
    assert pace is not None
    tokens = HOST_TOKENS // CONTEXT * CONTEXT
    assert pace.forward == pace.worn == pace.frozen == pace.trained == pytest.approx(2 / tokens / 3)  # two layers
    assert pace.head == pace.head_trained == pytest.approx(1 / 256 / 3)
    assert pace.eliminate == pytest.approx(work.eliminating(256, 64))
    assert pace.solve == pytest.approx(work.solution(256, 64))
    assert pace.add == pytest.approx(3 * HOST_TOKENS * work.added(256, 64))


def test_what_is_too_large_or_no_single_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama", **SIZES)
    found = costs(model)
    monkeypatch.setattr("lpc.estimation.pace.MOST_BYTES", 1000)
    assert Pace.measured(model.config, found.sizes, found.load, model.dtype, torch.device("cpu")) is None

"""The guard: compensation that makes the loss rise is taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import zoo
from by_hand import (
    DATA,
    Padded,
    prepared,
    report_of,
)
from torch.utils.data import Dataset
from workbench import build_model, planned, random_units, traced

from passes.compensation import CompensatePass
from passes.compensation.guard import compared
from passes.compensation.streams import Sides
from passes.models import MaskedModel, masked
from passes.options import CompensateOptions, TraceOptions
from passes.pipeline import Program
from passes.ranks import Share
from passes.trace import TracePass, trace


def test_all_is_taken_back_if_the_loss_rises(caplog: pytest.LogCaptureFixture) -> None:
    """The labels are what the masked model says itself: any change makes its loss rise."""
    program, dense, _, _ = prepared("llama")
    data = Padded()
    with masked(program.model, program.traced, program.masks), torch.no_grad():
        for _ in range(12):
            answers = program.model(input_ids=data.ids, attention_mask=data.mask).logits.argmax(-1)
            data.ids[:, 1:] = answers[:, :-1]
    result = CompensatePass(data)(program)
    report = report_of(result)
    assert report.undone
    assert report.loss_after > report.loss_before
    assert "taken back" in caplog.text
    assert not result.modified
    assert result.program.compensation is None
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in program.model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3_text", "bert", "falcon-mqa", "t5"])
def test_the_loss_after_is_the_model_s_own_of_whole_forward_passes(name: str) -> None:
    program = TracePass(TraceOptions(custom_code=True))(Program.start(zoo.build(name))).program
    kept = random_units(program.traced, {width.name: max(1, width.size // 2) for width in program.traced.widths}, 4)
    program = planned(program, kept)
    data = Labelled(name)
    result = CompensatePass(data, CompensateOptions(batch_size=2, ridge=0.1))(program)
    report = report_of(result)
    assert report.layer_by_layer == (name != "t5")
    batch = {key: torch.stack([row[key] for row in data.rows]) for key in data.rows[0]}
    with torch.no_grad(), masked(program.model, program.traced, program.masks):
        now = float(program.model(**batch).loss)
    assert (report.loss_before if report.undone else report.loss_after) == pytest.approx(now, rel=1e-4)


class Labelled(Dataset[dict[str, torch.Tensor]]):
    """The three rows of a case of the zoo, without padding, so that each has as many labels."""

    def __init__(self, name: str) -> None:
        batch = zoo.inputs(name, zoo.ZOO[name])
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 256, 7)
        batch = {**batch, **zoo.labels(zoo.ZOO[name], batch)}
        self.rows = [{key: value[row] for key, value in batch.items()} for row in range(3)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def test_the_guard_looks_at_no_more_batches_than_it_needs() -> None:
    seen = []

    def outputs() -> Iterator[dict[str, float]]:
        for number in range(16):
            seen.append(number)
            yield {"loss": 1.0 + 0.001 * number}

    model = traced(build_model("llama")).model
    rows = [{"input_ids": DATA.ids[:3], "labels": DATA.ids[:3]}] * 16
    with torch.no_grad():
        found = compared(Sides(model, MaskedModel(model, trace(model.config)), {}), Share.of(rows), outputs())
    assert seen == [0, 1, 2, 3]
    assert found.rows == 12
    assert found.after == pytest.approx(1.0015)
    with torch.no_grad():
        assert found.before == pytest.approx(float(model(**rows[0]).loss), rel=1e-5)


def test_the_guard_looks_at_all_batches_where_the_answer_is_not_clear() -> None:
    model = traced(build_model("llama")).model
    rows = [{"input_ids": DATA.ids[:3], "labels": DATA.ids[:3]}] * 16
    with torch.no_grad():
        now = float(model(**rows[0]).loss)
        losses = ({"loss": now + (0.1 if number % 2 else -0.1)} for number in range(16))
        found = compared(Sides(model, MaskedModel(model, trace(model.config)), {}), Share.of(rows), losses)
    assert found.rows == 48

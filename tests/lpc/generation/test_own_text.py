"""Drawing a model's own text: against a loop without a cache; the data sets; what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build_model
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from lpc.data import BlockDataset
from lpc.generation import GeneratePass, Mixed, OwnText, Script, Written, sampling
from lpc.generation.script import Turn
from passes.errors import OptionError
from passes.pipeline import Pipeline, Program, RunContext

OPENING = (3, 5)


def plainly(model: PreTrainedModel, script: Script, length: int) -> list[int]:
    """The likeliest text by a script, the whole of it run again for each token."""
    text, coming, turn = list(script.opening), list[int](), 0
    while len(text) < length:
        if coming:
            text.append(coming.pop(0))
        else:
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([text])).logits[0, -1]
            for token in script.barred:
                if token != script.turns[turn].end:
                    scores[token] = -torch.inf
            text.append(int(scores.argmax()))
        if not coming and text[-1] == script.turns[turn].end and len(text) > len(script.opening):
            coming, turn = list(script.turns[turn].then), (turn + 1) % len(script.turns)
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_drawn_follows_the_script_token_for_token(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "TOP_P", 1e-6)
    model = build_model("llama").to(dtype)
    free = plainly(model, Script(opening=OPENING, turns=(Turn(end=None),), is_chat=False), 24)
    turns = (Turn(end=free[2], then=(7, 9, 11)), Turn(end=8, then=(2,)))
    script = Script(opening=OPENING, turns=turns, is_chat=True)
    script = replace(script, barred=(plainly(model, script, 24)[6], free[2]))  # the likeliest behind what is put in
    wanted = plainly(model, script, 24)
    assert wanted[2:6] == [free[2], 7, 9, 11]
    assert sampling.drawn(model, script, 3, 24, 1, 1.0).tolist() == [wanted] * 3
    assert model.training is False


def test_the_seed_decides_and_the_model_and_its_settings_stay() -> None:
    model = build_model("llama")
    model.generation_config.eos_token_id = list(range(200))  # would end every text at once
    script = Script(opening=OPENING, turns=(Turn(end=None),), is_chat=False)
    texts = [sampling.drawn(model, script, 4, 16, seed, 1.0) for seed in (0, 0, 1)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert len({tuple(row) for row in texts[0].tolist()}) == 4
    assert model.generation_config.eos_token_id == list(range(200))


def test_a_low_temperature_draws_what_is_likeliest() -> None:
    model, script = build_model("llama"), Script(opening=OPENING, turns=(Turn(end=None),), is_chat=False)
    data = OwnText(script, length=16, count=3)
    program = Program.start(model)
    Pipeline([GeneratePass.of(data, 3, 60.0, temperature=1e-5)])(program, RunContext(seed=4))
    assert data.tokens.tolist() == [plainly(model, script, 16)] * 3


def test_what_is_drawn_has_the_shares_that_transformers_draws_by() -> None:
    scores = torch.tensor([[2.0, -torch.inf, 0.5, 1.0, -3.0, 2.5, 0.0, 1.5], [9.0, 0.0, 0.0, -torch.inf, 0, 0, 0, 0]])
    ids = torch.zeros(2, 1, dtype=torch.int64)
    kept = TopPLogitsWarper(sampling.TOP_P)(ids, TemperatureLogitsWarper(1.3)(ids, scores.clone()))
    torch.manual_seed(0)
    draw, count = sampling.Nucleus(1.3), 6000
    found = torch.stack([draw(ids, scores).isfinite().float() for _ in range(count)])
    assert (found.sum(-1) == 1).all()
    assert torch.equal(found.sum(0) > 0, kept > -torch.inf)
    assert torch.allclose(found.mean(0), kept.softmax(-1), atol=4 * (0.25 / count) ** 0.5)


def own(count: int, heldout: int = 0, length: int = 12) -> OwnText:
    script = Script(opening=OPENING, turns=(Turn(end=None),), is_chat=False)
    return OwnText(script, length=length, count=count, heldout=heldout)


def test_own_text_holds_the_first_out_and_repeats_what_is_there() -> None:
    data = own(count=5, heldout=2)
    data.fill(torch.arange(5)[:, None].expand(5, 12) + 20)
    assert [int(data[index]["input_ids"][0]) for index in range(len(data))] == [22, 23, 24, 22, 23]
    assert data[0]["labels"][:3].tolist() == [-100, -100, 22]
    tokens, labels = data.held()
    assert tokens[:, 0].tolist() == [20, 21]
    assert (labels[:, :2] == -100).all()
    assert (labels[:, 2:] >= 20).all()


def test_text_that_nobody_wrote_yet_and_no_room_for_any_are_errors() -> None:
    with pytest.raises(RuntimeError, match="not drawn yet"):
        own(count=2)[0]
    with pytest.raises(OptionError, match="at least 4 tokens"):
        own(count=2, length=3)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_a_mix_has_each_given_row_once_and_the_share_evenly(share: float) -> None:
    given, mine = torch.arange(30)[:, None].expand(30, 12), own(count=4)
    mine.fill(torch.full((4, 12), 99))
    data = Mixed(BlockDataset(given), mine, share)
    firsts = [int(data[index]["input_ids"][0]) for index in range(len(data))]
    assert [first for first in firsts if first != 99] == list(range(30))
    assert firsts.count(99) == pytest.approx(share * len(data), abs=1)
    quarter = len(data) // 4
    assert firsts[:quarter].count(99) == pytest.approx(share * quarter, abs=1)


class Slow:
    """A clock by which every look takes so long."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


def test_no_batch_is_begun_after_the_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("lpc.generation.own.time", Slow(1.0))
    data = own(count=19, heldout=1)
    found = Pipeline([GeneratePass.of(data, 20, 2.5)])(Program.start(build_model("llama")), RunContext(batch_size=1))
    assert len(data.tokens) == 16  # two batches of eight
    assert found.program.history[-1].report == Written(sequences=16, asked=20, length=12, chat=False)
    assert "16 of 20" in caplog.text
    assert len(data) == 19


def test_a_kill_between_batches_costs_no_batch(tmp_path: Path) -> None:
    program, whole, cut = Program.start(build_model("llama")), own(count=10), own(count=10)
    run = RunContext(batch_size=1, checkpoints=tmp_path)
    Pipeline([GeneratePass.of(whole, 10, 60.0)])(program, replace(run, checkpoints=None))
    told: list[int] = []

    def stop(name: str, done: int, total: int) -> None:
        told.append(done)
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline([GeneratePass.of(cut, 10, 60.0)])(program, replace(run, progress=stop))
    told.clear()
    Pipeline([GeneratePass.of(cut, 10, 60.0)])(program, replace(run, progress=lambda *said: told.append(said[1])))
    assert min(each for each in told if each > 1) >= 8
    assert torch.equal(cut.tokens, whole.tokens)
    third = own(count=10)
    Pipeline([GeneratePass.of(third, 10, 60.0)])(program, run)
    assert torch.equal(third.tokens, whole.tokens)

"""What several processes of one run say to each other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from two_ranks import two_ranks

from passes import ranks
from passes.errors import DataError, OptionError, RankError
from passes.pipeline import device_named

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def _talk(rank: int) -> dict[str, Any]:
    ranks.join(torch.device("cpu"))
    mine = {"a": torch.arange(3.0) + rank, "mask": torch.tensor([rank == 0, True])}
    share, few = ranks.Share.of([10, 11, 12]), ranks.Share.of([7])
    found = {
        "who": (ranks.rank(), ranks.count(), ranks.launched(), ranks.local_rank()),
        "all": ranks.told_by_all({"rank": rank, "long": "x" * (rank + 1)}),
        "first": ranks.told_by_first([rank, "ü", None]),
        "tensors": {name: tensor.tolist() for name, tensor in ranks.from_first(mine).items()},
        "own": mine["a"].tolist(),
        "sum": ranks.sum_over_ranks(torch.tensor([1.0, 2.0])).tolist(),
        "mean": ranks.mean_over_ranks(torch.tensor([1.0 + rank])).tolist(),
        "least": ranks.least_over_ranks(5 - rank),
        "share": (list(share.mine), share.ranks, share.sum(1.0 + rank, 3)),
        "few": (list(few.mine), few.ranks, few.sum(4.0 + rank)),
        "told": list(share.told(iter([each * 2 for each in share.mine]))),
        "alone": ranks.on_first(lambda: (ranks.count(), ranks.told_by_first(8))),
    }
    try:
        with ranks.together():
            if rank == 1:
                raise DataError("no text")
        found["together"] = "went on"
    except (RankError, DataError) as error:
        found["together"] = (type(error).__name__, getattr(error, "kind", ""), str(error))
    return found


def test_ranks_agree(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, _talk)
    assert (first["who"], second["who"]) == ([0, 2, [0, 2], 0], [1, 2, [1, 2], 1])
    assert first["all"] == second["all"] == [{"rank": 0, "long": "x"}, {"rank": 1, "long": "xx"}]
    assert first["first"] == second["first"] == [0, "ü", None]
    assert first["tensors"] == second["tensors"] == {"a": [0, 1, 2], "mask": [True, True]}
    assert second["own"] == [1, 2, 3]
    assert first["sum"] == second["sum"] == [2, 4]
    assert first["mean"] == second["mean"] == [1.5]
    assert first["least"] == second["least"] == 4
    assert (first["share"], second["share"]) == ([[10, 12], 2, [3, 6]], [[11], 2, [3, 6]])
    assert first["few"] == second["few"] == [[7], 1, [4]]
    assert first["told"] == second["told"] == [20, 22, 24]
    assert (first["alone"], second["alone"]) == ([1, 8], None)
    assert first["together"] == ["RankError", "DataError", "process 1 of 2 failed: DataError: no text"]
    assert second["together"] == ["DataError", "", "no text"]


def _dies(rank: int) -> float:
    ranks.join(torch.device("cpu"))
    ranks.told_by_all(None)
    if rank:
        raise DataError("gone")
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        ranks.sum_over_ranks(torch.ones(3))
    return time.monotonic() - start


def test_a_rank_that_dies_is_noticed_at_once(tmp_path: Path) -> None:
    waited, error = two_ranks(tmp_path, _dies, codes=(0, 2))
    assert waited < 30
    assert error == ["DataError", "gone"]


def test_one_process_says_everything_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks.join(torch.device("cpu"))
    assert (ranks.launched(), ranks.count(), ranks.rank(), ranks.local_rank()) == ((0, 1), 1, 0, 0)
    tensor = torch.ones(2)
    assert ranks.sum_over_ranks(tensor) is ranks.mean_over_ranks(tensor) is ranks.from_first({"a": tensor})["a"]
    assert ranks.Share.of([1, 2]) == ranks.Share([1, 2], 1, 2)
    assert ranks.is_first_to_tell()


def test_a_launcher_that_does_not_say_where_the_others_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OptionError, match=r"LOCAL_RANK is not set: start with torchrun"):
        ranks.join(torch.device("cpu"))


def test_of_several_devices_one_is_used_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    ranks.join(torch.device("cuda:1"))
    assert not caplog.messages
    ranks.join(torch.device("cuda"))
    assert caplog.messages == ["one of 3 CUDA devices is used: start with torchrun for all"]


def test_each_process_takes_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in {"WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert {str(device_named(name)) for name in ("auto", "cuda", "cuda:1")} == {"cuda:1"}
    assert str(device_named("cpu")) == "cpu"
    with pytest.raises(OptionError, match=r"'cuda:0' is one for 2 processes: say cuda, cpu or auto"):
        device_named("cuda:0")

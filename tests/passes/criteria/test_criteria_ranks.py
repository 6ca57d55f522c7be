"""Every rank of a distributed run decides the same, by what all of them see."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from criteria_workbench import PLAIN, Batch, batch_of
from handmade import relative, worn
from torch import distributed

from passes.criteria import make_criterion

NAMES = ("taylor", "fisher", "mask-fisher", "wanda", "flap", "obs")


def after_a_pass(name: str, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The scores after one backward pass a batch, of a loss that is their mean."""
    model, graph = worn("llama")
    criterion = make_criterion(name, graph, PLAIN, 0)
    criterion.begin(model)
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    assert criterion.observe(model)
    criterion.end(model)
    return criterion.scores


def halves() -> list[Batch]:
    batch = batch_of("llama", padded=False)
    four = {key: torch.cat([value, value[:1].flip(1)]) for key, value in batch.items()}
    return [{key: value[half] for key, value in four.items()} for half in (slice(2), slice(2, 4))]


def _rank(rank: int, folder: str, results: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = [after_a_pass(name, halves()[rank : rank + 1]) for name in NAMES]
    results.put([{key: score.tolist() for key, score in scores.items()} for scores in found])
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_all_ranks_score_what_all_of_them_see(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(rank, str(tmp_path), results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = [after_a_pass(name, halves()) for name in NAMES]
    for found in (results.get(), results.get()):
        for scores, whole in zip(found, expected, strict=True):
            for key, score in whole.items():
                assert relative(torch.tensor(scores[key]), score) < 1e-5

from __future__ import annotations

import time

import psutil
import pytest
import torch

from passes.pipeline.records import measured

MIB = 1 << 20


def test_peak_memory_sees_what_was_already_freed_when_the_block_ended() -> None:
    before = psutil.Process().memory_info().rss
    with measured() as measurement:
        tensor = torch.ones(128 * MIB // 4)
        time.sleep(0.2)
        del tensor
    assert measurement.peak_memory_bytes > before + 64 * MIB


def test_seconds_are_those_of_the_block() -> None:
    with measured() as measurement:
        time.sleep(0.05)
    assert measurement.seconds >= 0.05


def test_a_failing_block_is_measured_and_its_error_passes_through() -> None:
    with pytest.raises(KeyError), measured() as measurement:
        raise KeyError("x")
    assert measurement.peak_memory_bytes > 0

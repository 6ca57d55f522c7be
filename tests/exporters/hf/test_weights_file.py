"""A safetensors file that is written a tensor at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporters.hf.weights_file import WeightsFile
from passes.errors import PostconditionError

TENSORS = {
    "b.weight": torch.randn(3, 5).to(torch.bfloat16),
    "a.half": torch.randn(7).to(torch.float16),
    "c.bias": torch.randn(2, 1, 3),
    "a.wide": torch.randn(4, dtype=torch.float64),
    "empty": torch.zeros(4, 0),
    "ümlaut": torch.randn(1),
    "b.again": torch.randn(3).to(torch.bfloat16),
}


@pytest.mark.parametrize("names", [list(TENSORS), ["b.weight", "b.again"], ["c.bias"], ["a.half", "b.weight"]])
def test_the_bytes_are_those_of_the_library_in_any_order(names: list[str], tmp_path: Path) -> None:
    tensors = {name: TENSORS[name] for name in names}
    save_file(tensors, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    planned = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with WeightsFile(tmp_path / "streamed.safetensors", planned) as file:
        for name in reversed(names):
            file.write(name, tensors[name])
    file.check()
    assert (tmp_path / "streamed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_tensors_that_are_not_contiguous_are_written_as_they_read(tmp_path: Path) -> None:
    tensor = torch.randn(4, 6).T
    with WeightsFile(tmp_path / "file.safetensors", {"x": tensor}) as file:
        file.write("x", tensor)
    assert torch.equal(load_file(tmp_path / "file.safetensors")["x"], tensor)


def test_a_missing_a_second_and_a_wrong_one_are_refused(tmp_path: Path) -> None:
    planned = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with (
        pytest.raises(PostconditionError, match="b is missing"),
        WeightsFile(tmp_path / "a.safetensors", planned) as file,
    ):
        file.write("a", torch.ones(2))
    for wrong in (torch.ones(4), torch.ones(3, dtype=torch.float16)):
        with (
            pytest.raises(PostconditionError, match="has a place for"),
            WeightsFile(tmp_path / "b.safetensors", planned) as file,
        ):
            file.write("b", wrong)
    with (
        pytest.raises(PostconditionError, match="came twice"),
        WeightsFile(tmp_path / "c.safetensors", planned) as file,
    ):
        file.write("a", torch.ones(2))
        file.write("a", torch.ones(2))


def test_a_byte_that_changed_on_the_disk_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with WeightsFile(path, {"a": torch.zeros(8)}) as file:
        file.write("a", torch.ones(8))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PostconditionError, match=r"a in file\.safetensors is not what was written"):
        file.check()

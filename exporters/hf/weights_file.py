"""A safetensors file written a tensor at a time: sizes are known first, so the header is written before the data.

The bytes are those that the safetensors library itself writes. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import safe_open

from passes.errors import PostconditionError

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
METADATA = {"format": "pt"}
ALIGNED = 8
"""The header's length is a multiple of so many bytes."""


class WeightsFile:
    """The tensors of one file, each written once, in any order, at its place.

    ``tensors`` are what will be written by name; shapes and dtypes are read of them, so they may be on the meta device.
    Leaving the block raises PostconditionError if one is missing.
    """

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path, self._tensors = path, dict(tensors)
        self._places, header = _laid_out(tensors)
        self._start = len(header)
        self._sums: dict[str, int] = {}
        self._file = path.open("wb")
        self._file.write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._file.close()
        missing = sorted(self._tensors.keys() - self._sums.keys())
        if kind is None and missing:
            raise PostconditionError(f"{self.path.name} was not written whole: {missing[0]} is missing")

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor. Raises PostconditionError if it is not of the shape and dtype that were said."""
        said = self._tensors[name]
        if name in self._sums or tensor.shape != said.shape or tensor.dtype != said.dtype:
            raise PostconditionError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, or came twice: {self.path.name} has a place for "
                f"{said.dtype} {list(said.shape)}"
            )
        data = _bytes(tensor)
        self._file.seek(self._start + self._places[name])
        self._file.write(data)
        self._sums[name] = zlib.crc32(data)

    def check(self) -> None:
        """Read the file back, a tensor at a time, with the safetensors library. Raises PostconditionError."""
        for name, said in self._tensors.items():
            with safe_open(self.path, framework="pt") as file:  # one at a time, or all pages read stay mapped
                found = file.get_tensor(name)
                whole = found.shape == said.shape and found.dtype == said.dtype
                if not whole or zlib.crc32(_bytes(found)) != self._sums[name]:
                    raise PostconditionError(f"{name} in {self.path.name} is not what was written")
                del found  # its pages, before those of the next one are read


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _laid_out(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, int], bytes]:
    """Where each tensor begins behind the header, and the header: wide dtypes first, then by name."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    places, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, _rank(tensors[name].dtype), name)):
        tensor = tensors[name]
        places[name], begin = end, end
        end += tensor.numel() * tensor.dtype.itemsize
        shape = list(tensor.shape)
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    return places, len(text).to_bytes(8, "little") + text


def _rank(dtype: torch.dtype) -> int:
    """The library's own order of dtypes of one size."""
    return 0 if dtype is torch.bfloat16 else 1

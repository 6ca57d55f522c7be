from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from passes.errors import LpcError, MissingFileError, ModelError
from passes.stored import INDEX, WEIGHTS, StoredTensor, headers, read_json, stored_tensors
from passes.stored.checkpoint import MAX_JSON_BYTES

GOOD = save({"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.bfloat16)})
HUGE = b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4000000000000000000]}}'


def test_headers_say_shapes_and_dtypes(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(GOOD)
    assert stored_tensors(tmp_path) == {"a": StoredTensor((2, 3), "F32"), "b": StoredTensor((1,), "BF16")}


def test_an_index_is_followed_to_its_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "two.safetensors")
    entries = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": entries}))
    assert set(stored_tensors(tmp_path)) == {"a", "b"}


@pytest.mark.parametrize("name", ["/dev/zero", "../other.safetensors", "a/../../b", "/etc/passwd", "x\0y"])
def test_an_index_names_no_file_outside_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="outside of the folder"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("entries", [None, {}, [], {"a": 1}, "x"])
def test_an_index_without_files_is_refused(entries: object, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": entries}))
    with pytest.raises(ModelError, match="weight_map"):
        stored_tensors(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(MissingFileError, match=r"gone\.safetensors"):
        stored_tensors(tmp_path)


def test_devices_and_pipes_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zero", "pipe"):
        with pytest.raises(MissingFileError):
            headers(tmp_path / name)
        with pytest.raises(MissingFileError):
            read_json(tmp_path / name)


def test_a_header_that_declares_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(len(HUGE).to_bytes(8, "little") + HUGE)
    with pytest.raises(ModelError, match="cut off"):
        stored_tensors(tmp_path)


def test_pickles_are_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin would have to be unpickled"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a":' * 100_000, "\ud800"])
def test_what_is_no_json_object_is_a_model_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_json_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ModelError, match="MiB"):
        read_json(tmp_path / "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


def corrupted(at: int, value: int, keep: int) -> bytes:
    found = bytearray(GOOD)
    found[at % len(found)] = value
    return bytes(found[: keep % (len(found) + 1)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200), st.builds(corrupted, st.integers(0), st.integers(0, 255), st.integers(0))
    )
)
@example(content=b"")
@example(content=b"\xff" * 8)
@example(content=(8).to_bytes(8, "little"))
@example(content=(2).to_bytes(8, "little") + b"{}")
@example(content=(2).to_bytes(8, "little") + b"[]")
@example(content=len(HUGE).to_bytes(8, "little") + HUGE)
@example(content=GOOD[:-1])
@example(content=GOOD + b"\0")
def test_any_bytes_are_tensors_or_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    with contextlib.suppress(LpcError):
        assert all(isinstance(tensor, StoredTensor) for tensor in stored_tensors(tmp_path).values())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON)
@example(content={"weight_map": {"a": "\ud800"}})
@example(content={"weight_map": {"": ""}})
@example(content={"weight_map": {"a": "."}})
@example(content={"weight_map": {"a": "x" * 5000}})
def test_any_index_is_one_error_without_its_files(content: object, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(LpcError):
        stored_tensors(tmp_path)


def test_another_name_of_the_weights_is_a_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="transformers_weights"):
        stored_tensors(tmp_path, ["a.safetensors"])

"""Provenance: who made an ONNX package, of which source and plan; in its graphs' metadata, and beside with hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from exporters.files import GRAPHS, PROVENANCE, check_seal, hashes, sealed
from exporters.onnx.options import OnnxPackage
from passes.errors import PostconditionError
from passes.graph import Plan
from passes.models import fingerprint
from passes.stored import read_json

PRODUCER = "lpc"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a package says of itself.

    ``model`` is the fingerprint of the model that was exported, ``source`` that of the dense one, ``plan`` the digest
    of the plan between them (empty where there was none, and then both are the same). ``precision`` and ``kind`` are
    as in ``OnnxPackage``.
    """

    lpc: str
    model: str
    source: str
    plan: str
    kind: str
    precision: str

    @classmethod
    def of(cls, model: PreTrainedModel, plan: Plan | None) -> Provenance:
        """That of a model as it stands; its package's kind and precision come with ``write_provenance``."""
        return cls.named(fingerprint(model), plan)

    @classmethod
    def named(cls, own: str, plan: Plan | None) -> Provenance:
        """That of a model of this fingerprint."""
        digest = plan_digest(plan) if plan is not None else ""
        return cls(lpc=_version(), model=own, source=plan.source if plan else own, plan=digest, kind="", precision="")

    @property
    def metadata(self) -> dict[str, str]:
        """The entries of a graph's metadata."""
        return {f"{PRODUCER}.{name}": value for name, value in vars(self).items()}


def plan_digest(plan: Plan) -> str:
    """sha256 of the decision; files that lie beside a plan are no part of it."""
    return hashlib.sha256(replace(plan, artifacts={}).to_json().encode()).hexdigest()


def write_provenance(package: OnnxPackage, found: Provenance) -> OnnxPackage:
    """Say in each graph of a package who made it, and beside them, with the hash of every file; the package with that.

    A protobuf message goes on in what is appended to it, so not a byte of a verified graph is written anew.
    """
    found = replace(found, kind=package.kind, precision=package.precision)
    for path in graphs_in(package.folder):
        with path.open("ab") as file:
            file.write(_message(found))
    files = hashes(package.folder, {*package.files} - {PROVENANCE})
    (package.folder / PROVENANCE).write_text(sealed({**vars(found), "files": files}), encoding="utf-8")
    return replace(package, files=tuple(sorted({*package.files, PROVENANCE})))


def graphs_in(folder: Path) -> Iterator[Path]:
    """The graphs of a package."""
    return (folder / name for name in GRAPHS if (folder / name).is_file())


def read_provenance(folder: Path) -> tuple[Provenance, Mapping[str, Any]] | None:
    """What a package says of itself, and of its files by name; None where it says nothing.

    Raises PostconditionError where that was changed, ModelError for a file that is no JSON.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        found = Provenance(**{name: str(values[name]) for name in Provenance.__dataclass_fields__})
        files = dict(values["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise PostconditionError(f"{path} is not as lpc writes it: {error!r}") from error
    if not check_seal(path, values):
        raise PostconditionError(f"{path} has no seal")
    return found, files


def check_metadata(graph: Any, name: str, found: Provenance) -> None:
    """Raise PostconditionError where the metadata of a graph, an ``onnx.ModelProto``, are not those of its package."""
    said = {each.key: each.value for each in graph.metadata_props if each.key.startswith(f"{PRODUCER}.")}
    for key, value in found.metadata.items():
        if said.get(key) != value:
            raise PostconditionError(f"{name} says {key} = {said.get(key)!r}, {PROVENANCE} {value!r}")


def _message(found: Provenance) -> bytes:
    import onnx

    more = onnx.ModelProto(producer_name=PRODUCER, producer_version=found.lpc)
    for name, value in found.metadata.items():
        more.metadata_props.add(key=name, value=value)
    message: bytes = more.SerializeToString(deterministic=True)
    return message


def _version() -> str:
    try:
        return version(PRODUCER)
    except PackageNotFoundError:
        return "unknown"

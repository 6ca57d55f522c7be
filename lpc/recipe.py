"""The recipe of a run: all that its result follows from, and in which words two recipes differ."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from exporters.hf import Processor
from lpc.material import Material
from lpc.options import DataOptions
from lpc.versions import versions
from passes.models import Adapter, base_model, fingerprint, quiet, tensors_digest
from passes.pipeline import Pipeline, Program, RunContext, plain
from passes.ranks import count

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where an object without a better name lies in memory; that differs in every process."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is made of, as plain values: two runs of one recipe end with the same bits.

    ``model`` and ``data`` are sha256, as are those of the adapter that the model came with and of the other files of a
    checkpoint, ``configuration`` (that of ``generate`` in it) and ``tokenizer`` (or image processor); ``data_options``,
    ``passes`` (each with its options) and ``run`` (seed, device, dtype, batch size, samples) are all options, and how
    many ``processes`` run together; ``versions`` are those of the packages.
    """

    model: str
    adapter: str
    data: str
    data_options: Mapping[str, Any]
    passes: list[Mapping[str, Any]]
    run: Mapping[str, Any]
    versions: Mapping[str, str]
    configuration: str = ""
    tokenizer: str = ""

    @classmethod
    def of(
        cls,
        program: Program,
        processor: Processor | None,
        material: Material,
        data_options: DataOptions,
        passes: Pipeline,
        run: RunContext,
    ) -> Recipe:
        """The recipe of a run that is about to begin."""
        worn = Adapter.of(program.model).state if isinstance(program.model, PeftModel) else dict[str, torch.Tensor]()
        entries = [plain(entry) for entry in passes.entries]
        return cls.read(
            {
                "model": fingerprint(program.model),
                "adapter": tensors_digest([worn]) if worn else "",
                "data": material.digest(),
                "data_options": plain(data_options),
                "passes": entries,
                "run": {**plain(run), "processes": count()},
                "versions": versions(),
                "configuration": _configuration_digest(base_model(program.model)),
                "tokenizer": _processor_digest(processor) if processor is not None else "",
            }
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Recipe:
        """From plain values, such as JSON has. Raises TypeError or ValueError if they are no recipe."""
        return cls(**json.loads(ADDRESS.sub("", json.dumps(values))))

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """What this recipe and another one say differently, by name, each name once; ``passes`` if others are run.

        Options are compared pass by pass, where both have the pass.
        """
        mine, theirs = ({**dict(each._flat()), **each._by_pass()} for each in (self, other))
        found: dict[str, tuple[Any, Any]] = {}
        for path in mine:
            name = path.rpartition(".")[2]
            if path in theirs and mine[path] != theirs[path] and name not in found:
                found[name] = mine[path], theirs[path]
        names = [[entry["name"] for entry in each.passes] for each in (self, other)]
        missing = self.versions.keys() ^ other.versions.keys()
        found |= {name: (self.versions.get(name), other.versions.get(name)) for name in sorted(missing)}
        return found if names[0] == names[1] else {**found, "passes": (", ".join(names[0]), ", ".join(names[1]))}

    def _flat(self) -> Iterator[tuple[str, Any]]:
        for each in fields(self):
            if each.name != "passes":
                yield from _flattened(each.name, getattr(self, each.name))

    def _by_pass(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in self.passes:
            options = entry["options"]
            found |= dict(_flattened(f"{entry['name']} {options.get('stage', '')}", options))
        return found


def _configuration_digest(model: PreTrainedModel) -> str:
    """sha256 of all that a model's two configurations say; of what it computes with them, ``fingerprint`` says more."""
    said = [each.to_dict() for each in (model.config, getattr(model, "generation_config", None)) if each is not None]
    for each in said:
        each.pop("_name_or_path", None)
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _processor_digest(processor: Processor) -> str:
    """sha256 of the files that it is saved in, without how it was called last, which a tokenizer writes down."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder, quiet():
        processor.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.name == "tokenizer.json":
                content = json.dumps({**json.loads(content), "truncation": None, "padding": None}).encode()
            digest.update(f"{file.relative_to(folder)} {len(content)}".encode() + content)
    return digest.hexdigest()


def _flattened(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, each in value.items():
        yield from _flattened(f"{path}.{name}", each)

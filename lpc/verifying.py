"""verify(): an output, a package or a checkpoint held against what was said of it when it was written, and itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from exporters.files import COMPANIONS, PACKAGE, PROVENANCE, check_files, check_seal
from exporters.onnx import (
    PRECISIONS,
    Provenance,
    check_configuration,
    check_graphs,
    check_parity,
    graphs_in,
    plan_digest,
    read_provenance,
)
from lpc.owned import FAMILY, MANIFEST, manifests
from lpc.source import Source, load_config, load_source
from passes.errors import LpcError, MissingFileError, PostconditionError
from passes.graph import PLAN_FILE, Plan
from passes.models import base_model, check_finite, fingerprint
from passes.stored import read_json

CHECKPOINT = "hf"
PRECISION_OF = {"torch.float32": "fp32", "torch.float16": "fp16"}
"""Of packages that do not say it: an older lpc wrote them."""

MEASURED = " (what such bits were measured to cost at most; each block was compared with its weights at the export)"

READ_BY_LOADERS = ("*.safetensors", "*.safetensors.index.json", "*.py", "*.onnx", "*.onnx.data", *sorted(COMPANIONS))
"""Files that whoever loads a folder would read, whether or not they were written with it."""

Outcome: TypeAlias = Literal["holds", "fails", "not checked"]


class UncheckedError(Exception):
    """There is nothing to hold something against; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """One verdict: what was looked at in which part (relative to the folder), how it came out, and what was seen."""

    check: str
    part: str
    outcome: Outcome
    says: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The verdicts on a folder in the order in which they were found; the first that fails is the last."""

    folder: Path
    checks: tuple[Verified, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed. What was not checked did not."""
        return all(each.outcome != "fails" for each in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), "passed": self.passed, "checks": [asdict(each) for each in self.checks]}


Look: TypeAlias = "tuple[str, Path, Callable[[], Iterable[str]]]"
"""What is looked at, in which folder, and the look: what it saw, a line each; it raises what was found to be wrong."""


def verify(folder: str | Path, *, parity: bool = True) -> Verification:
    """Look whether an output of lpc, an ONNX package or a checkpoint is what was written, and works.

    Hashes of every file, onnx's checker, configurations against tensors, and, where the checkpoint is beside and unless
    ``parity`` is False, the graphs against torch as at the export. It finds damage, not a forger, who could write new
    hashes. Nothing is written, no code of the folder is run. Raises MissingFileError if there is nothing of these.
    """
    return Verification(folder=Path(folder), checks=tuple(checking(folder, parity=parity)))


def checking(folder: str | Path, *, parity: bool = True) -> Iterator[Verified]:
    """The verdicts of ``verify``, each as soon as it is known; none after the first that fails."""
    top = Path(folder)
    for check, place, look in _looks(top, parity):
        part = str(place.relative_to(top)) if place.is_relative_to(top) else str(place)
        try:
            for says in look():
                yield Verified(check=check, part=part, outcome="holds", says=says)
        except UncheckedError as why:
            yield Verified(check=check, part=part, outcome="not checked", says=str(why))
        except Exception as error:  # noqa: BLE001 -- whatever a library makes of a broken file is a verdict on it
            says = str(error) if isinstance(error, LpcError) else f"{type(error).__name__}: {error}"
            yield Verified(check=check, part=part, outcome="fails", says=says)
            return


def _looks(folder: Path, parity: bool) -> Iterator[Look]:
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}")
    members = [each.parent for each in manifests(folder)] if (folder / FAMILY).is_file() else []
    outputs = [Parts.of(each) for each in (*members, folder)]
    if not any(each.is_something for each in outputs):
        raise MissingFileError(f"{folder} is no output of lpc, holds no ONNX package and no checkpoint")
    for each in outputs:
        yield from each.looks(parity)
    if members:
        yield "files", folder, partial(_unchecked, f"{FAMILY} and what is drawn of it have no hashes, its models have")


@dataclass(frozen=True)
class Parts:
    """What lies in a folder: the output of which it is (a part of), ONNX packages, and the checkpoint beside them."""

    folder: Path
    output: Path | None
    packages: tuple[Path, ...]
    checkpoint: Path | None

    @classmethod
    def of(cls, folder: Path) -> Parts:
        """Those of an output, of one of its parts, or of a folder of its own."""
        places = [folder] if _has_graphs(folder) else [*folder.iterdir(), *folder.glob("onnx/*")]
        inside = sorted(each for each in places if _has_graphs(each))
        output = next((each for each in (folder, folder.resolve().parent) if (each / MANIFEST).is_file()), None)
        above = folder.resolve().parents[:2]  # of one precision among several: OUT/onnx/int4
        homes = (folder, folder / CHECKPOINT, *(each / CHECKPOINT for each in above))
        return cls(folder, output, tuple(inside), next((each for each in homes if _has_weights(each)), None))

    @property
    def is_something(self) -> bool:
        """Whether there is anything to look at."""
        return bool((self.folder / MANIFEST).is_file() or self.packages or self.checkpoint == self.folder)

    def looks(self, parity: bool) -> Iterator[Look]:
        """All of them, in order."""
        if self.output is not None:
            yield "manifest", self.output, self.manifest
            yield "files", self.folder, self.files
        for package in self.packages:
            yield "files", package, partial(_package_files, package)
            yield "plan", package, partial(self.plan, package)
            yield "graphs", package, partial(_graphs, package)
            yield "configuration", package, partial(_configuration, package)
        if self.checkpoint is not None:
            yield "checkpoint", self.checkpoint, self.weights
        for package in self.packages if parity else ():
            yield "parity", package, partial(self.parity, package)

    @cached_property
    def said(self) -> dict[str, Any]:
        """The manifest. Raises MissingFileError or ModelError."""
        assert self.output is not None
        return read_json(self.output / MANIFEST)

    def manifest(self) -> Iterator[str]:
        """The manifest's own bytes, and what it says is missing."""
        assert self.output is not None
        if not check_seal(self.output / MANIFEST, self.said):
            raise UncheckedError("an older lpc wrote it, without a seal: its own bytes cannot be checked")
        missing = self.said.get("missing") or {}
        yield f"{MANIFEST} is as written" + (f"; missing since then: {', '.join(missing)}" if missing else "")

    def files(self) -> Iterator[str]:
        """Every file of the output, or of this part of it, against the manifest."""
        assert self.output is not None
        said = self.said.get("files")
        if not isinstance(said, dict) or not said:
            raise UncheckedError(f"{MANIFEST} has no hashes: an older lpc wrote it; make the output anew to have them")
        start = "" if self.output == self.folder else f"{self.folder.name}/"
        mine = {name.removeprefix(start): facts for name, facts in said.items() if name.startswith(start)}
        if not mine:
            raise UncheckedError(f"{MANIFEST} does not know this folder")
        yield _checked_files(self.folder, mine)

    def plan(self, package: Path) -> Iterator[str]:
        """The plan that a package names, against the one beside it."""
        found = _provenance(package)
        if found is None:
            raise UncheckedError(f"there is no {PROVENANCE}: an older lpc wrote the package")
        made = f"by lpc {found.lpc} of {found.source[:12]}"
        if not found.plan:
            yield f"{made}, without a plan"
        elif self.output is None or not (self.output / PLAN_FILE).is_file():
            raise UncheckedError(f"{made} by the plan {found.plan[:12]}, which is not beside it")
        else:
            plan = Plan.load(self.output)
            if (plan_digest(plan), plan.source) != (found.plan, found.source):
                raise PostconditionError(
                    f"{PLAN_FILE} is {plan_digest(plan)[:12]}, the graphs were made by {found.plan}"
                )
            yield f"{made} by the plan beside it, {found.plan[:12]}"

    @cached_property
    def source(self) -> Source:
        """The checkpoint, loaded. Raises what loading refuses."""
        assert self.checkpoint is not None
        return load_source(self.checkpoint)

    def weights(self) -> Iterator[str]:
        """The checkpoint loads: every tensor is there, in the shape that the configuration says, and finite."""
        check_finite(self.source.model)
        model = base_model(self.source.model)
        yield f"{type(model).__name__}, {model.num_parameters():,} parameters as its config.json says"

    def parity(self, package: Path) -> Iterator[str]:
        """The graphs against torch."""
        if self.checkpoint is None:
            raise UncheckedError("there is no checkpoint beside it to compare with")
        model, found = base_model(self.source.model), _provenance(package)
        if found is not None and found.model != fingerprint(model):
            if self.output is not None and not found.plan:
                raise UncheckedError(f"it was made of another model ({found.model[:12]}) than {self.checkpoint.name}/")
            raise PostconditionError(
                f"it was made of {found.model[:12]}, and {self.checkpoint} is {fingerprint(model)[:12]}"
            )
        precision = found.precision if found is not None else PRECISION_OF[str(load_config(package).dtype)]
        stored = PRECISIONS.named(precision)
        for each in check_parity(model, package, precision):
            yield f"{each}{MEASURED if stored.blocks and each.tolerance == stored.tolerance else ''}"


def _unchecked(why: str) -> Iterator[str]:
    raise UncheckedError(why)


def _package_files(package: Path) -> Iterator[str]:
    found = read_provenance(package)
    if found is None:
        raise UncheckedError(f"there is no {PROVENANCE}: an older lpc wrote the package; `lpc export` makes it anew")
    yield _checked_files(package, found[1], owned=PACKAGE.names)


def _graphs(package: Path) -> Iterator[str]:
    yield check_graphs(package, _provenance(package))


def _configuration(package: Path) -> Iterator[str]:
    yield check_configuration(package)


def _checked_files(folder: Path, said: Mapping[str, Any], owned: Iterable[str] = READ_BY_LOADERS) -> str:
    """Every file, and that none was added that a loader would read beside them."""
    size = check_files(folder, said)
    homes = {home for name in said if not ((home := (folder / name).parent) / MANIFEST).is_file()}
    added = {path for home in homes for pattern in owned for path in home.glob(pattern)}
    odd = sorted(str(each.relative_to(folder)) for each in added)
    odd = [each for each in odd if each not in said and Path(each).name not in (PROVENANCE, MANIFEST)]
    if odd:
        raise PostconditionError(f"{odd[0]} was added after lpc wrote the folder")
    return f"{len(said)} files, {size:,} bytes: each has the sha256 that was written down"


def _provenance(package: Path) -> Provenance | None:
    found = read_provenance(package)
    return found[0] if found is not None else None


def _has_graphs(folder: Path) -> bool:
    return folder.is_dir() and any(True for _ in graphs_in(folder))


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))

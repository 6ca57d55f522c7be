"""Whether the tensors of a checkpoint are those of its model: all of them, no others, in these shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from passes.errors import ModelError

SHOWN = 3
WRAPPERS = {
    "module.": ("DataParallel or DDP", "save model.module"),
    "_orig_mod.": ("a torch.compile'd model", "save model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "gather the full state dict and save the model inside"),
    "base_model.model.": ("a peft model", "save model.merge_and_unload(), or hand over the adapter's folder"),
    "pretrained_model.": ("trl's value-head wrapper", "save model.pretrained_model"),
    "language_model.": ("the class with images", "save its language model by itself"),
    "text_model.": ("the class with images", "save its language model by itself"),
}
"""Parts of names that wrappers put there, which wrapper that is, and what to save instead."""

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|block|blocks)\.(\d+)\.")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Misfit:
    """How what is stored differs from what is wanted.

    ``missing``: wanted and not stored. ``unexpected``: stored and not wanted. ``mismatched``: the stored and the wanted
    shape, by name.
    """

    missing: Collection[str]
    unexpected: Collection[str]
    mismatched: Mapping[str, tuple[Shape, Shape]]

    def check(self, where: str, kind: str, wanted: Collection[str], remedy: str | None = None) -> None:
        """Raise ModelError if there is any, naming the first few and the likely reason.

        ``kind`` is what the tensors should be, such as a class. ``remedy`` stands in for the advice for checkpoints.
        """
        parts = []
        if self.missing:
            parts.append(f"{_counted(self.missing, 'is', 'are')} missing ({_first(self.missing)})")
        if self.mismatched:
            name, (stored, shape) = min(self.mismatched.items())
            more = f", and {len(self.mismatched) - 1} more" if len(self.mismatched) > 1 else ""
            parts.append(f"{name} has shape {list(stored)} where {list(shape)} is wanted{more}")
        if self.unexpected:
            parts.append(f"{_counted(self.unexpected, 'has', 'have')} no place ({_first(self.unexpected)})")
        if parts:
            raise ModelError(f"{where} does not hold {kind}: {'; '.join(parts)}. {self._why(wanted, remedy)}")

    def _why(self, wanted: Collection[str], remedy: str | None) -> str:
        wrapper = self._wrapper(wanted)
        if wrapper is not None:
            origin, instead = WRAPPERS[wrapper]
            advice = f": {instead}" if remedy is None else f". {remedy}"
            return f"The names have {wrapper!r} in them, as from {origin}{advice}"
        return remedy or self._likely(wanted)

    def _likely(self, wanted: Collection[str]) -> str:
        if not self.missing and not self.unexpected:
            return "Its config.json says other sizes than it was saved with: correct the entries, or save it again"
        stored, needed = _layers(self.unexpected), _layers(self.missing)
        known = _layers(wanted)
        if stored > known and not _outside(self.unexpected) and not self.missing:
            return f"It has layers up to {stored - 1} and config.json says fewer: correct the number of layers"
        if needed == known and _whole_layers(self.missing, wanted) and not self.unexpected:
            return f"config.json says {needed} layers, and not all of them are there: correct it, or save it again"
        if len(self.missing) >= len(wanted) // 2 and self.unexpected:
            return "They are those of another model: correct model_type and architectures in its config.json"
        if not self.unexpected and _all_biases(self.missing):
            return "config.json asks for biases that the checkpoint does not have: correct attention_bias or the like"
        if not self.missing:
            return "The class of config.json has no such part: correct architectures there, or save it without"
        return "Save it again, whole, with the class that config.json names; weights are never made up"

    def _wrapper(self, wanted: Collection[str]) -> str | None:
        """The wrapper's part without which what has no place is what is missing."""
        known = set(wanted)
        for part in WRAPPERS:
            stripped = [name.replace(part, "", 1) for name in self.unexpected if part in name]
            if stripped and any(_ends_alike(name, known) for name in stripped):
                return part
        return None


def _ends_alike(name: str, known: Collection[str]) -> bool:
    """Whether a name is among the known ones, up to a first part such as ``model.``."""
    return any(candidate in known for candidate in (name, f"model.{name}", name.partition(".")[2]))


def _counted(names: Collection[str], one: str, many: str) -> str:
    return f"1 tensor {one}" if len(names) == 1 else f"{len(names)} tensors {many}"


def _first(names: Collection[str]) -> str:
    shown: Sequence[str] = sorted(names)[:SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _layers(names: Collection[str]) -> int:
    """One more than the highest layer that is named; 0 if none is."""
    return max((int(found[1]) + 1 for name in names if (found := LAYER.search(name))), default=0)


def _whole_layers(missing: Collection[str], wanted: Collection[str]) -> bool:
    """Whether what is missing is all of some layers, and nothing else."""
    gone = {found[1] for name in missing if (found := LAYER.search(name))}
    return set(missing) == {name for name in wanted if (found := LAYER.search(name)) and found[1] in gone}


def _all_biases(names: Collection[str]) -> bool:
    """Whether all names are those of biases, several of them."""
    return len(names) > 1 and {name.rpartition(".")[2] for name in names} == {"bias"}


def _outside(names: Collection[str]) -> bool:
    return any(LAYER.search(name) is None for name in names)

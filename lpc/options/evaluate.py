"""What to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from passes.errors import MissingFileError, OptionError
from passes.options import Group, RunOptions, as_in, check, names_in, option

BACKENDS = ("hf", "onnx", "genai")

AUTO_BATCH = 8
"""The batch where its size is left open and memory cannot be tried out: everywhere but on CUDA."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Tasks of lm-eval under one word; ``limit``: only so many documents of each, unless the user says otherwise."""

    tasks: tuple[str, ...]
    limit: int | None = None


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(tasks=("arc_easy", "piqa", "winogrande", "openbookqa"), limit=200),
    "paper": Preset(
        tasks=(
            "wikitext",
            "boolq",
            "piqa",
            "hellaswag",
            "winogrande",
            "arc_easy",
            "arc_challenge",
            "openbookqa",
        )
    ),
}
"""``paper``: what LoRAPrune (arXiv 2305.18403) and most work on pruning report. ``quick``: minutes on a CPU."""


@dataclass(frozen=True, kw_only=True)
class AskedTask:
    """A task by name (or a .jsonl file), how many of its documents count, and whether a preset brought it."""

    name: str
    limit: int | None
    preset: str | None = None


def _size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise OptionError(f"a batch size is a whole number, or auto, not {text!r}")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to evaluate (docs/evaluate.md): a text, tasks, or both. Only the torch backend runs in batches."""

    text: Path | None = option(None, help="Text file whose perplexity to measure.", group=Group.DATA, common=True)
    tasks: tuple[str, ...] = option(
        (),
        help="quick, paper, lm-eval tasks by name, or .jsonl files; on the command line separated by commas.",
        group=Group.DATA,
        common=True,
        metavar="TASK,...",
        words=str,
        read=names_in,
    )
    task_data: Path | None = option(
        None,
        help="Folder with the data of lm-eval's tasks as .jsonl files; without it they are downloaded.",
        group=Group.DATA,
        common=True,
        metavar="DIR",
    )
    include_path: Path | None = option(
        None, help="Folder with task definitions of your own.", group=Group.DATA, metavar="DIR"
    )
    limit: int | None = option(
        None, least=1, help="Only the first documents of each task.", group=Group.DATA, common=True
    )
    fewshot: int | None = option(
        None,
        least=0,
        most=100,
        help="Solved examples in front of each question; by default as the task says, mostly none.",
        group=Group.DATA,
        common=True,
    )
    backend: str = option(
        "all", choices=(*BACKENDS, "all"), help="Where to run: hf, onnx, genai or all.", group=Group.ADVANCED
    )
    context_length: int | None = option(
        None,
        least=2,
        help="Longest input in tokens; by default what all models allow, at most 2048.",
        group=Group.ADVANCED,
    )
    batch_size: int | None = option(
        None,
        least=1,
        help="Requests a batch of the torch backend; by default (auto) 8.",
        group=Group.ADVANCED,
        metavar="N|auto",
        words=str,
        read=_size,
    )
    device: str = as_in(RunOptions, "device", group=Group.ADVANCED)

    def __post_init__(self) -> None:
        check(self)
        RunOptions(device=self.device)
        if self.text is None and not self.tasks:
            raise OptionError("nothing to evaluate: give a text (--text FILE), tasks (--tasks quick), or both")
        for name, folder in (("task definitions", self.include_path), ("task data", self.task_data)):
            if folder is not None and not folder.is_dir():
                raise MissingFileError(f"no such folder of {name}: {folder}")

    @property
    def asked(self) -> tuple[AskedTask, ...]:
        """The tasks, each once, with those of presets in their place."""
        found: dict[str, AskedTask] = {}
        for name in self.tasks:
            preset = PRESETS.get(name)
            for task in preset.tasks if preset else (name,):
                limit = self.limit if self.limit is not None or preset is None else preset.limit
                added = AskedTask(name=task, limit=limit, preset=name if preset else None)
                if task in found and preset is None and found[task].preset is None:
                    raise OptionError(f"two tasks are named {Path(task).stem}: leave one out")
                found[task] = found.get(task, added)
        return tuple(found.values())

"""What to evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from passes.errors import MissingFileError, OptionError
from passes.options import Group, RunOptions, as_in, check, option

BACKENDS = ("hf", "onnx", "genai")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to evaluate (docs/evaluate.md): a text, tasks, or both. Only the torch backend runs in batches."""

    text: Path | None = option(None, help="Text file whose perplexity to measure.", group=Group.DATA, common=True)
    tasks: tuple[str, ...] = option(
        (),
        help="lm-eval tasks by name, or .jsonl files; on the command line separated by commas.",
        group=Group.DATA,
        common=True,
        metavar="TASK,...",
        words=str,
        read=_names,
    )
    include_path: Path | None = option(
        None, help="Folder with task definitions of your own.", group=Group.DATA, metavar="DIR"
    )
    limit: int | None = option(None, least=1, help="Only the first documents of each task.", group=Group.DATA)
    backend: str = option(
        "all", choices=(*BACKENDS, "all"), help="Where to run: hf, onnx, genai or all.", group=Group.ADVANCED
    )
    context_length: int | None = option(
        None, least=2, help="Longest input in tokens; by default what all models allow, at most 2048."
    )
    batch_size: int = as_in(RunOptions, "batch_size")

    def __post_init__(self) -> None:
        check(self)
        if self.text is None and not self.tasks:
            raise OptionError("nothing to evaluate: give a text (--text FILE), tasks (--tasks a,b), or both")
        if self.include_path is not None and not self.include_path.is_dir():
            raise MissingFileError(f"no such folder of task definitions: {self.include_path}")

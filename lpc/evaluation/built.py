"""The tasks that are asked for, as lm-eval has them, each with what its result depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpc.data import read_documents
from lpc.evaluation.gathered import TEXT_TASK
from lpc.evaluation.kept import Kept
from lpc.evaluation.task_data import write_tasks
from lpc.evaluation.tasks import read_rows
from lpc.options import AskedTask, EvaluateOptions
from passes.errors import OptionError

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

__all__ = ["Built", "build"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where a function lies in memory, of which lm-eval found no source; that differs in every process."""

UNSTABLE = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")
"""Of a task's configuration: where its rows come from. The rows themselves are looked at."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was asked for, and the tasks (of a tag several) that lm-eval runs for it; ``digest`` is their sha256."""

    asked: AskedTask
    tasks: Sequence[Task | Group]
    digest: str

    @property
    def is_text(self) -> bool:
        """Whether it is the text."""
        return self.asked.name == TEXT_TASK


def build(options: EvaluateOptions, kept: Kept, stack: ExitStack) -> tuple[tuple[Built, ...], dict[str, str]]:
    """All that the options name, in order, and why tasks of a preset are left out.

    What tasks need while they are used is closed with ``stack``. Raises OptionError, MissingFileError, DataError.
    """
    from lpc.evaluation import harness

    asked, missing, include = options.asked, dict[str, str](), options.include_path
    if options.task_data is not None:
        own = tuple(each for each in asked if _is_local(each, options.task_data, include))
        missing = write_tasks(own, options.task_data, kept.tasks)
    found = [_text(options)] if options.text is not None else []
    for each in asked:
        if each.name in missing:
            continue
        if each.name.endswith(".jsonl"):
            tasks: Sequence[Any] = [harness.local_task(read_rows(Path(each.name)))]
        else:
            local = options.task_data is not None and (kept.tasks / f"{each.name}.yaml").is_file()
            tasks = harness.named_tasks([each.name], kept.tasks if local else include, stack)
        found.append(Built(asked=each, tasks=tasks, digest=_digest(tasks, each.limit)))
    _check(found, options, missing)
    return tuple(found), missing


def _is_local(task: AskedTask, data: Path, include: Path | None) -> bool:
    """Whether a task is to be one of the local sets: neither a file nor defined by the user."""
    return not task.name.endswith(".jsonl") and (include is None or not any(include.rglob(f"{task.name}.y*ml")))


def _text(options: EvaluateOptions) -> Built:
    from lpc.evaluation import harness

    assert options.text is not None
    tasks = [harness.text_task(read_documents(options.text))]
    return Built(
        asked=AskedTask(name=TEXT_TASK, limit=options.limit), tasks=tasks, digest=_digest(tasks, options.limit)
    )


def _digest(tasks: Sequence[Task | Group], limit: int | None) -> str:
    from lpc.evaluation import harness

    found = hashlib.sha256()
    for task in harness.leaves(tasks):
        config = {name: value for name, value in task.dump_config().items() if name not in UNSTABLE}
        told = json.dumps([str(task.VERSION), config], default=repr, sort_keys=True)
        found.update(ADDRESS.sub("", told).encode())
        docs = task.eval_docs
        for number in range(len(docs) if limit is None else min(limit, len(docs))):
            found.update(json.dumps(docs[number], default=str, sort_keys=True).encode())
    return found.hexdigest()


def _check(found: Sequence[Built], options: EvaluateOptions, missing: dict[str, str]) -> None:
    from lpc.evaluation import harness

    if not found:
        raise OptionError(f"nothing is left to evaluate: {'; '.join(missing.values())}")
    seen: set[str] = set()
    for built in found:
        if not built.is_text:
            harness.check_fewshot(built.tasks, options.fewshot)
        for task in harness.leaves(built.tasks):
            if task.task_name in seen:
                raise OptionError(f"two tasks are named {task.task_name}: rename a file or leave one out")
            seen.add(task.task_name)

"""Evaluate a compressed model with lm-eval: dense, pruned torch and pruned ONNX side by side."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from exporters.files import sha256
from lpc.evaluation.against import Answers, agreements, check_agreement, differences
from lpc.evaluation.built import Built, build
from lpc.evaluation.gathered import TEXT_TASK, log_likelihoods, scored, task_results, text_result
from lpc.evaluation.kept import Found, Kept, Note, digest_of
from lpc.evaluation.repeating import commands
from lpc.evaluation.results import Asked, Evaluation, ModelRun, TaskResult, TextResult
from lpc.evaluation.subjects import Subject, context_limit, find_subjects, weight_dtype
from lpc.options import AUTO_BATCH, EvaluateOptions
from lpc.progress import tell_share
from lpc.versions import versions
from passes.errors import OptionError
from passes.models import evaluation_mode, memory_advice, smaller_batches
from passes.pipeline import Progress, device_named, silent

__all__ = ["Evaluation", "evaluate"]

logger = logging.getLogger(__name__)

STAGE = "percent of all tasks"

DEFAULT_CONTEXT = 2048
"""Longest default window: models that allow 100,000 tokens would otherwise take hours on a CPU."""

RESULT_KEYS = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "config",
)
"""What of lm-eval's results stands in ``eval.json`` too, by task where it is by task."""


def evaluate(
    folder: Path | str,
    options: EvaluateOptions,
    *,
    dense: Path | PreTrainedModel | None = None,
    keep: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the models in ``folder``, an output of ``lpc compress``, a checkpoint or an ONNX folder, with lm-eval.

    ``dense`` is evaluated as well; by default the source that the manifest names, if that is a local folder. Torch
    models are loaded in fp32 (a live one runs as it is). The backends of one model must agree in log-likelihood.

    In ``keep/lm-eval`` are lm-eval's own result and sample files, a folder a model and task; what lies there already
    and was made from the same is not run again. Without ``keep`` nothing is kept.

    Raises `OptionError`, `MissingFileError`, `DataError`, `ModelError`, `TokenizerError`, `OutputError`, and
    `PostconditionError` where two backends of one model disagree by more than 1e-3 (relative), naming the numbers.
    """
    from lpc.evaluation import harness

    subjects = find_subjects(Path(folder), options.backend, dense)
    context, device = _context_length(options, subjects), device_named(options.device)
    with ExitStack() as stack:
        home = keep if keep is not None else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lpc-eval-")))
        messages = stack.enter_context(harness.quiet())
        built, missing = build(options, Kept(folder=home), stack)
        _check_generation(built, subjects)
        course = _AllTasks(progress, len(subjects) * len(built))
        evaluator = _Evaluator(options, Kept(folder=home), context, device, messages, course)
        measured = [evaluator.run(subject, built) for subject in subjects]
        answers = [answer for _, answer in measured]
        agreed = tuple(agreements(answers))
        check_agreement(agreed)
        runs = tuple(run for run, _ in measured)
        again = tuple(commands(built, runs, options, keep, device))
        return Evaluation(
            folder=str(Path(folder).absolute()),
            asked=(_asked(options, context_length=context, device=str(device), left_out=missing, command=again),),
            runs=runs,
            agreements=agreed,
            differences=tuple(differences(answers)),
        )


def _asked(options: EvaluateOptions, **known: Any) -> Asked:
    """What was asked, at this time and with these versions; ``known``: what the options leave open."""
    return Asked(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        tasks=options.tasks,
        text=None if options.text is None else str(options.text.absolute()),
        limit=options.limit,
        fewshot=options.fewshot,
        batch_size=options.batch_size,
        **known,
    )


@dataclass
class _AllTasks:
    """How much of all ``tasks`` is done, each counting as any other; without those that are there already."""

    progress: Progress
    tasks: int
    done: int = 0

    def __post_init__(self) -> None:
        self.tell(0, 1)

    def kept(self) -> None:
        """A task was measured before."""
        self.tasks -= 1
        self.tell(0, 1)

    def measured(self) -> None:
        """A task is done."""
        self.done += 1
        self.tell(0, 1)

    def tell(self, done: int, total: int) -> None:
        """So many of the requests of the present task are done."""
        share = (self.done + done / max(total, 1)) / self.tasks if self.tasks else 1.0
        tell_share(self.progress, STAGE, share)


class _Evaluator:
    """Runs the tasks on one subject after the other; a backend is opened only for what is not there yet."""

    def __init__(
        self,
        options: EvaluateOptions,
        kept: Kept,
        context: int,
        device: torch.device,
        messages: list[str],
        course: _AllTasks,
    ) -> None:
        self.options, self.kept, self.context, self.device = options, kept, context, device
        self.messages, self.course = messages, course

    def run(self, subject: Subject, built: Sequence[Built]) -> tuple[ModelRun, Answers]:
        """All tasks on one subject."""
        digest = digest_of(subject)
        live = subject.live if subject.live is not None else torch.nn.Module()
        found: list[Found] = []
        backend: Any = None
        with evaluation_mode(live):
            for each in built:
                key, where = self._key(digest, each), self.kept.place(subject, each.asked, self.options.fewshot)
                old = self.kept.read(where, key)
                if old is None:
                    backend = backend or self._open(subject)
                    logger.info("%s %s: %s", subject.model, subject.backend, each.asked.name)
                    old = self._measure(backend, subject, each, key, where)
                    self.course.measured()
                else:
                    logger.info("%s %s: %s is there already", subject.model, subject.backend, each.asked.name)
                    self.course.kept()
                found.append(old)
        return self._gathered(subject, digest, built, found)

    def _key(self, digest: str, built: Built) -> str:
        made = [digest, built.digest, self.context, built.asked.limit, self.options.fewshot, versions().get("lm-eval")]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()

    def _open(self, subject: Subject) -> Any:
        from lpc.evaluation import harness

        size, device, told = self.options.batch_size, self.device, self.course.tell
        return harness.open_backend(subject, context_length=self.context, batch_size=size, device=device, told=told)

    def _measure(self, backend: Any, subject: Subject, built: Built, key: str, where: Path) -> Found:
        from lpc.evaluation import harness

        start, backend.truncated = time.perf_counter(), 0
        self.messages.clear()  # what lm-eval says about being handed a model in memory is no news
        fewshot = None if built.is_text else self.options.fewshot
        with memory_advice("lpc evaluate", lambda: smaller_batches(self.options.batch_size or AUTO_BATCH)):
            found = harness.run(backend, built.tasks, limit=built.asked.limit, fewshot=fewshot)
        pages = [sample["doc"]["page"] for sample in found["samples"][TEXT_TASK]] if built.is_text else None
        is_torch = subject.backend == "hf"
        note = Note(
            key=key,
            dtype=str(backend.model.dtype).removeprefix("torch.") if is_torch else weight_dtype(subject),
            prefix_token_id=backend.prefix_token_id,
            seconds=time.perf_counter() - start,
            truncated=backend.truncated,
            warnings=tuple(self.messages),
            tokens=None if pages is None else sum(len(backend.tok_encode(page)) for page in pages),
        )
        return self.kept.write(where, found, subject, note)

    def _gathered(
        self, subject: Subject, digest: str, built: Sequence[Built], found: Sequence[Found]
    ) -> tuple[ModelRun, Answers]:
        """One subject's results, of the files that are there now."""
        both = list(zip(built, found, strict=True))
        lm_eval: dict[str, dict[str, Any]] = {}
        for each in found:
            for name in RESULT_KEYS:
                lm_eval.setdefault(name, {}).update(each.results.get(name, {}))
        run = ModelRun(
            model=subject.model,
            backend=subject.backend,
            folder=str(subject.folder.absolute()),
            digest=digest,
            dtype=found[0].note.dtype,
            context_length=self.context,
            prefix_token_id=found[0].note.prefix_token_id,
            seconds=sum(each.note.seconds for each in found),
            truncated=sum(each.note.truncated for each in found),
            warnings=tuple(dict.fromkeys(text for each in found for text in each.note.warnings)),
            texts=tuple(self._text(each) for one, each in both if one.is_text),
            scores=tuple(self._scores(both)),
            lm_eval=lm_eval,
        )
        likelihoods = {task: each for one in found for task, each in log_likelihoods(one).items()}
        values = [value for one, each in both for value in scored(each, one.asked.limit)]
        text = self.options.text
        named = [
            replace(value, result=replace(value.result, task=text.name))
            if text is not None and value.result.task == TEXT_TASK
            else value
            for value in values
        ]
        return run, Answers(subject=subject, likelihoods=likelihoods, scored=tuple(named))

    def _text(self, found: Found) -> TextResult:
        text = self.options.text
        assert text is not None
        where = {"path": str(text.absolute()), "sha256": sha256(text)}
        return text_result(found, **where, limit=self.options.limit, context_length=self.context)

    @staticmethod
    def _scores(both: Sequence[tuple[Built, Found]]) -> Iterator[TaskResult]:
        for built, found in both:
            if not built.is_text:
                yield from task_results(found, built.asked.limit)


def _context_length(options: EvaluateOptions, subjects: tuple[Subject, ...]) -> int:
    limits = [limit for subject in subjects if (limit := context_limit(subject)) is not None]
    shortest = min(limits, default=DEFAULT_CONTEXT)
    if options.context_length is None:
        return min(shortest, DEFAULT_CONTEXT)
    if options.context_length > shortest:
        raise OptionError(f"context_length {options.context_length}: the models allow at most {shortest} tokens")
    return options.context_length


def _check_generation(built: Sequence[Built], subjects: tuple[Subject, ...]) -> None:
    from lpc.evaluation import harness

    leaves = [task for each in built for task in harness.leaves(each.tasks)]
    generating = [task.task_name for task in leaves if task.OUTPUT_TYPE == "generate_until"]
    if generating and any(subject.engine == "onnx" for subject in subjects):
        raise OptionError(
            f"task {', '.join(generating)} generates text, which lm-eval's onnxruntime backend does not: "
            "use backend hf or genai"
        )

"""Evaluate a compressed model with lm-eval: dense, pruned torch and pruned ONNX side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from exporters.files import sha256
from lpc.data import read_documents
from lpc.evaluation.perplexity import exp
from lpc.evaluation.results import Agreement, Evaluation, ModelRun, TaskResult, TextResult
from lpc.evaluation.subjects import Subject, context_limit, find_subjects, weight_dtype
from lpc.evaluation.tasks import read_rows
from lpc.options import EvaluateOptions
from lpc.versions import versions
from passes.errors import DataError, OptionError, PostconditionError
from passes.models import evaluation_mode, memory_advice, rounding_tolerance, smaller_batches
from passes.pipeline import Progress, silent

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

__all__ = ["Evaluation", "evaluate"]

DEFAULT_CONTEXT = 2048
"""Longest default window: models that allow 100,000 tokens would otherwise take hours on a CPU."""

TOLERANCE = 1e-3
"""Relative difference in log-likelihood that two backends of one fp32 model may show."""

LogLikelihoods = dict[str, list[float]]
"""Per task, of every request in the order of documents and choices."""


def evaluate(
    folder: Path | str,
    options: EvaluateOptions,
    *,
    dense: Path | PreTrainedModel | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the models in ``folder``, an output of ``lpc compress``, a checkpoint or an ONNX folder, with lm-eval.

    ``dense`` is evaluated as well; by default the source that the manifest names, if that is a local folder. Torch
    models are loaded in fp32 (a live one runs as it is). The backends of one model must agree in log-likelihood.

    Raises `OptionError`, `MissingFileError`, `DataError`, `ModelError`, `TokenizerError`, and `PostconditionError`
    where two backends of one model disagree by more than 1e-3 (relative), naming the numbers.
    """
    from lpc.evaluation import harness

    subjects = find_subjects(Path(folder), options.backend, dense)
    context = _context_length(options, subjects)
    runs: list[ModelRun] = []
    likelihoods: list[LogLikelihoods] = []
    with ExitStack() as stack:
        messages = stack.enter_context(harness.quiet())
        tasks = _tasks(options, stack)
        _check_generation(tasks, subjects)
        for index, subject in enumerate(subjects):
            progress("evaluate", index, len(subjects))
            run, found = _run(subject, tasks, options, context, messages, progress)
            runs.append(run)
            likelihoods.append(found)
        progress("evaluate", len(subjects), len(subjects))
    agreements = tuple(_agreements(subjects, likelihoods))
    _check_agreement(agreements)
    return Evaluation(
        folder=str(Path(folder).absolute()),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        limit=options.limit,
        batch_size=options.batch_size,
        tasks=options.tasks,
        text_path=None if options.text is None else str(options.text.absolute()),
        text_sha256=None if options.text is None else sha256(options.text),
        runs=tuple(runs),
        agreements=agreements,
    )


def _context_length(options: EvaluateOptions, subjects: tuple[Subject, ...]) -> int:
    limits = [limit for subject in subjects if (limit := context_limit(subject)) is not None]
    shortest = min(limits, default=DEFAULT_CONTEXT)
    if options.context_length is None:
        return min(shortest, DEFAULT_CONTEXT)
    if options.context_length > shortest:
        raise OptionError(f"context_length {options.context_length}: the models allow at most {shortest} tokens")
    return options.context_length


def _tasks(options: EvaluateOptions, stack: ExitStack) -> list[Task | Group]:
    from lpc.evaluation import harness

    files = [Path(name) for name in options.tasks if name.endswith(".jsonl")]
    names = [name for name in options.tasks if not name.endswith(".jsonl")]
    tasks = [harness.text_task(read_documents(options.text))] if options.text is not None else []
    tasks += [harness.local_task(read_rows(path)) for path in files]
    tasks += harness.named_tasks(names, options.include_path, stack)
    seen: set[str] = set()
    for task in harness.leaves(tasks):
        if task.task_name in seen:
            raise OptionError(f"two tasks are named {task.task_name}: rename a file or leave one out")
        seen.add(task.task_name)
    return tasks


def _check_generation(tasks: list[Task | Group], subjects: tuple[Subject, ...]) -> None:
    from lpc.evaluation import harness

    generating = [task.task_name for task in harness.leaves(tasks) if task.OUTPUT_TYPE == "generate_until"]
    if generating and any(subject.backend == "onnx" for subject in subjects):
        raise OptionError(
            f"task {', '.join(generating)} generates text, which lm-eval's onnxruntime backend does not: "
            "use backend hf or genai"
        )


def _run(
    subject: Subject,
    tasks: list[Task | Group],
    options: EvaluateOptions,
    context: int,
    messages: list[str],
    progress: Progress,
) -> tuple[ModelRun, LogLikelihoods]:
    from lpc.evaluation import harness

    def told(done: int, total: int) -> None:
        progress(f"{subject.model} {subject.backend}", done, total)

    start = time.perf_counter()
    live = subject.live if subject.live is not None else torch.nn.Module()
    with evaluation_mode(live):
        backend = harness.open_backend(subject, context_length=context, batch_size=options.batch_size, told=told)
        messages.clear()  # what lm-eval says about being handed a model in memory is no news
        with memory_advice("lpc evaluate", lambda: smaller_batches(options.batch_size)):
            found = harness.run(backend, tasks, limit=options.limit)
    run = ModelRun(
        model=subject.model,
        backend=subject.backend,
        folder=str(subject.folder.absolute()),
        dtype=str(backend.model.dtype).removeprefix("torch.") if subject.backend == "hf" else weight_dtype(subject),
        context_length=context,
        prefix_token_id=backend.prefix_token_id,
        seconds=time.perf_counter() - start,
        truncated=backend.truncated,
        warnings=tuple(messages),
        text=_text_result(found, backend, context) if options.text is not None else None,
        scores=tuple(_task_results(found)),
        lm_eval={key: found[key] for key in (*harness.RESULT_KEYS, "config") if key in found},
    )
    return run, _log_likelihoods(found)


def _text_result(found: Mapping[str, Any], backend: Any, context: int) -> TextResult:
    from lpc.evaluation.harness import TEXT_TASK

    samples, results = found["samples"][TEXT_TASK], found["results"][TEXT_TASK]
    tokens = sum(len(backend.tok_encode(sample["doc"]["page"])) for sample in samples)
    log_likelihood = sum(sample["word_perplexity"][0] for sample in samples)
    return TextResult(
        documents=len(samples),
        tokens=tokens,
        words=sum(sample["word_perplexity"][1] for sample in samples),
        bytes=sum(sample["byte_perplexity"][1] for sample in samples),
        log_likelihood=log_likelihood,
        context_length=context,
        token_perplexity=exp(-log_likelihood / tokens),
        word_perplexity=results["word_perplexity,none"],
        byte_perplexity=results["byte_perplexity,none"],
        bits_per_byte=results["bits_per_byte,none"],
    )


def _task_results(found: Mapping[str, Any]) -> Iterator[TaskResult]:
    """Every metric of every task but the text; lm-eval's keys are ``metric,filter`` and ``metric_stderr,filter``."""
    from lpc.evaluation.harness import TEXT_TASK

    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if task == TEXT_TASK or not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            yield TaskResult(
                task=task,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                value=value,
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                samples=found["n-samples"].get(task, {}).get("effective", values.get("sample_len", 0)),
            )


def _log_likelihoods(found: Mapping[str, Any]) -> LogLikelihoods:
    """Of all requests that have one; a task with several filters has its samples once a filter, so the first counts."""
    likelihoods: LogLikelihoods = {}
    for task, samples in found["samples"].items():
        first = samples[0]["filter"] if samples else None
        responses = [each[0] for s in samples if s["filter"] == first for each in s["resps"]]
        values = [response[0] if isinstance(response, tuple | list) else response for response in responses]
        if values and not any(isinstance(value, str) for value in values):
            likelihoods[task] = [float(value) for value in values]
    return likelihoods


def _agreements(subjects: tuple[Subject, ...], likelihoods: list[LogLikelihoods]) -> Iterator[Agreement]:
    """Each further backend of a model against its first one."""
    reference: dict[str, int] = {}
    for index, subject in enumerate(subjects):
        first = reference.setdefault(subject.model, index)
        for task, expected in likelihoods[first].items() if first != index else ():
            actual = likelihoods[index][task]
            if len(actual) != len(expected):
                raise DataError(f"task {task} has other requests for {subject.backend}: it is not deterministic")
            differences = [abs(a - b) for a, b in zip(actual, expected, strict=True)]
            yield Agreement(
                model=subject.model,
                backend=subject.backend,
                reference=subjects[first].backend,
                task=task,
                requests=len(expected),
                total=abs(sum(actual) - sum(expected)) / max(abs(sum(expected)), 1.0),
                worst=max(gap / max(abs(value), 1.0) for gap, value in zip(differences, expected, strict=True)),
                tolerance=max(TOLERANCE, rounding_tolerance(getattr(torch, weight_dtype(subject), torch.float32))),
            )


def _check_agreement(agreements: tuple[Agreement, ...]) -> None:
    broken = [str(agreement) for agreement in agreements if not agreement.holds]
    if broken:
        raise PostconditionError("backends of one model disagree: " + "; ".join(broken))

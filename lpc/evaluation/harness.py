"""The way to lm-eval (0.4.13): its tasks, a run, and its silence; ``lpc.evaluation.vendor`` levels its backends.

Import it inside functions: lm-eval takes seconds to load.
"""

from __future__ import annotations

import io
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.group import Group
from lm_eval.api.metrics import mean, weighted_mean
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from exporters.hf import reload
from lpc.evaluation.gathered import TEXT_TASK
from lpc.evaluation.perplexity import exp
from lpc.evaluation.subjects import Subject
from lpc.evaluation.tasks import RowTask
from lpc.evaluation.vendor import GenaiBackend, LocalTask, OrtBackend, TorchBackend, private_cache, unheard
from lpc.options import AUTO_BATCH
from lpc.source import find_tokenizer
from passes import models
from passes.errors import DataError, LpcError, ModelError, OptionError, TokenizerError
from passes.models import reason

__all__ = [
    "check_fewshot",
    "leaves",
    "local_task",
    "named_tasks",
    "open_backend",
    "quiet",
    "run",
    "text_task",
]

FORKING_OFF = "DISABLE_MULTIPROC"
"""By this variable lm-eval bootstraps in one process."""
BOOTSTRAP_ITERS = 1000
"""For the standard error of the few metrics that have no closed form."""


def open_backend(
    subject: Subject,
    *,
    context_length: int,
    batch_size: int | None,
    device: torch.device,
    told: Callable[[int, int], None] = unheard,
) -> Any:
    """An lm-eval ``LM`` for the subject, torch models in fp32 on the device (a live one stays where it is).

    ``told`` hears how many of its requests are done.

    Without a batch size it is 8: logits are never whole, so more would not be faster.
    Raises `ModelError` or `TokenizerError`.
    """
    tokenizer = find_tokenizer(subject.folder)
    if tokenizer is None:
        raise TokenizerError(f"there is no tokenizer in {subject.folder}: save it there first")
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise TokenizerError(
            f"the tokenizer in {subject.folder} has neither bos nor eos to condition the first token on"
        )
    backend: Any
    try:
        if subject.backend == "hf":
            model = reload(subject.folder).float().to(device) if subject.live is None else subject.live
            backend = TorchBackend(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size or AUTO_BATCH,
                max_length=context_length,
                add_bos_token=False,
                prefix_token_id=prefix,
            )
        else:
            kind = OrtBackend if subject.engine == "onnx" else GenaiBackend
            backend = kind(subject.folder, max_length=context_length, prefix=prefix)
    except LpcError:
        raise
    except Exception as error:
        raise ModelError(f"{subject.folder} cannot be loaded for backend {subject.backend}: {reason(error)}") from error
    backend.told = told
    return backend


def text_task(documents: Sequence[str]) -> Task:
    """The documents of a text as one ``loglikelihood_rolling`` task."""
    metrics = {"word_perplexity": _perplexity, "byte_perplexity": _perplexity, "bits_per_byte": _bits}
    return LocalTask(
        [{"page": document} for document in documents],
        {
            "task": TEXT_TASK,
            "num_fewshot": 0,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "page",
            "metric_list": [_metric(name, aggregation, better=False) for name, aggregation in metrics.items()],
        },
    )


def local_task(task: RowTask) -> Task:
    """Rows from a jsonl file as an lm-eval task, with lm-eval's blank between question and answer."""
    config = {
        "task": task.name,
        "output_type": task.output_type,
        "doc_to_text": task.doc_to_text,
        "doc_to_target": task.doc_to_target,
        "doc_to_choice": task.doc_to_choice,
        "metric_list": [
            _metric(name, _mean_perplexity if name == "perplexity" else "mean", better=name != "perplexity")
            for name in task.metrics
        ],
    }
    return LocalTask(task.rows, {key: value for key, value in config.items() if value is not None})


def named_tasks(names: Sequence[str], include_path: Path | None, stack: ExitStack) -> list[Task | Group]:
    """Tasks by name: from ``include_path``, or lm-eval's own where a name is not found there (needs the network).

    What they need while they are used is closed with ``stack``.
    Raises `OptionError` for unknown names and `DataError` where a task's data cannot be loaded.
    """
    if not names:
        return []
    manager = TaskManager(include_path=include_path and str(include_path), include_defaults=False)
    local = sorted(manager.all_tasks)
    is_local = set(names) <= set(local)
    if not is_local:
        manager = TaskManager(include_path=include_path and str(include_path))
        unknown = [name for name in names if name not in manager.all_tasks]
        if unknown:
            found = f"it defines: {', '.join(local) or 'none'}" if include_path else "there is no include_path"
            raise OptionError(f"unknown task {', '.join(unknown)}: neither in lm-eval nor in include_path ({found})")
    if is_local:
        stack.enter_context(private_cache())
    return [found for name in names for found in _load(manager, name, is_local)]


def _load(manager: TaskManager, name: str, is_local: bool) -> list[Task | Group]:
    try:
        loaded = manager.load([name])
    except Exception as error:
        remedy = "check its files" if is_local else "lm-eval's own tasks are downloaded: is the network there?"
        raise DataError(f"the data of task {name} cannot be loaded ({reason(error)}); {remedy}") from error
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def leaves(tasks: Sequence[Task | Group]) -> list[Task]:
    """The tasks, those in groups included."""
    return [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]


def check_fewshot(tasks: Sequence[Task | Group], fewshot: int | None) -> None:
    """Raise `OptionError` for a task that fixes its number of examples at none, where others are asked for.

    Rolling log-likelihoods have no question to put examples in front of.
    """
    fixed = [task.task_name for task in leaves(tasks) if task.get_config("num_fewshot") == 0]
    if fewshot and fixed:
        raise OptionError(f"fewshot {fewshot}: {', '.join(fixed)} is defined without examples; evaluate it by itself")


def run(backend: Any, tasks: Sequence[Task | Group], *, limit: int | None, fewshot: int | None) -> dict[str, Any]:
    """`lm_eval.evaluate`, with samples, set up as `simple_evaluate` does.

    That itself would ask git and pip for what the provenance in eval.json does not need. The caller's random state
    changes: seeds are set, as lm-eval sets them.
    """
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    loaded = TaskManager(include_defaults=False).load(list(tasks))
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    # lm-eval prints what it bootstraps, and results go there as JSON
    with redirect_stdout(io.StringIO()), _one_process():
        found: dict[str, Any] = evaluator.evaluate(
            lm=backend, task_dict=loaded, limit=limit, bootstrap_iters=BOOTSTRAP_ITERS, log_samples=True
        )
    seeds = {"random_seed": DEFAULT_RANDOM_SEED, "numpy_seed": DEFAULT_OTHER_SEED, "torch_seed": DEFAULT_OTHER_SEED}
    seeds["fewshot_seed"] = DEFAULT_OTHER_SEED
    return {**found, "config": {"limit": limit, "bootstrap_iters": BOOTSTRAP_ITERS, **seeds}}


@contextmanager
def _one_process() -> Iterator[None]:
    """lm-eval bootstraps here: processes that it forks beside torch's threads, or with a signal handler, may hang."""
    before = os.environ.get(FORKING_OFF)
    os.environ[FORKING_OFF] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORKING_OFF]
        else:
            os.environ[FORKING_OFF] = before


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep bars and logs off the terminal; lm-eval's warnings are collected, each once, in the list."""
    collector = _Collector()
    logger = logging.getLogger("lm_eval")
    before = (logger.level, logger.propagate)
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        with models.quiet():
            yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # truncated requests are counted, one message each would drown the rest
        if message not in self.messages and not message.startswith("Combined length of context"):
            self.messages.append(message)


def _metric(name: str, aggregation: Any, *, better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": better}


# lm-eval's own aggregations of these names, except that they do not raise where exp overflows
def _perplexity(items: Sequence[tuple[float, int]]) -> float:
    return exp(-weighted_mean(items))


def _bits(items: Sequence[tuple[float, int]]) -> float:
    return float(-weighted_mean(items) / math.log(2))


def _mean_perplexity(items: Sequence[float]) -> float:
    return exp(-mean(items))

"""The only module that touches lm-eval (0.4.13): its tasks, its backends made alike, and its silence.

Import it inside functions: lm-eval takes seconds to load. The backends are lm-eval's own; three differences between
them are levelled, so that one model gives one number:

- windows: the ONNX base keeps the last ``max_length`` tokens of context and continuation together, where HFLM keeps
  ``max_length + 1`` and feeds all but the last. A full rolling window then loses its first token's score. Both are
  given the longer cut here, and neither is fed the last token, whose logits nobody reads.
- bos: HFLM lets the tokenizer add it, the ONNX base does not. Here no backend does.
- prefix: the token that the first one is conditioned on comes from the tokenizer or from genai_config.json. Here it is
  the tokenizer's bos, else its eos, for all.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
from lm_eval import evaluator
from lm_eval.api.group import Group
from lm_eval.api.metrics import mean, weighted_mean
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.onnxruntime_genai import ONNXRuntimeGenAILM
from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM
from lm_eval.tasks import TaskManager
from tqdm.std import tqdm  # type: ignore[import-untyped]
from transformers.utils import logging as transformers_logging

from exporters.hf import reload
from lpc.evaluation.perplexity import exp
from lpc.evaluation.subjects import Subject
from lpc.evaluation.tasks import RowTask
from lpc.source import find_tokenizer
from passes.errors import DataError, LpcError, ModelError, OptionError, TokenizerError

__all__ = ["TEXT_TASK", "leaves", "local_task", "named_tasks", "open_scorer", "quiet", "run", "text_task"]

TEXT_TASK = "text"
"""Name of the task that scores the text file."""

BOOTSTRAP_ITERS = 1000
"""For the standard error of the few metrics that have no closed form."""

RESULT_KEYS = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


class _Checked:
    """What all backends share: requests are checked before they are scored, and scores before they are used."""

    max_length: int
    truncated = 0

    def _check(self, requests: Sequence[Any]) -> None:
        for _, context, continuation in requests:
            if not continuation:
                raise DataError("an answer adds no token to its question: is it empty?")
            if len(continuation) > self.max_length:
                raise DataError(
                    f"an answer of {len(continuation)} tokens does not fit into the context of {self.max_length} tokens"
                )
            self.truncated += len(context) + len(continuation) > self.max_length + 1

    @staticmethod
    def _finite(scores: list[tuple[float, bool]]) -> list[tuple[float, bool]]:
        if not all(math.isfinite(score) for score, _ in scores):
            raise ModelError("a log-likelihood is not finite: the model's weights or logits hold NaN or inf")
        return scores


class _TorchScorer(_Checked, HFLM):  # type: ignore[misc]
    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self._check(requests)
        return self._finite(HFLM._loglikelihood_tokens(self, requests, *args, **kwargs))


class _OnnxScorer(_Checked):
    """The windows of HFLM for a backend on lm-eval's ONNX base; mixed in before it."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self._check(requests)
        self.max_length += 1
        try:
            return self._finite(super()._loglikelihood_tokens(requests, *args, **kwargs))  # type: ignore[misc]
        finally:
            self.max_length -= 1

    def _forward_logits(self, tokens: list[int]) -> np.ndarray:
        logits: np.ndarray = super()._forward_logits(tokens[:-1])  # type: ignore[misc]
        return logits


class _OrtScorer(_OnnxScorer, ONNXRuntimeLM):  # type: ignore[misc]
    pass


class _GenaiScorer(_OnnxScorer, ONNXRuntimeGenAILM):  # type: ignore[misc]
    pass


class _LocalTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose documents are in memory: nothing is downloaded and nothing is cached on disk."""

    def __init__(self, rows: Sequence[dict[str, Any]], config: dict[str, Any]) -> None:
        self._rows = rows
        super().__init__(config={"test_split": "test", "num_fewshot": 0, "metadata": {"version": 1.0}, **config})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = {"test": datasets.Dataset.from_list(list(self._rows))}


def open_scorer(subject: Subject, *, context_length: int, batch_size: int) -> Any:
    """An lm-eval ``LM`` for the subject, torch models in fp32. Raises `ModelError` or `TokenizerError`."""
    tokenizer = find_tokenizer(subject.folder)
    if tokenizer is None:
        raise TokenizerError(f"there is no tokenizer in {subject.folder}: save it there first")
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise TokenizerError(
            f"the tokenizer in {subject.folder} has neither bos nor eos to condition the first token on"
        )
    try:
        if subject.backend != "hf":
            kind = _OrtScorer if subject.backend == "onnx" else _GenaiScorer
            scorer = kind(pretrained=str(subject.folder), max_length=context_length)
            scorer._bos_token_id = prefix
            return scorer
        model = reload(subject.folder).float() if subject.live is None else subject.live
        return _TorchScorer(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=context_length,
            add_bos_token=False,
            prefix_token_id=prefix,
        )
    except LpcError:
        raise
    except Exception as error:
        raise ModelError(f"{subject.folder} cannot be loaded for backend {subject.backend}: {error}") from error


def text_task(documents: Sequence[str]) -> Task:
    """The documents of a text as one ``loglikelihood_rolling`` task."""
    metrics = {"word_perplexity": _perplexity, "byte_perplexity": _perplexity, "bits_per_byte": _bits}
    return _LocalTask(
        [{"page": document} for document in documents],
        {
            "task": TEXT_TASK,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "page",
            "metric_list": [_metric(name, aggregation, better=False) for name, aggregation in metrics.items()],
        },
    )


def local_task(task: RowTask) -> Task:
    """Rows from a jsonl file as an lm-eval task, zero-shot, lm-eval's blank between question and answer."""
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
    return _LocalTask(task.rows, {key: value for key, value in config.items() if value is not None})


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
        stack.enter_context(_private_cache())
    return [found for name in names for found in _load(manager, name, is_local)]


def _load(manager: TaskManager, name: str, is_local: bool) -> list[Task | Group]:
    try:
        loaded = manager.load([name])
    except Exception as error:
        remedy = "check its files" if is_local else "lm-eval's own tasks are downloaded: is the network there?"
        raise DataError(f"the data of task {name} cannot be loaded ({error}); {remedy}") from error
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def leaves(tasks: Sequence[Task | Group]) -> list[Task]:
    """The tasks, those in groups included."""
    return [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]


def run(scorer: Any, tasks: Sequence[Task | Group], *, limit: int | None, batch_size: int) -> dict[str, Any]:
    """`lm_eval.simple_evaluate`, with samples. The caller's random state may change: lm-eval sets its seeds."""
    # git and pip are asked for what the provenance in eval.json does not need; outside a repository git complains
    with mock.patch.multiple(evaluator, add_env_info=_nothing, get_git_commit_hash=_nothing):
        found: dict[str, Any] = evaluator.simple_evaluate(
            model=scorer,
            tasks=list(tasks),
            batch_size=batch_size,
            limit=limit,
            bootstrap_iters=BOOTSTRAP_ITERS,
            log_samples=True,
            task_manager=TaskManager(include_defaults=False),
        )
    return found


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep bars and logs off the terminal; lm-eval's warnings are collected, each once, in the list."""
    collector = _Collector()
    logger = logging.getLogger("lm_eval")
    before = (logger.level, logger.propagate, transformers_logging.get_verbosity())
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    transformers_logging.set_verbosity_error()
    try:
        with mock.patch.object(tqdm, "__init__", _without_bar(tqdm.__init__)):
            yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        transformers_logging.set_verbosity(before[2])


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # truncated requests are counted, one message each would drown the rest
        if message not in self.messages and not message.startswith("Combined length of context"):
            self.messages.append(message)


def _without_bar(init: Any) -> Any:
    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "disable": True})

    return silent


@contextmanager
def _private_cache() -> Iterator[None]:
    """Local files need neither the network nor a copy in the user's cache; lm-eval maps over them when it runs too."""
    with (
        tempfile.TemporaryDirectory(prefix="lpc-datasets-", ignore_cleanup_errors=True) as folder,
        mock.patch.multiple(datasets.config, HF_DATASETS_CACHE=Path(folder), HF_HUB_OFFLINE=True),
    ):
        yield


def _metric(name: str, aggregation: Any, *, better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": better}


# lm-eval's own aggregations of these names, except that they do not raise where exp overflows
def _perplexity(items: Sequence[tuple[float, int]]) -> float:
    return exp(-weighted_mean(items))


def _bits(items: Sequence[tuple[float, int]]) -> float:
    return float(-weighted_mean(items) / math.log(2))


def _mean_perplexity(items: Sequence[float]) -> float:
    return exp(-mean(items))


def _nothing(*args: Any) -> None:
    return None

"""What of lm-eval is private, unstable or to be levelled: its backends, and where ``datasets`` keeps its copies.

The backends are lm-eval's own but for how they score: one model gives one number on all of them, and no backend holds
the log-probabilities of a whole window or batch.

- windows: the last ``max_length`` + 1 tokens of context and continuation, all but the last of them fed, as in HFLM; the
  ONNX base cuts one token shorter and feeds the last as well.
- bos: HFLM lets the tokenizer add it, the ONNX base does not. Here no backend does.
- prefix: the token that the first one is conditioned on comes from the tokenizer or from genai_config.json. Here it is
  the same for all, as told.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import datasets
import torch
from lm_eval import utils
from lm_eval.api.task import ConfigurableTask
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.models.onnxruntime_genai import ONNXRuntimeGenAILM
from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM
from torch.nn.utils.rnn import pad_sequence

from passes.errors import DataError, ModelError, OutputError
from passes.models import TokenHead, scored_logits

__all__ = ["GenaiBackend", "LocalTask", "OrtBackend", "TorchBackend", "private_cache", "save_as_lm_eval", "unheard"]

WITHOUT_BAR = {"disable_tqdm": True}

Request = tuple[Any, list[int], list[int]]
"""What lm-eval keys it by, the context and the continuation in tokens."""

Scored = tuple[float, bool]
"""The log-likelihood of a continuation, and whether each of its tokens was the likeliest."""


def unheard(done: int, total: int) -> None:
    """Progress that nobody listens to."""


class _Checked:
    """What all backends share: requests are checked before they are run, and log-likelihoods before they are used."""

    max_length: int
    truncated = 0
    told: Callable[[int, int], None] = staticmethod(unheard)
    """Told how many of the requests at hand are done."""

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """lm-eval: the log-likelihood of each continuation, without a bar."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, **WITHOUT_BAR)  # type: ignore[misc]
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """lm-eval: the log-likelihood of each text, the sum over its windows."""
        texts = [self._windows(request.args[0]) for request in requests]
        scored = iter(self._loglikelihood_tokens([(None, *window) for windows in texts for window in windows]))
        return [sum(next(scored)[0] for _ in windows) for windows in texts]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        found = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),  # type: ignore[attr-defined]
            prefix_token=self.prefix_token_id,  # type: ignore[attr-defined]
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [utils.make_disjoint_window(window) for window in found]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """lm-eval: the continuation of each prompt, without a bar."""
        found: list[str] = super().generate_until(requests, **WITHOUT_BAR)  # type: ignore[misc]
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Request], *_: Any, **__: Any) -> list[Scored]:
        """lm-eval: the one private method that all of a backend's log-likelihoods come through."""
        self._check(requests)
        found: dict[int, Scored] = {}
        for number, scored in self._scored(requests):
            found[number] = scored
            self.told(len(found), len(requests))
        if not all(math.isfinite(value) for value, _ in found.values()):
            raise ModelError("a log-likelihood is not finite: the model's weights or logits hold NaN or inf")
        return [found[number] for number in range(len(requests))]

    def _scored(self, requests: Sequence[Request]) -> Iterator[tuple[int, Scored]]:
        """The requests by their numbers, in any order."""
        raise NotImplementedError

    def _fed(self, context: list[int], continuation: list[int]) -> list[int]:
        """The tokens of a request that the model reads; the last positions predict the continuation."""
        return (context + continuation)[-(self.max_length + 1) :][:-1]

    def _check(self, requests: Sequence[Request]) -> None:
        for _, context, continuation in requests:
            if not continuation:
                raise DataError("an answer adds no token to its question: is it empty?")
            if len(continuation) > self.max_length:
                raise DataError(
                    f"an answer of {len(continuation)} tokens does not fit into the context of {self.max_length} tokens"
                )
            self.truncated += len(context) + len(continuation) > self.max_length + 1


class TorchBackend(_Checked, HFLM):  # type: ignore[misc]
    """lm-eval's backend for a live transformers model; requests that feed the same tokens share a row of a batch."""

    @torch.no_grad()
    def _scored(self, requests: Sequence[Request]) -> Iterator[tuple[int, Scored]]:
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            alike.setdefault(tuple(self._fed(context, continuation)), []).append(number)
        head, windows = TokenHead.of(self.model), sorted(alike, key=len, reverse=True)
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            ids = pad_sequence([torch.tensor(window) for window in batch], batch_first=True).to(self.device)
            states = self._states(head, ids)
            for row, window in enumerate(batch):
                for number in alike[window]:
                    targets = torch.tensor(requests[number][2], device=self.device)
                    of_targets = states[row, len(window) - len(targets) : len(window)]
                    yield number, _sum(*(head.measured if head else scored_logits)(of_targets, targets))

    def _states(self, head: TokenHead | None, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states, or, where the model has no head by itself, its logits; [rows, tokens, ...]."""
        if head is None:
            logits: torch.Tensor = self._model_call(ids)
            return logits
        with head.apart() as seen:
            self._model_call(ids)
        return seen.states


class _OnnxBackend(_Checked):
    """A prefix token from outside, and logits a window at a time; mixed in before a backend on lm-eval's ONNX base."""

    def __init__(self, folder: Path, *, max_length: int, prefix: int) -> None:
        self._prefix = prefix
        super().__init__(pretrained=str(folder), max_length=max_length)  # type: ignore[call-arg]

    @property
    def prefix_token_id(self) -> int:
        """The token that the first one is conditioned on."""
        return self._prefix

    def _scored(self, requests: Sequence[Request]) -> Iterator[tuple[int, Scored]]:
        for number, (_, context, continuation) in enumerate(requests):
            logits = torch.from_numpy(self._forward_logits(self._fed(context, continuation)))  # type: ignore[attr-defined]
            yield number, _sum(*scored_logits(logits[-len(continuation) :], torch.tensor(continuation)))


def _sum(losses: torch.Tensor, right: torch.Tensor) -> Scored:
    return -float(losses.cpu().double().sum()), bool(right.all())


class OrtBackend(_OnnxBackend, ONNXRuntimeLM):  # type: ignore[misc]
    """lm-eval's backend for plain onnxruntime."""


class GenaiBackend(_OnnxBackend, ONNXRuntimeGenAILM):  # type: ignore[misc]
    """lm-eval's backend for onnxruntime-genai."""


class LocalTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose documents are in memory: nothing is downloaded and nothing is cached on disk."""

    def __init__(self, rows: Sequence[dict[str, Any]], config: Mapping[str, Any]) -> None:
        self._rows = rows
        super().__init__(config={"test_split": "test", "metadata": {"version": 1.0}, **config})

    def download(self, *_: Any, **__: Any) -> None:
        """lm-eval: called by the constructor, to fill ``dataset``."""
        self.dataset = {"test": datasets.Dataset.from_list(list(self._rows))}

    def build_all_requests(self, **given: Any) -> None:
        """lm-eval: the requests of all documents, without the bar that no argument takes off."""
        with redirect_stderr(io.StringIO()):
            super().build_all_requests(**given)


def save_as_lm_eval(found: Mapping[str, Any], folder: Path, model: str, source: str) -> None:
    """Write lm-eval's own files of a run into a folder: ``results_DATE.json``, ``samples_TASK_DATE.jsonl`` a task.

    ``model`` is lm-eval's name of the backend. Raises `OutputError` where lm-eval could not write them.
    """
    tracker = EvaluationTracker(output_path=str(folder / "results.json"))
    tracker.general_config_tracker.log_experiment_args(
        model_source=model,
        model_args={"pretrained": source},
        system_instruction="",
        chat_template="",
        fewshot_as_multiturn=False,
    )
    results, samples = {name: each for name, each in found.items() if name != "samples"}, found["samples"]
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, each in samples.items():
        tracker.save_results_samples(task_name=task, samples=each)
    if len([*folder.glob("*.json*")]) != 1 + len(samples):
        raise OutputError(f"lm-eval could not write its results into {folder}: is the disk full?")


@contextmanager
def private_cache() -> Iterator[None]:
    """datasets: its settings ``HF_DATASETS_CACHE`` and ``HF_HUB_OFFLINE``, which its builders read when they run.

    Local files need neither the network nor a copy in the user's cache; lm-eval maps over them when it runs too.
    """
    settings: Any = datasets.config
    before = settings.HF_DATASETS_CACHE, settings.HF_HUB_OFFLINE
    with tempfile.TemporaryDirectory(prefix="lpc-datasets-", ignore_cleanup_errors=True) as folder:
        settings.HF_DATASETS_CACHE, settings.HF_HUB_OFFLINE = Path(folder), True
        try:
            yield
        finally:
            settings.HF_DATASETS_CACHE, settings.HF_HUB_OFFLINE = before

"""What of lm-eval is private, unstable or to be levelled: its backends, and where ``datasets`` keeps its copies.

The backends are lm-eval's own; three differences between them are levelled, so that one model gives one number:

- windows: the ONNX base keeps the last ``max_length`` tokens of context and continuation together, where HFLM keeps
  ``max_length + 1`` and feeds all but the last. A full rolling window then loses its first token's log-likelihood. Both
  are given the longer cut here, and neither is fed the last token, whose logits nobody reads.
- bos: HFLM lets the tokenizer add it, the ONNX base does not. Here no backend does.
- prefix: the token that the first one is conditioned on comes from the tokenizer or from genai_config.json. Here it is
  the same for all, as told.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.models.onnxruntime_genai import ONNXRuntimeGenAILM
from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM

from passes.errors import DataError, ModelError, OutputError

__all__ = ["GenaiBackend", "LocalTask", "OrtBackend", "TorchBackend", "private_cache", "save_as_lm_eval"]

WITHOUT_BAR = {"disable_tqdm": True}


class _Checked:
    """What all backends share: requests are checked before they are run, and log-likelihoods before they are used."""

    max_length: int
    truncated = 0

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """lm-eval: the log-likelihood of each continuation, without a bar."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, **WITHOUT_BAR)  # type: ignore[misc]
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """lm-eval: the log-likelihood of each text, without a bar."""
        found: list[float] = super().loglikelihood_rolling(requests, **WITHOUT_BAR)  # type: ignore[misc]
        return found

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """lm-eval: the continuation of each prompt, without a bar."""
        found: list[str] = super().generate_until(requests, **WITHOUT_BAR)  # type: ignore[misc]
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """lm-eval: the one private method that all of a backend's log-likelihoods come through."""
        self._check(requests)
        given = {**kwargs, **WITHOUT_BAR}
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *args, **given)  # type: ignore[misc]
        if not all(math.isfinite(value) for value, _ in found):
            raise ModelError("a log-likelihood is not finite: the model's weights or logits hold NaN or inf")
        return found

    def _check(self, requests: Sequence[Any]) -> None:
        for _, context, continuation in requests:
            if not continuation:
                raise DataError("an answer adds no token to its question: is it empty?")
            if len(continuation) > self.max_length:
                raise DataError(
                    f"an answer of {len(continuation)} tokens does not fit into the context of {self.max_length} tokens"
                )
            self.truncated += len(context) + len(continuation) > self.max_length + 1


class TorchBackend(_Checked, HFLM):  # type: ignore[misc]
    """lm-eval's backend for a live transformers model."""


class _Longer:
    """lm-eval's ONNX base: a window is cut a token longer, and its last token is not fed."""

    max_length: int

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self.max_length += 1
        try:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *args, **kwargs)  # type: ignore[misc]
            return found
        finally:
            self.max_length -= 1

    def _forward_logits(self, tokens: list[int]) -> np.ndarray:
        logits: np.ndarray = super()._forward_logits(tokens[:-1])  # type: ignore[misc]
        return logits


class _OnnxBackend(_Checked, _Longer):
    """The windows of HFLM, and a prefix token from outside; mixed in before a backend on lm-eval's ONNX base."""

    def __init__(self, folder: Path, *, max_length: int, prefix: int) -> None:
        self._prefix = prefix
        super().__init__(pretrained=str(folder), max_length=max_length)  # type: ignore[call-arg]

    @property
    def prefix_token_id(self) -> int:
        """The token that the first one is conditioned on."""
        return self._prefix


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

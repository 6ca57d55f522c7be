"""Private names of lm-eval and settings of datasets, one by one: a failure here says which has moved."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.models.onnxruntime_genai import ONNXRuntimeGenAILM
from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM
from moved import Named

from lpc.evaluation import vendor
from passes.errors import DataError, ModelError

named = partial(Named, mend="lpc/evaluation/vendor.py")


@pytest.mark.parametrize("backend", [HFLM, ONNXRuntimeLM, ONNXRuntimeGenAILM])
def test_each_backend_has_the_methods_that_are_replaced_and_a_bar_that_can_be_taken_off(backend: type) -> None:
    with named("lm-eval", f"{backend.__name__}._loglikelihood_tokens, loglikelihood_rolling, generate_until"):
        assert "requests" in inspect.signature(backend._loglikelihood_tokens).parameters
        assert "requests" in inspect.signature(backend.loglikelihood_rolling).parameters
        assert "disable_tqdm" in inspect.signature(backend.generate_until).parameters
    with named("lm-eval", "HFLM._model_call(inps)"):
        assert list(inspect.signature(HFLM._model_call).parameters)[:2] == ["self", "inps"]


@pytest.mark.parametrize("backend", [ONNXRuntimeLM, ONNXRuntimeGenAILM])
def test_the_onnx_backends_run_a_window_by_forward_logits(backend: type) -> None:
    with named("lm-eval", f"{backend.__name__}._forward_logits(tokens)"):
        assert list(inspect.signature(backend._forward_logits).parameters) == ["self", "tokens"]
        assert isinstance(inspect.getattr_static(backend, "prefix_token_id"), property)


def test_a_local_task_is_asked_for_its_documents_and_builds_its_requests_silently(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with named("lm-eval", "ConfigurableTask.download, dataset, build_all_requests"):
        assert {"download", "build_all_requests"} <= set(dir(ConfigurableTask))
        task = vendor.LocalTask(
            [{"page": "one"}, {"page": "two"}],
            {"task": "t", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "page"},
        )
        task.build_all_requests(rank=0, world_size=1)
        assert [request.args for request in task.instances] == [("one",), ("two",)]
        assert capfd.readouterr().err == ""


def test_the_private_cache_is_where_datasets_writes_and_ends_with_the_block() -> None:
    with named("datasets", "config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE"):
        before = datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE
        with pytest.raises(ZeroDivisionError), vendor.private_cache():
            folder = Path(datasets.config.HF_DATASETS_CACHE)
            assert folder.is_dir()
            assert datasets.config.HF_HUB_OFFLINE is True
            raise ZeroDivisionError
        assert before == (datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE)
        assert not folder.exists()


class _Backend(vendor._Checked):
    max_length = 4

    def _scored(self, requests: Sequence[vendor.Request]) -> Iterator[tuple[int, vendor.Scored]]:
        for number in reversed(range(len(requests))):
            _, context, continuation = requests[number]
            fed = self._fed(context, continuation)
            yield number, (float("nan") if continuation == [2, 3] else float(len(fed)), True)


def test_windows_are_the_longest_that_are_fed_cut_ones_are_counted_and_progress_is_told() -> None:
    backend, told = _Backend(), []
    backend.told = lambda *step: told.append(step)
    requests = [(None, [1, 2, 3, 4], [5, 6]), (None, [1], [4])]
    assert backend._loglikelihood_tokens(requests) == [(4.0, True), (1.0, True)]
    assert (backend.max_length, backend.truncated) == (4, 1)
    assert told == [(1, 2), (2, 2)]


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="adds no token"):
        _Backend()._loglikelihood_tokens([(None, [1], [])])
    with pytest.raises(DataError, match="does not fit"):
        _Backend()._loglikelihood_tokens([(None, [1], [1, 2, 3, 4, 5])])
    with pytest.raises(ModelError, match="not finite"):
        _Backend()._loglikelihood_tokens([(None, [1], [2, 3])])

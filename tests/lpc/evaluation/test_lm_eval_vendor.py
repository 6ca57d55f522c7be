"""Private names of lm-eval and settings of datasets, one by one: a failure here says which has moved."""

from __future__ import annotations

import inspect
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
@pytest.mark.parametrize("method", ["_loglikelihood_tokens", "loglikelihood_rolling", "generate_until"])
def test_each_backend_has_the_method_and_a_bar_that_can_be_taken_off(backend: type, method: str) -> None:
    with named("lm-eval", f"{backend.__name__}.{method}(disable_tqdm)"):
        assert "disable_tqdm" in inspect.signature(getattr(backend, method)).parameters


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


class _Base:
    max_length = 4

    def _loglikelihood_tokens(self, requests: object, **given: object) -> list[tuple[float, bool]]:
        assert given == {"disable_tqdm": True}
        return [(float("nan") if requests == [(None, [1], [2, 3])] else float(self.max_length), True)]


class _Backend(vendor._Checked, vendor._Longer, _Base):
    pass


def test_requests_are_cut_a_token_longer_and_counted_when_cut() -> None:
    backend = _Backend()
    assert backend._loglikelihood_tokens([(None, [1, 2, 3, 4], [5, 6])]) == [(5.0, True)]
    assert (backend.max_length, backend.truncated) == (4, 1)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="adds no token"):
        _Backend()._loglikelihood_tokens([(None, [1], [])])
    with pytest.raises(DataError, match="does not fit"):
        _Backend()._loglikelihood_tokens([(None, [1], [1, 2, 3, 4, 5])])
    with pytest.raises(ModelError, match="not finite"):
        _Backend()._loglikelihood_tokens([(None, [1], [2, 3])])

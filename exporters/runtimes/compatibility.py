"""Where a model runs: a verdict a runtime, by what was verified here or by the runtime's documented constraints.

Each runtime is a ``Target``: constraints in order, each with its source; the first one that does not hold is the
verdict. ``docs/compatibility.md`` is generated from them.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from exporters.runtimes.hf import STOCK, WITH_FILE
from exporters.runtimes.llama_cpp import LLAMA_CPP
from exporters.runtimes.onnx import GENAI, LM_EVAL, ONNXRUNTIME, OPTIMUM, TRITON
from exporters.runtimes.shape import Shape
from exporters.runtimes.verdict import Evidence, Verdict
from exporters.runtimes.vllm import VLLM
from passes.pipeline import PassRecord

TARGETS = (STOCK, WITH_FILE, ONNXRUNTIME, GENAI, LM_EVAL, OPTIMUM, TRITON, VLLM, LLAMA_CPP)
"""Every runtime that lpc has a verdict on, in the order of the table."""


def compatibility(model: PreTrainedModel, history: Iterable[PassRecord] = ()) -> tuple[Verdict, ...]:
    """The verdict of every target on a compact model.

    ``history`` are the records of the passes that saved and exported it; without them nothing counts as run here but
    the building of the stock class. Raises UnsupportedModelError for a class without a task.
    """
    shape, evidence = Shape.of(model), Evidence.of(history)
    return tuple(target.judge(shape, evidence) for target in TARGETS)

"""What an evaluation found: results a model and backend, and whether the backends of one model agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.files import write_text

__all__ = ["Agreement", "Evaluation", "ModelRun", "TaskResult", "TextResult"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """Perplexity of a text. ``token_perplexity`` is exp(-log_likelihood / tokens), tokens being the model's own.

    ``word_perplexity``, ``byte_perplexity`` and ``bits_per_byte`` are lm-eval's: the same log-likelihood (in nats)
    shared among words (split at white space) or UTF-8 bytes. A window holds at most ``context_length`` tokens.
    """

    documents: int
    tokens: int
    words: int
    bytes: int
    log_likelihood: float
    context_length: int
    token_perplexity: float
    word_perplexity: float
    byte_perplexity: float
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One metric of one task; ``stderr`` is None where lm-eval has none ("N/A")."""

    task: str
    metric: str
    value: float
    stderr: float | None
    samples: int


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """One model through one backend. ``lm_eval`` is lm-eval's own result as JSON values, without samples.

    ``truncated`` counts requests longer than the context, which lose their beginning; ``warnings`` are lm-eval's.
    """

    model: str
    backend: str
    folder: str
    dtype: str
    context_length: int
    prefix_token_id: int
    seconds: float
    truncated: int
    warnings: tuple[str, ...]
    text: TextResult | None
    scores: tuple[TaskResult, ...]
    lm_eval: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the log-likelihoods of a backend are from those of the ``reference`` backend, same model, one task.

    ``total`` is the relative difference of the sums; ``worst`` that of the worst single request, where a request
    whose log-likelihood is below 1 nat counts as 1 nat.
    """

    model: str
    backend: str
    reference: str
    task: str
    requests: int
    total: float
    worst: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether both differences are within the tolerance (a NaN never is)."""
        return self.total <= self.tolerance and self.worst <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.task}: log-likelihoods of {self.model} by {self.backend} differ from those by {self.reference} by "
            f"{self.total:.1e} in total and {self.worst:.1e} in the worst of {self.requests} requests "
            f"(relative; {self.tolerance:.0e} allowed)"
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All runs on one folder, with provenance. ``limit`` None means every document was taken."""

    folder: str
    date: str
    versions: Mapping[str, str]
    limit: int | None
    batch_size: int
    tasks: tuple[str, ...]
    text_path: str | None
    text_sha256: str | None
    runs: tuple[ModelRun, ...]
    agreements: tuple[Agreement, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values; a number that is not finite (an overflowing perplexity) becomes None."""
        values: dict[str, Any] = _finite({"schema_version": SCHEMA_VERSION, **asdict(self)})
        return values

    def to_text(self) -> str:
        """``eval.json``."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write ``eval.json``, whole or not at all. Raises `OutputError`."""
        write_text(Path(path), self.to_text())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

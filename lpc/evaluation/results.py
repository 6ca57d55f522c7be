"""What evaluations found: results a model and backend, how they differ, and whether backends of one model agree."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from exporters.files import write_text
from lpc.evaluation.paired import Difference
from passes.errors import DataError

__all__ = ["Agreement", "Asked", "Evaluation", "ModelRun", "TaskResult", "TextResult"]

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """Perplexity of a text. ``token_perplexity`` is exp(-log_likelihood / tokens), tokens being the model's own.

    ``word_perplexity``, ``byte_perplexity`` and ``bits_per_byte`` are lm-eval's: the same log-likelihood (in nats)
    shared among words (split at white space) or UTF-8 bytes. A window holds at most ``context_length`` tokens.
    ``limit``: only so many documents were asked for.
    """

    path: str
    sha256: str
    limit: int | None
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
    """One metric of one task, with ``fewshot`` examples, on its first ``limit`` documents (None: on all).

    ``stderr`` is None where lm-eval has none ("N/A").
    """

    task: str
    metric: str
    fewshot: int
    limit: int | None
    value: float
    stderr: float | None
    samples: int


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """One model through one backend. ``lm_eval`` is lm-eval's own result as JSON values, without samples.

    ``digest`` is the sha256 of what was evaluated; ``truncated`` counts requests longer than the context, which lose
    their beginning; ``warnings`` are lm-eval's; ``seconds`` is what all of it took.
    """

    model: str
    backend: str
    folder: str
    digest: str
    dtype: str
    context_length: int
    prefix_token_id: int
    seconds: float
    truncated: int
    warnings: tuple[str, ...]
    texts: tuple[TextResult, ...]
    scores: tuple[TaskResult, ...]
    lm_eval: Mapping[str, Any]

    @property
    def text(self) -> TextResult | None:
        """The text that was measured last."""
        return self.texts[-1] if self.texts else None

    def added(self, newer: ModelRun) -> ModelRun:
        """This run and a newer one of the same model; what both measured is the newer one's."""
        if newer.digest != self.digest:
            logger.warning("%s has changed since it was evaluated: what it scored then is left out", newer.folder)
            return newer
        names = {**self.lm_eval, **newer.lm_eval}
        lm_eval = {name: {**self.lm_eval.get(name, {}), **newer.lm_eval.get(name, {})} for name in names}
        return replace(
            newer,
            seconds=self.seconds + newer.seconds,
            truncated=self.truncated + newer.truncated,
            warnings=tuple(dict.fromkeys((*self.warnings, *newer.warnings))),
            texts=_merged(self.texts, newer.texts, lambda each: (each.sha256, each.limit, each.context_length)),
            scores=_merged(self.scores, newer.scores, lambda s: (s.task, s.metric, s.fewshot, s.limit)),
            lm_eval=lm_eval,
        )


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
class Asked:
    """One evaluation that was asked for, with the versions that did it.

    ``left_out`` are tasks of a preset that were not run, with the reason. ``command``: what repeats it with lm-eval's
    own command line, a line a model, where that can be.
    """

    date: str
    versions: Mapping[str, str]
    tasks: tuple[str, ...]
    text: str | None
    limit: int | None
    fewshot: int | None
    batch_size: int | None
    device: str
    context_length: int
    left_out: Mapping[str, str]
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All runs on one folder, with provenance: what was asked, how models differ, how far backends agree."""

    folder: str
    asked: tuple[Asked, ...]
    runs: tuple[ModelRun, ...]
    agreements: tuple[Agreement, ...]
    differences: tuple[Difference, ...]

    @classmethod
    def read(cls, path: Path) -> Evaluation | None:
        """An ``eval.json``; None if there is none. Raises DataError for one that cannot be read."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"it is not of schema version {SCHEMA_VERSION}")
            kinds = {"asked": Asked, "runs": ModelRun, "agreements": Agreement, "differences": Difference}
            lists: dict[str, Any] = {
                name: tuple(_made(kind, each) for each in values[name]) for name, kind in kinds.items()
            }
            return cls(folder=values["folder"], **lists)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is no evaluation that can be added to ({error}): move it away first") from error

    def added(self, newer: Evaluation) -> Evaluation:
        """This evaluation and a newer one of the same folder; what both measured is the newer one's."""
        mine = {(run.model, run.backend): run for run in self.runs}
        for run in newer.runs:
            key = (run.model, run.backend)
            mine[key] = mine[key].added(run) if key in mine else run
        return Evaluation(
            folder=newer.folder,
            asked=(*self.asked, *newer.asked),
            runs=tuple(mine.values()),
            agreements=_merged(self.agreements, newer.agreements, lambda a: (a.model, a.backend, a.reference, a.task)),
            differences=_merged(
                self._still_true(newer),
                newer.differences,
                lambda d: (d.task, d.metric, d.fewshot, d.limit, d.model, d.backend, d.reference),
            ),
        )

    def _still_true(self, newer: Evaluation) -> tuple[Difference, ...]:
        """The differences between models that have not changed."""
        digests = {(run.model, run.backend): run.digest for run in self.runs}
        changed = {key for run in newer.runs if digests.get(key := (run.model, run.backend), run.digest) != run.digest}
        return tuple(
            d for d in self.differences if not {(d.model, d.backend), (d.reference, d.reference_backend)} & changed
        )

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


def _merged(old: Iterable[T], new: Iterable[T], key: Callable[[T], Hashable]) -> tuple[T, ...]:
    return tuple({key(each): each for each in (*old, *new)}.values())


INNER = {"texts": TextResult, "scores": TaskResult}
INFINITE = (
    "value",
    "reference_value",
    "difference",
    "stderr",
    *(f"{name}_perplexity" for name in ("token", "word", "byte")),
)


def _made(kind: type[T], values: Mapping[str, Any]) -> T:
    """One of the dataclasses from JSON values: lists are tuples again, and what was too large for JSON is inf."""
    made: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        value = values[each.name]
        if each.name in INNER:
            value = tuple(_made(INNER[each.name], inner) for inner in value)
        elif isinstance(value, list):
            value = tuple(value)
        elif value is None and each.name in INFINITE and "None" not in str(each.type):
            value = math.inf
        made[each.name] = value
    return kind(**made)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

"""What scores are made of where nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.criteria import CRITERION_NAMES
from passes.options.importance import ImportanceOptions
from passes.options.option import as_in, option
from passes.options.run import left_to_run
from passes.options.tune import TuneOptions


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What the scores are made of. The sample is looked at once, so ``importance.smoothing`` has no effect."""

    criterion: str = option("loraprune", choices=CRITERION_NAMES.known, help="How units are ranked.")
    samples: int | None = left_to_run("samples")
    batch_size: int | None = left_to_run("batch_size")
    seed: int | None = left_to_run("seed")
    importance: ImportanceOptions = as_in(TuneOptions, "importance")
    statistics_bytes: int | None = option(
        None,
        least=1,
        most=1 << 62,
        help="What a criterion may hold at once of what it saw; if the model needs more, its dimensions are ranked in "
        "portions, for each of which the sample is run again, with the same result. By default half of what is free on "
        "a CUDA device, else 8 GiB.",
    )

    def __post_init__(self) -> None:
        check(self)

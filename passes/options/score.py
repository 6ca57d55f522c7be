"""What scores are made of where nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.criteria import CRITERION_NAMES
from passes.options.importance import ImportanceOptions
from passes.options.option import option
from passes.options.tune import MOST_SEED


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What the scores are made of. The sample is looked at once, so ``importance.smoothing`` has no effect."""

    criterion: str = option("loraprune", choices=CRITERION_NAMES.known, help="How units are ranked.")
    samples: int | None = option(None, least=1, help="Rows of the data that are looked at; by default the run's.")
    batch_size: int | None = option(None, least=1, help="Rows a batch; by default the run's.")
    seed: int | None = option(
        None,
        least=0,
        most=MOST_SEED,
        help="Chooses the rows, and is that of the criterion random; by default the run's.",
    )
    importance: ImportanceOptions = option(ImportanceOptions(), help="How weights become unit scores.")
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

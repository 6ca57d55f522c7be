"""How the adapters train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from passes.errors import OptionError
from passes.options.check import check
from passes.options.criteria import criterion_choices
from passes.options.distill import DistillOptions
from passes.options.importance import ImportanceOptions
from passes.options.names import names_in
from passes.options.option import AUTO, Group, option
from passes.options.run import left_to_run
from passes.options.schedule import ONE_SHOT, Schedule
from passes.options.target import Layout, Target

MOST_STEPS = 10**9
MOST_RATE = 1.0

OPTIMIZERS = ("adamw", "muon")

CURVES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau",
)  # fmt: skip
"""The curves of transformers (``transformers.SchedulerType``) that need no arguments of their own."""


LOGGERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",),
           "trackio": ("trackio",)}  # fmt: skip
"""Where logs may go, by the Trainer's names, and the packages that can write them, of which one is needed."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise OptionError for a log whose package is not installed."""
    for name in names:
        if not any(find_spec(package) for package in LOGGERS[name]):
            raise OptionError(f"report_to {name} (--report-to) needs {name}: pip install {name}, or leave it out")


def _logs(text: str) -> tuple[str, ...]:
    return tuple(name for name in names_in(text) if name != "none")


def _distillation(weight: float) -> DistillOptions | None:
    return DistillOptions(weight=weight) if weight else None


def _schedule(one_shot: bool) -> Schedule:
    return ONE_SHOT if one_shot else Schedule()


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How the adapters train, and how units are ranked on the way."""

    steps: int = option(
        200, least=0, most=MOST_STEPS, help="Optimizer steps; 0 trains nothing.", group=Group.TUNE, common=True
    )
    batch_size: int | None = left_to_run("batch_size")
    gradient_accumulation: int = option(1, least=1, help="Batches whose gradients make one step.", group=Group.TUNE)
    gradient_checkpointing: bool = option(
        False,
        help="Compute activations again in the backward pass in place of keeping them: less memory, a third more time.",
        group=Group.TUNE,
    )
    learning_rate: float | None = option(
        None,
        above=0,
        most=MOST_RATE,
        help="Peak learning rate; by default 0.01 x (64 / hidden size)^(3/4), at most 0.01.",
        group=Group.TUNE,
        common=True,
    )
    optimizer: str = option(
        "adamw",
        choices=OPTIMIZERS,
        help="adamw, or muon: steps of A and B as wholes, orthogonalised, of AdamW's size (docs/method.md).",
        group=Group.TUNE,
    )
    lr_scheduler: str = option("cosine", choices=CURVES, help="The curve of the learning rate, by transformers' names.")
    max_grad_norm: float = option(1.0, least=0, help="Gradients are clipped to this norm; 0: not clipped.")
    bf16: bool = option(False, help="Run the forward pass of training under bf16 autocast.", group=Group.TUNE)
    seed: int | None = left_to_run("seed")
    criterion: str = option(
        AUTO,
        choices=criterion_choices,
        help="How units are ranked (docs/criteria.md); auto: obs where it ranks all that may go, else loraprune.",
        group=Group.RANK,
        common=True,
    )
    depth_scores: str = option(
        "summed",
        choices=("summed", "skipped"),
        help="How layers and blocks are ranked: summed over what is in them, or skipped: by the rise of the loss "
        "without them, measured at the start.",
        group=Group.RANK,
    )
    revival: bool = option(True, help="A masked unit may come back; a criterion may say that none does.")
    importance: ImportanceOptions = option(ImportanceOptions(), help="How weights become unit scores.")
    score_every: int = option(
        1,
        least=1,
        help="Steps between two at which a criterion that ranks while tuning reads its scores, counted back from each "
        "event; λ is that from one reading to the next.",
    )
    schedule: Schedule | None = option(
        None,
        help="When units go: all before tuning (one-shot), or on the way (progressive). By default as the criterion "
        "was measured best.",
        group=Group.RANK,
        flag="--one-shot/--progressive",
        words=bool,
        read=_schedule,
    )
    distill: DistillOptions | None = option(
        DistillOptions(),
        help="Share of the loss that is the distance to the dense model, 0 to 1; 0: none. By default 0.5.",
        group=Group.TUNE,
        metavar="WEIGHT",
        words=float,
        read=_distillation,
    )
    small: bool = option(
        True,
        help="Once all that goes is known, train the compact model in the place of the masked one; its weights, where "
        "they are cut, are in memory beside the dense ones.",
    )
    report_to: tuple[str, ...] = option(
        (),
        choices=tuple(LOGGERS),
        help="Where to log while tuning (docs/logs.md): loss, rate, removed share, and held-out perplexity.",
        group=Group.TUNE,
        metavar="NAME,...",
        words=str,
        read=_logs,
        record=False,
    )
    heldout_every: int | None = option(
        None,
        least=1,
        help="Steps between two measures on held-out data while tuning; by default there are ten with report_to, "
        "else none.",
        group=Group.TUNE,
        record=False,
    )
    checkpoints: Path | None = option(
        None,
        help="Folder to keep a run in, so that it can be gone on with (docs/resume.md); the command has one beside "
        "the output by default.",
        group=Group.ADVANCED,
        record=False,
    )
    save_every: int | None = option(
        None,
        least=1,
        help="Steps between two checkpoints; by default a twentieth of them, but not within ten seconds.",
        group=Group.ADVANCED,
        record=False,
    )
    resume: bool = option(
        False, help="Go on with a run that was kept; there must be one.", group=Group.ADVANCED, record=False
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def one_shot(self) -> bool:
        """Whether all goes before the first step, in settled options."""
        return self.schedule is not None and self.schedule.one_shot

    def importance_for(self, target: Target) -> ImportanceOptions:
        """The importance options, with what the layout decides where they leave it open."""
        if self.importance.normalise is not None:
            return self.importance
        return replace(self.importance, normalise=target.layout is Layout.UNIFORM)

    def check_checkpoints(self, folder: Path | None) -> None:
        """Raise OptionError if checkpoints are to be saved or gone on from, and there is no folder for them."""
        if (self.resume or self.save_every) and folder is None:
            raise OptionError("save_every and resume need a folder for the checkpoints: set checkpoints")

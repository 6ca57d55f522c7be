"""The Trainer callback that scores, re-masks and clips; and the state a checkpoint needs to go on from."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from passes.algebra import Answer, on_cpu
from passes.budget import Solver
from passes.criteria import Criterion, MeasuredDepth
from passes.errors import MissingFileError, ModelError, OptionError
from passes.graph import Masks, PruningGraph, full_masks
from passes.models import Adapter, MaskedModel, vendor
from passes.options import Schedule, SnapshotOptions
from passes.pipeline import Progress, Snapshot, load_snapshots, plain, silent
from passes.ranks import from_first
from passes.tuning.small import SmallModel, can_be_small
from passes.tuning.stages import StagedRun, one_stage, staged_run

STATE_FILE = "lpc_state.safetensors"


@dataclass(frozen=True)
class Event:
    """A re-masking after ``step`` optimizer steps: how many units each dimension of a width keeps from then on, in the
    mean, by the width's name; and how many units came back.
    """

    step: int
    widths: Mapping[str, float]
    revived: int


def mean_widths(graph: PruningGraph, masks: Masks) -> dict[str, float]:
    """How many units a dimension of each width keeps, in the mean."""
    kept = {width.name: [int(masks[d.name].sum()) for d in graph.of_width(width.name)] for width in graph.widths}
    return {name: sum(counts) / len(counts) for name, counts in kept.items()}


@dataclass(frozen=True, kw_only=True)
class PruningPolicy:
    """When and how far to mask. ``revival``: a masked unit may come back (the paper's notes; the code forbids it).

    ``snapshots``: ratios at which to leave a model on the way to the solver's own target. ``score_every`` and
    ``memory`` say which steps are scored: see ``StagedRun.counts``.
    """

    solver: Solver = field(metadata={"record": False})
    schedule: Schedule
    revival: bool = True
    max_grad_norm: float = 1.0
    snapshots: SnapshotOptions | None = None
    score_every: int = 1
    memory: int | None = None

    def __post_init__(self) -> None:
        if not self.max_grad_norm >= 0:
            raise OptionError(f"max_grad_norm must be 0 (no clipping) or positive, got {self.max_grad_norm}")

    def course(self, steps: int) -> StagedRun:
        """What is due after each of the steps. Raises OptionError if they are too few for the snapshots."""
        if self.snapshots is None:
            return StagedRun(one_stage(self.solver, self.schedule, steps))
        return staged_run(self.snapshots, self.solver, self.schedule, steps, revival=self.revival)


@dataclass
class PruningState:
    """What changes while training: masks, the scores that they were chosen by, events and snapshots so far, and steps
    whose gradients were not finite (fp16 scaling).
    """

    masks: dict[str, torch.Tensor]
    chosen_by: dict[str, torch.Tensor] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    skipped: int = 0


class PruningCallback(TrainerCallback):  # type: ignore[misc]
    """Prunes progressively while a transformers Trainer trains the adapters of ``to_train``'s model.

    Before an optimizer step that counts for an event the criterion sees the accumulated, all-reduced, unscaled and
    unclipped gradients, and only then are they clipped here: so the Trainer itself must not clip (``max_grad_norm=0``).
    After a step at which an event is due, the masks are set anew. The state is saved beside each Trainer checkpoint.
    With ``small``, the compact model goes on in the place of the masked one as soon as no event is to come.

    Only an event, a snapshot and a checkpoint wait for the device. Whether gradients were finite is known a step later
    there, before anything is saved or decided.
    """

    def __init__(
        self,
        model: PeftModel,
        graph: PruningGraph,
        criterion: Criterion,
        policy: PruningPolicy,
        progress: Progress = silent,
        start: PruningState | None = None,
        *,
        small: bool = False,
    ) -> None:
        self._model, self._graph, self._criterion, self._policy = model, graph, criterion, policy
        self._progress = progress
        self._trained, self._wants_small = model, small
        self._small: SmallModel | None = None
        self._course: StagedRun | None = None
        self._hooks: MaskedModel | None = None
        self._watching = False
        self._checks: deque[tuple[int, Answer]] = deque()
        self.state = start or PruningState(full_masks(graph))

    def to_train(self, steps: int, done: int = 0) -> PeftModel:
        """The model for a Trainer that has ``done`` so many steps: the small one where the last event lies behind."""
        if self._wants_small and done >= self._policy.course(steps).last_event and self._can_be_small:
            self._small = SmallModel(self._model, self._graph, self.state.masks)
            self._trained = self._small.model
        elif self._wants_small:
            self._trained = vendor.second_shell(self._model)
        return self._trained

    @property
    def trained(self) -> PeftModel:
        """The model that is trained at this moment."""
        return self._trained

    @property
    def removed(self) -> float:
        """The share of the model's parameters that is masked."""
        kept = {name: int(mask.sum()) for name, mask in self.state.masks.items()}
        return 1 - self._graph.cost(kept).parameters / self._graph.cost().parameters

    def is_final(self, step: int) -> bool:
        """Whether the masks stay as they are after a step."""
        return self._course is not None and step >= self._course.last_event

    @property
    def _can_be_small(self) -> bool:
        return can_be_small(self._graph, self.state.masks)

    def give_back(self) -> None:
        """The dense model's adapter is what was trained."""
        if self._small is not None:
            self._small.give_back()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Lay out the events and put the masks on."""
        if args.max_grad_norm:
            raise OptionError(
                f"the Trainer clips at {args.max_grad_norm} before scores are read; set its max_grad_norm=0 "
                "and give the value to PruningPolicy"
            )
        self._course = self._policy.course(state.max_steps)
        if self._small is not None:
            return
        self._hooks = MaskedModel(self._model, self._graph)
        self._hooks.set(self.state.masks)
        if self._course.last_event:
            self._criterion.begin(self._model)
            self._watching = True
            self._watch(state.global_step + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the gradients to the criterion, then clip them."""
        step, finite = state.global_step + 1, None
        if self._scored(step):
            # accelerate's optimizer unscales the gradients of its own parameters only
            scaler = getattr(kwargs.get("optimizer"), "scaler", None)
            finite = self._criterion.observe(self._model, scaler.get_scale() if scaler is not None else 1.0)
        trained = [p for p in self._trained.parameters() if p.requires_grad and p.grad is not None]
        norm = torch.nn.utils.get_total_norm([cast(torch.Tensor, p.grad) for p in trained])
        finite = torch.isfinite(norm) if finite is None else finite
        self._checks.append((step, Answer(finite)))
        self._check(args, behind=1)
        if self._policy.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self._policy.max_grad_norm, norm)
        self._watch(step + 1)

    def _scored(self, step: int) -> bool:
        """Whether the criterion is to see a step."""
        policy, course = self._policy, self._course
        return course is None or course.counts(step, policy.score_every, policy.memory)

    def _watch(self, step: int) -> None:
        """Let the criterion prepare for a step that it is to see, or rest until there is one."""
        if self._course is None or self._scored(step) == self._watching:
            return
        self._watching = not self._watching
        (self._criterion.begin if self._watching else self._criterion.end)(self._model)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What the model reads inside the block is not shown to the criterion, whose next step begins behind it."""
        if self._watching:
            self._criterion.end(self._model)
        try:
            yield
        finally:
            if self._watching:
                self._criterion.begin(self._model)

    def _check(self, args: TrainingArguments, behind: int = 0) -> None:
        """Raise ModelError if gradients were not finite, but in fp16, whose scaler has passed the step over. Waits for
        the answers to all steps but the last few (``behind``).
        """
        while self._checks and (len(self._checks) > behind or self._checks[0][1].ready):
            step, finite = self._checks.popleft()
            if finite:
                continue
            if not args.fp16:
                raise ModelError(
                    f"the gradients of step {step} are not finite: lower the learning rate, or check the data"
                )
            self.state.skipped += 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take a snapshot if one is due, then re-mask if an event is; where a stage ends, the next one's first is.

        After the last event the small model takes over.
        """
        assert self._course is not None
        step, ratio = state.global_step, self._course.ends.get(state.global_step)
        if ratio is not None and self._policy.snapshots is not None:
            self.state.snapshots.append(self._snapshot(ratio, step))
        if self._course.due(step):
            self._check(args)
            self._mask(step, on_cpu(self._criterion.scores))
        if step == self._course.last_event and step < state.max_steps and self._wants_small and self._can_be_small:
            self._take_over(kwargs["optimizer"])
        self._progress("tune", step, state.max_steps)

    def _take_over(self, optimizer: Any) -> None:
        """The Trainer's model becomes the small one, in the middle of its run, and the optimizer goes on with that."""
        self.close()
        self._hooks = None
        self._small = SmallModel(self._model, self._graph, self.state.masks)
        self._small.follow(optimizer)
        self._small.move_into(self._trained)

    def _snapshot(self, ratio: float, step: int) -> Snapshot:
        self.give_back()
        return Snapshot(ratio, step, self.state.masks, self.state.chosen_by, Adapter.of(self._model))

    def _mask(self, step: int, scores: dict[str, torch.Tensor]) -> None:
        assert self._course is not None
        assert self._hooks is not None
        scores = from_first(scores)
        masks = self._course.masks(step, scores, among=None if self._policy.revival else self.state.masks)
        assert masks is not None
        masks = from_first(masks)
        revived = sum(int((mask & ~self.state.masks[name]).sum()) for name, mask in masks.items())
        self.state.events.append(Event(step, mean_widths(self._graph, masks), revived))
        self.state.masks, self.state.chosen_by = masks, scores
        self._hooks.set(masks)

    def masks_off(self) -> AbstractContextManager[None]:
        """A context in which the masks let everything through."""
        return self._hooks.off() if self._hooks is not None else nullcontext()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the masks off; the program carries them from here."""
        self.close()
        self._check(args)

    def close(self) -> None:
        """Take off what this callback put on the model; also to be called when training fails."""
        if self._hooks is not None:
            self._hooks.remove()
        self._criterion.end(self._model)
        self._watching = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save scores, masks, events and snapshots beside the checkpoint that the Trainer just wrote."""
        self._check(args)
        if state.is_world_process_zero:
            self.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint folder."""
        tensors = {f"score.{name}": score for name, score in on_cpu(self._criterion.scores).items()}
        tensors |= {f"mask.{name}": mask for name, mask in self.state.masks.items()}
        tensors |= {f"chosen_by.{name}": score for name, score in self.state.chosen_by.items()}
        names = [width.name for width in self._graph.widths]
        rows = [[e.step, e.revived, *(e.widths[name] for name in names)] for e in self.state.events]
        tensors["events"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2 + len(names))
        tensors["skipped"] = torch.tensor([self.state.skipped])
        save_file(tensors, folder / STATE_FILE, metadata={"run": self._run()})
        for snapshot in self.state.snapshots:
            snapshot.save(folder)

    def _run(self) -> str:
        target = plain(self._policy.solver.target)
        run = {"criterion": type(self._criterion).__name__, "target": target, **plain(self._policy)}
        return json.dumps(run, sort_keys=True)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint folder.

        Raises MissingFileError if it was not written by this callback, OptionError if by a run with other options.
        """
        if not (folder / STATE_FILE).is_file():
            raise MissingFileError(f"there is no {STATE_FILE} in {folder}: it is not a checkpoint of a pruning run")
        with safe_open(folder / STATE_FILE, framework="pt") as file:
            run = (file.metadata() or {}).get("run")
        if run != self._run():
            raise OptionError(f"{folder} is from a run with other options ({run}); go on with those, or start anew")
        tensors = load_file(folder / STATE_FILE)
        if isinstance(self._criterion, MeasuredDepth):
            names = [dimension.name for dimension in self._graph.dimensions]
            self._criterion.remember({name: tensors[f"score.{name}"] for name in names})
        for dimension in self._graph.dimensions:
            self._criterion.scores[dimension.name].copy_(tensors[f"score.{dimension.name}"])
            self.state.masks[dimension.name] = tensors[f"mask.{dimension.name}"]
            if f"chosen_by.{dimension.name}" in tensors:
                self.state.chosen_by[dimension.name] = tensors[f"chosen_by.{dimension.name}"]
        names = [width.name for width in self._graph.widths]
        self.state.events = [
            Event(int(step), dict(zip(names, counts, strict=True)), int(revived))
            for step, revived, *counts in tensors["events"].tolist()
        ]
        self.state.skipped = int(tensors["skipped"])
        self.state.snapshots = load_snapshots(folder, Adapter.of(self._model).config)

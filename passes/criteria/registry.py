"""The criteria by name; and criteria of the user's own, registered from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import torch

from passes.criteria.base import AnyModel, Criterion, Needs, Stateless
from passes.criteria.fisher import Fisher
from passes.criteria.flap import Flap
from passes.criteria.loraprune import AUTHORS_CODE, LoRAPrune
from passes.criteria.magnitude import Magnitude
from passes.criteria.mask_fisher import MaskFisher
from passes.criteria.obs import Obs, held_bytes
from passes.criteria.random import Random
from passes.criteria.reap import Reap
from passes.criteria.taylor import Taylor
from passes.criteria.wanda import Wanda
from passes.errors import OptionError, UnsupportedModelError
from passes.graph import Dimension, Kind, PruningGraph
from passes.options import CRITERION_NAMES, ImportanceOptions
from passes.registry import Registry

CriterionFactory = Callable[[PruningGraph, ImportanceOptions, int], Criterion]
"""Makes a criterion for a graph, from the options and a seed."""

ScoreFunction = Callable[[Any, PruningGraph], Mapping[str, torch.Tensor]]
"""From the model and its graph to the scores [units], not negative, a dimension name."""


FORGOTTEN = 0.01
"""What may weigh so little in scores is not looked at."""


@dataclass(frozen=True, kw_only=True)
class CriterionEntry:
    """What is known of a criterion by name.

    ``reads``: the fields of ``ImportanceOptions`` that change it. ``fixed``: those that it sets itself. ``revival``:
    whether it lets a masked unit come back; False goes before ``TuneOptions.revival``. ``widths_only``: it ranks heads,
    channels and experts, but neither layers and blocks nor the hidden size. ``one_shot``: it is too dear to be asked at
    each step, and ranks on calibration data before the first, unless a schedule says otherwise. ``held``: the bytes of
    statistics that it holds to rank a dimension; it ranks each dimension by itself. None where that is not much.
    ``additive``: what it sees are sums over tokens, so that it does not matter which of them share a pass.

    Raises OptionError where ``needs`` is unknown, or ``reads`` or ``fixed`` names no field of ``ImportanceOptions``.
    """

    name: str
    description: str
    factory: CriterionFactory
    needs: Needs | str
    reads: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    revival: bool = True
    widths_only: bool = False
    one_shot: bool = False
    held: Callable[[PruningGraph, Dimension], int] | None = None
    additive: bool = False

    def __post_init__(self) -> None:
        if self.needs not in list(Needs):
            raise OptionError(f"needs {self.needs!r} of the criterion {self.name!r}: choose one of {', '.join(Needs)}")
        object.__setattr__(self, "needs", Needs(self.needs))
        options = [each.name for each in fields(ImportanceOptions)]
        odd = next((name for name in (*self.reads, *self.fixed) if name not in options), None)
        if odd is not None:
            raise OptionError(f"the criterion {self.name!r} names the option {odd!r}: there are {', '.join(options)}")

    def settle(self, options: ImportanceOptions) -> ImportanceOptions:
        """The options with what the criterion sets itself."""
        return replace(options, **self.fixed)

    @property
    def sees_gradients(self) -> bool:
        """Whether a sample is run backward for it as well."""
        return self.needs not in (Needs.WEIGHTS, Needs.ACTIVATIONS)

    def memory(self, options: ImportanceOptions) -> int | None:
        """How many of the latest observations count: all older ones together weigh at most ``FORGOTTEN`` in the moving
        average. None where there is none, so that nothing is known of it.
        """
        if "smoothing" not in self.reads:
            return None
        smoothing = self.settle(options).smoothing
        return max(1, math.ceil(math.log(FORGOTTEN) / math.log(smoothing))) if smoothing else 1


CRITERIA = Registry("criterion", CriterionEntry, "lpc.criteria", name_of=lambda entry: entry.name)
"""All criteria by name; grows with ``register_criterion``, and by packages' entry points ``lpc.criteria``."""
CRITERION_NAMES.attach(CRITERIA)


def _add(name: str, needs: Needs, factory: CriterionFactory, description: str, **more: Any) -> None:
    CRITERIA.add(name, CriterionEntry(name=name, description=description, factory=factory, needs=needs, **more))


_add(
    "loraprune",
    Needs.ADAPTER,
    lambda graph, options, seed: LoRAPrune(graph, options),
    "((gB·A + B·gA) ⊙ W)² from the gradients of the LoRA factors alone (LoRAPrune)",
    reads=("form", "normalise", "quadratic", "smoothing"),
    additive=True,
)
_add(
    "loraprune-code",
    Needs.ADAPTER,
    lambda graph, options, seed: LoRAPrune(graph, options),
    "LoRAPrune as its authors coded it: |(gB·A + B·gA − gB·gA) ⊙ W|, normalised a projection, no revival",
    reads=("smoothing",),
    fixed=AUTHORS_CODE,
    revival=False,
    additive=True,
)
_add(
    "taylor",
    Needs.GRADIENTS,
    lambda graph, options, seed: Taylor(graph, options),
    "(∇W ⊙ W)² from the true gradient: first-order Taylor, LoRAPrune's ablation",
    reads=("form", "normalise", "smoothing"),
    additive=True,
)
_add(
    "fisher",
    Needs.GRADIENTS,
    lambda graph, options, seed: Fisher(graph, options),
    "½ W² E[∇W²], with the expectation over batches: second-order, diagonal Fisher",
    reads=("normalise", "smoothing"),
    widths_only=True,
)
_add(
    "mask-fisher",
    Needs.GRADIENTS,
    lambda graph, options, seed: MaskFisher(graph, options),
    "E[(∂L/∂m)²] of the unit's mask variable, with the expectation over sequences (Kwon et al.)",
    reads=("smoothing",),
    widths_only=True,
)
_add(
    "wanda",
    Needs.ACTIVATIONS,
    lambda graph, options, seed: Wanda(graph, options),
    "Σ |W_ij|·‖X_j‖₂ over the columns that read the unit (Wanda-sp)",
    reads=("smoothing",),
    widths_only=True,
    additive=True,
)
_add(
    "flap",
    Needs.ACTIVATIONS,
    lambda graph, options, seed: Flap(graph, options),
    "Var(X_j)·‖W_:j‖₂² of the columns that read the unit, standardised a layer and kind (FLAP)",
    reads=("normalise", "smoothing"),
    widths_only=True,
    additive=True,
)
_add(
    "reap",
    Needs.ACTIVATIONS,
    lambda graph, options, seed: Reap(graph, options),
    "E[g·‖f(x)‖₂] over an expert's tokens, g its router's weight; all else as wanda (REAP)",
    reads=("smoothing",),
    widths_only=True,
    additive=True,
)
_add(
    "obs",
    Needs.GRADIENTS,
    lambda graph, options, seed: Obs(graph, options),
    "the loss left behind by the unit when the columns that stay are re-solved, to second order (OBS)",
    reads=("smoothing",),
    widths_only=True,
    one_shot=True,
    held=held_bytes,
    additive=True,
)
_add(
    "magnitude",
    Needs.WEIGHTS,
    lambda graph, options, seed: Magnitude(graph),
    "the squared L2 norm of the unit's weights",
)
_add(
    "magnitude-l1",
    Needs.WEIGHTS,
    lambda graph, options, seed: Magnitude(graph, l1=True),
    "the L1 norm of the unit's weights",
)
_add("random", Needs.WEIGHTS, lambda graph, options, seed: Random(graph, seed), "a random order, by the seed")


class OwnScores(Stateless):
    """A criterion that asks a function of the user's own at each step."""

    def __init__(self, name: str, function: ScoreFunction, graph: PruningGraph) -> None:
        self._name, self._function, self._graph = name, function, graph
        self.scores = {dimension.name: torch.zeros(dimension.size) for dimension in graph.dimensions}

    @torch.no_grad()
    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> bool:
        """Ask the function. Raises OptionError if its answer is not a score of every unit."""
        found = self._function(model, self._graph)
        for dimension in self._graph.dimensions:
            score = found.get(dimension.name)
            if score is None or score.shape != (dimension.size,):
                got = "nothing" if score is None else f"{list(score.shape)}"
                raise OptionError(
                    f"the criterion {self._name!r} gave {got} for {dimension.name}: it must give one tensor "
                    f"[{dimension.size}] for its units"
                )
            if not (torch.isfinite(score).all() and (score >= 0).all()):
                raise OptionError(
                    f"the criterion {self._name!r} gave scores for {dimension.name} below 0 or not finite"
                )
            self.scores[dimension.name].copy_(score)
        return True


def criterion(
    name: str,
    factory: CriterionFactory | None = None,
    *,
    function: ScoreFunction | None = None,
    description: str | None = None,
    needs: Needs | str = Needs.WEIGHTS,
    **facts: Any,
) -> CriterionEntry:
    """An entry of your own: for ``register_criterion``, or for a package's entry point ``lpc.criteria``.

    Give either a ``function(model, graph)`` that returns the scores, or a ``factory(graph, options, seed)`` that makes
    a ``Criterion`` with a state. ``needs`` says what must have run before it is asked: ``weights``, ``activations``,
    ``gradients`` or ``adapter``. ``description``: one line (default: the first of the docstring). ``facts`` are the
    other fields of ``CriterionEntry``: ``reads``, ``fixed``, ``revival``, ``widths_only``, ``one_shot``, ``held``.

    Raises OptionError if there is neither factory nor function or both, or a fact is impossible.
    """
    if (factory is None) == (function is None):
        raise OptionError(f"give the criterion {name!r} either a factory or a function")
    first = ((factory or function).__doc__ or "").strip().partition("\n")[0]
    own = function
    made = factory if own is None else lambda graph, options, seed: OwnScores(name, own, graph)
    assert made is not None
    line = description or first or "your own"
    return CriterionEntry(name=name, description=line, factory=made, needs=needs, **facts)


def register_criterion(
    name: str, factory: CriterionFactory | None = None, *, function: ScoreFunction | None = None, **more: Any
) -> None:
    """Make a criterion of your own available by name: in ``TuneOptions.criterion``, and wherever lpc names criteria.

    The arguments are those of ``criterion``. Raises OptionError as it does, and if the name is taken or empty.
    """
    CRITERIA.add(name, criterion(name, factory, function=function, **more))


def criterion_named(name: str) -> CriterionEntry:
    """The entry of that name. Raises OptionError, listing the names, for an unknown one; PluginError."""
    return CRITERIA.named(name)


def make_criterion(name: str, graph: PruningGraph, importance: ImportanceOptions, seed: int) -> Criterion:
    """The criterion of that name. Raises OptionError for an unknown one, or one that does not rank such dimensions."""
    entry = criterion_named(name)
    whole = [d.name for d in graph.dimensions if d.kind.is_depth or d.kind is Kind.HIDDEN]
    if whole and entry.widths_only:
        others = ", ".join(each.name for each in CRITERIA.values() if not each.widths_only)
        raise OptionError(f"the criterion {name!r} does not rank {whole[0]}: choose one of {others}")
    return entry.factory(graph, entry.settle(importance), seed)


def best_criterion(graph: PruningGraph) -> str:
    """``obs`` where it ranks all dimensions of the graph, else ``loraprune``, which ranks everything."""
    try:
        make_criterion("obs", graph, ImportanceOptions(), 0)
    except (OptionError, UnsupportedModelError):
        return "loraprune"
    return "obs"

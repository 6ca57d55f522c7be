"""First-order Taylor importance from the true gradient: LoRAPrune's own ablation."""

from __future__ import annotations

from functools import partial

from passes.criteria.base import AnyModel, Averaged, Finite, merged_weights, weight_names
from passes.criteria.gradients import Graded, TrueGradients
from passes.criteria.importance import importance_sums, unit_scores
from passes.graph import PruningGraph
from passes.options import ImportanceOptions


class Taylor(Averaged):
    """The moving average of Σ (∇W ⊙ W)² over a unit's weights, or with ``form="abs"`` of Σ |∇W ⊙ W|.

    How much the loss would change without the weight, to first order: Molchanov et al. 2019, arXiv 1906.10771;
    LoRAPrune, arXiv 2305.18403, eq. 3, whose dL/d(BA) stands for this dL/dW; LLM-Pruner, arXiv 2305.11627, takes abs.
    ∇W is the mean gradient of all that one ``observe`` looks at, squared after the mean. W = W0 + sBA. A unit that is
    masked has no gradient: of it only the average is left.
    """

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        super().__init__(graph, options.smoothing)
        self._options = options
        self._gradients = TrueGradients()

    def begin(self, model: AnyModel) -> None:
        """Ask for the gradients of all weights of units."""
        self._gradients.begin(model, weight_names(self._graph))

    def end(self, model: AnyModel) -> None:
        """Ask for them no longer."""
        self._gradients.end()

    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> Finite:
        """Score this step's gradients and take them into the average."""
        if not self._gradients.parameters:
            raise RuntimeError("there are no gradients of base weights: call begin() before the first forward pass")
        taken = self._gradients.take(loss_scale)
        weights = merged_weights(model, taken)

        graded = {name: Graded(weights[name], gradient) for name, gradient in taken.items()}
        sums_of = partial(importance_sums, options=self._options)
        return self._take_in(unit_scores(self._graph, graded, sums_of, normalise=bool(self._options.normalise)))

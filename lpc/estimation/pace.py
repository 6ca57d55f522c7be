"""How fast a device is at what a run is made of: one layer of the model and its head, for a moment each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lpc.estimation.sizes import Sizes
from lpc.estimation.work import Load, added, eliminating, gram, solution
from passes.algebra import Gram, NormalEquations, Surgery, elimination_errors
from passes.models import HOST_TOKENS, base_model, model_class, shallow, vendor
from passes.options import LoraOptions
from passes.pipeline import Pipeline, Program
from passes.trace import TracePass
from passes.tuning import AttachPass, Mixture, Side, summed_loss

logger = logging.getLogger(__name__)

RUNS = 3
HEAD_TOKENS = 256
MOST_BYTES = 2**30
"""Weights of a layer and a head that are tried out at most; larger ones are all products."""
WIDEST = 2048
"""Inputs of an elimination that is tried out at most."""
FAILURES = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model may raise that is built with one layer, or run without its head."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds a token of a pass through all layers: ``forward`` and, with an adapter, ``worn``; both ways through
    ``frozen`` weights, and with the adapter ``trained``. Those of its ``head`` and loss, forward, and both ways
    (``head_trained``). Operations a second of products of what is seen (``product``), of eliminations (``eliminate``),
    of adding to normal equations (``add``) and of solving them (``solve``).
    """

    forward: float
    worn: float
    frozen: float
    trained: float
    head: float
    head_trained: float
    product: float
    eliminate: float
    add: float
    solve: float

    @classmethod
    def even(cls, sizes: Sizes, load: Load, rate: float) -> Pace:
        """Where all operations take the same time, so many of them a second."""
        layers = sizes.forward(load.context) - sizes.head
        adapter = sizes.forward(load.context, load.rank) - sizes.forward(load.context)
        return cls(
            forward=layers / rate,
            worn=(layers + adapter) / rate,
            frozen=2 * layers / rate,
            trained=(2 * layers + 3 * adapter) / rate,
            head=sizes.head / rate,
            head_trained=2 * sizes.head / rate,
            product=rate,
            eliminate=rate,
            add=rate,
            solve=rate,
        )

    @classmethod
    def measured(
        cls,
        config: PreTrainedConfig,
        sizes: Sizes,
        load: Load,
        dtype: torch.dtype,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Pace | None:
        """Tried out on one layer with random weights; None where that is too large, or the class has no such model."""
        layer = sizes.weight_bytes / max(1, sizes.layers) + sizes.vocabulary * sizes.hidden * sizes.itemsize
        if layer > MOST_BYTES or config.get_text_config() is not config or not sizes.consumers:
            return None
        try:
            with torch.random.fork_rng():
                return _Bench(config, sizes, load, dtype, device, clock).pace()
        except FAILURES as error:
            logger.debug("one layer of %s is not timed: %s", config.model_type, error)
            return None


class _Bench:
    """One layer with an adapter, a batch of hidden states for it, and what is done with them."""

    def __init__(
        self,
        config: PreTrainedConfig,
        sizes: Sizes,
        load: Load,
        dtype: torch.dtype,
        device: torch.device,
        clock: Callable[[], float],
    ) -> None:
        self._sizes, self._load, self._dtype, self._device, self._clock = sizes, load, dtype, device, clock
        one = shallow(config, sizes.layers, 1)
        model = vendor.from_config(model_class(config), one, dtype=dtype).to(device).eval().requires_grad_(False)
        passes = Pipeline([TracePass(), AttachPass(LoraOptions(rank=load.rank))])
        self._model = passes(Program.start(model)).program.model
        rows = max(1, HOST_TOKENS // load.context) if load.on_cpu else load.batch
        self._hidden = self._drawn(rows, load.context, sizes.hidden)

    def _drawn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape).to(self._device, self._dtype)

    def pace(self) -> Pace:
        """All of it."""
        tokens, layers = self._hidden.shape[0] * self._hidden.shape[1], self._sizes.layers
        with self._model.disable_adapter():
            forward, frozen = self._seconds(self._forward), self._seconds(self._both)
        worn, trained = self._seconds(self._forward), self._seconds(self._both)
        read, written = max(self._sizes.consumers)
        width = min(read, WIDEST)
        equations, rows = NormalEquations(intercept=False), self._rows(width, written)
        add = self._seconds(partial(equations.add, *rows))
        return Pace(
            forward=forward * layers / tokens,
            worn=worn * layers / tokens,
            frozen=frozen * layers / tokens,
            trained=trained * layers / tokens,
            head=self._seconds(partial(self._loss, trained=False)) / HEAD_TOKENS,
            head_trained=self._seconds(partial(self._loss, trained=True)) / HEAD_TOKENS,
            product=HOST_TOKENS * gram(read) / self._seconds(partial(Gram, self._drawn(HOST_TOKENS, read))),
            eliminate=eliminating(width, written) / self._seconds(partial(self._eliminate, width, written), runs=1),
            add=HOST_TOKENS * added(width, written) / add,
            solve=solution(width, written) / self._seconds(partial(_solve, equations), runs=1),
        )

    def _seconds(self, run: Callable[[], object], runs: int = RUNS) -> float:
        """Of one run, in the mean of some; the first warms up."""
        if runs > 1:
            run()
        self._wait()
        began = self._clock()
        for _ in range(runs):
            run()
        self._wait()
        return max(self._clock() - began, 1e-9) / runs

    def _wait(self) -> None:
        """Until the device has done what it was told to do."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def _layers(self, hidden: torch.Tensor) -> torch.Tensor:
        backbone: nn.Module = self._base.base_model
        found: torch.Tensor = backbone(inputs_embeds=hidden)[0]
        return found

    @property
    def _base(self) -> PreTrainedModel:
        return base_model(self._model)

    @torch.no_grad()
    def _forward(self) -> None:
        self._layers(self._hidden)

    def _both(self) -> None:
        """With the distance to a teacher's hidden states as the loss."""
        hidden = self._hidden.detach().requires_grad_()
        wanted = self._hidden.float()
        error = (wanted - self._layers(hidden).float()).square().sum() / wanted.square().sum()
        error.backward()  # type: ignore[no-untyped-call]

    def _loss(self, *, trained: bool) -> None:
        head = self._base.get_output_embeddings()
        hidden = self._drawn(HEAD_TOKENS, self._sizes.hidden).requires_grad_(trained)
        targets = torch.zeros(HEAD_TOKENS, dtype=torch.int64, device=self._device)
        loss = summed_loss(Side(hidden=hidden, logits=head, chunk=HEAD_TOKENS), targets, Mixture())
        if trained:
            loss.backward()  # type: ignore[no-untyped-call]

    def _rows(self, read: int, written: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What a projection reads, what is missing and what it is to give, as a compensation has them."""
        missing = torch.randn(HOST_TOKENS, written, device=self._device)
        return self._drawn(HOST_TOKENS, read), missing, missing

    def _eliminate(self, width: int, written: int) -> None:
        inverse = torch.eye(width, dtype=torch.float64, device=self._device)[None]
        weight = self._drawn(width, written).double()[None]
        torch.cholesky_inverse(torch.linalg.cholesky(inverse))
        units = torch.arange(width, device=self._device)[:, None]
        elimination_errors([Surgery(inverse, weight, units)])


def _solve(equations: NormalEquations) -> None:
    """As a compensation does: the step, and its error before and after."""
    step = equations.solve(ridge=1.0)
    equations.error()
    equations.error(step)

"""Mixtures of experts: stacked weights [experts, out, in] behind a router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from passes.errors import UnsupportedModelError
from passes.graph import Dimension, Kind, Role, Slice

PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k", "num_selected_experts")
"""Entries that say how many experts a token visits."""

ROUTERS = ("gate", "router", "router.gate", "router.layer", "router.classifier", "gate.wg")

SHOWN = 4
"""Parameters of a mixture that a refusal names."""


def experts_per_token(config: PreTrainedConfig) -> int:
    """How many experts a token visits; 1 where no entry says it."""
    return next((int(n) for n in (getattr(config, name, None) for name in PER_TOKEN) if n), 1)


def expert_groups(config: PreTrainedConfig) -> int:
    """How many groups of as many experts a router chooses among before it chooses experts."""
    return int(getattr(config, "n_group", 1) or 1)


@dataclass(frozen=True)
class ExpertsBlock:
    """One mixture: ``gate.weight`` [E, hidden], ``experts.gate_up_proj`` [E, 2I, hidden], ``down_proj`` [E, hidden, I].

    The first I rows of an expert's gate_up are its gate, the others its up projection. ``router`` is what the gate is
    called. What else the block may hold (shared experts) stays as it is.
    """

    path: str
    layer: int
    shapes: Mapping[str, tuple[int, ...]]
    router: str = ROUTERS[0]
    biases: tuple[str, ...] = ()
    """What the router stores beside its parameters, an entry an expert (``e_score_correction_bias``)."""

    @classmethod
    def read(cls, model: nn.Module, path: str, *, alone: bool = True) -> ExpertsBlock:
        """The mixture at a path. Raises UnsupportedModelError when it has other parameters or shapes.

        Unless they are to be ``alone`` there, beside the experts and their gate may lie what stays as it is.
        """
        shapes = {f"{path}.{name}": tuple(p.shape) for name, p in model.get_submodule(path).named_parameters()}
        layer = next(int(part) for part in path.split(".") if part.isdigit())
        router = next((name for name in ROUTERS if f"{path}.{name}.weight" in shapes), ROUTERS[0])
        stored = model.get_submodule(f"{path}.{router}").named_buffers() if f"{path}.{router}.weight" in shapes else ()
        rows = shapes.get(f"{path}.{router}.weight", (0,))[:1]
        biases = tuple(f"{path}.{router}.{name}" for name, buffer in stored if tuple(buffer.shape) == rows)
        block = cls(path, layer, shapes, router, biases)
        block._check(alone=alone)
        return block

    def _check(self, *, alone: bool) -> None:
        names = (self._gate_up, self._down, self._router)
        missing = sorted(set(names) - set(self.shapes))
        if missing:
            raise UnsupportedModelError(
                f"{self.path} holds {', '.join(self._held())} and no {missing[0].removeprefix(f'{self.path}.')}: its "
                "experts do not lie in the known layout"
            )
        within = self.path if alone else f"{self.path}.experts"
        odd = sorted(each for each in self.shapes if each.startswith(f"{within}.") and each not in names)
        if odd:
            raise UnsupportedModelError(
                f"{odd[0]} with shape {self.shapes[odd[0]]} does not belong to the known layout of experts"
            )
        gate_up, down, router = (self.shapes[name] for name in names)
        if gate_up != (router[0], 2 * down[-1], router[1]) or down[:2] != (router[0], router[1]):
            raise UnsupportedModelError(
                f"{self.path}: the experts' shapes {gate_up}, {down} and the router's {router} do not fit together"
            )

    def _held(self) -> list[str]:
        return [f"{name.removeprefix(f'{self.path}.')} {shape}" for name, shape in self.shapes.items()][:SHOWN]

    @property
    def _gate_up(self) -> str:
        return f"{self.path}.experts.gate_up_proj"

    @property
    def _down(self) -> str:
        return f"{self.path}.experts.down_proj"

    @property
    def _router(self) -> str:
        return f"{self.path}.{self.router}.weight"

    def hidden_slices(self) -> tuple[Slice, ...]:
        """What reads the hidden channels (gates, up projections and the router), and what writes them."""
        readers = Slice(self._gate_up, 2, role=Role.CONSUME), Slice(self._router, 1, role=Role.CONSUME)
        return (*readers, Slice(self._down, 1, role=Role.PRODUCE))

    def dimensions(self, *, whole_experts: bool = True) -> list[Dimension]:
        """The experts as units, with their router rows (``whole_experts``); and the channels inside each expert."""
        experts, _, channels = self.shapes[self._down]
        whole = (
            Slice(self._gate_up, 0, role=Role.OWN),
            Slice(self._down, 0, role=Role.OWN),
            Slice(self._router, 0, role=Role.ROUTE),
        )
        kind, stored = Kind.EXPERTS, tuple(Slice(name, 0) for name in self.biases)
        found = [Dimension(f"layers.{self.layer}.{kind}", kind, self.layer, experts, whole, str(kind), buffers=stored)]
        found = found if whole_experts else []
        kind = Kind.EXPERT_CHANNELS
        for expert in range(experts):
            inside = (
                Slice(self._gate_up, 1, ((0, 1), (channels, 1)), Role.PRODUCE, at=expert),
                Slice(self._down, 2, role=Role.CONSUME, at=expert),
            )
            name = f"layers.{self.layer}.{kind}.{expert}"
            found.append(Dimension(name, kind, self.layer, channels, inside, str(kind)))
        return found

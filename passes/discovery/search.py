"""Describe: the family of a model type that nobody described, discovered and proven, or refused with the reason."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from passes.discovery.blocks import fixed_of, mixtures_of, mlps_of
from passes.discovery.cache import default_cache, key_of, read_family, write_family
from passes.discovery.entries import channel_entries, expert_entries, with_entries
from passes.discovery.layouts import attention_kinds, combinations
from passes.discovery.proof import prove
from passes.discovery.small import random_model, small_config, small_configs
from passes.errors import LpcError, UnsupportedModelError
from passes.families import (
    FAMILIES,
    Family,
    Proof,
    attention_blocks,
    check_dense,
    family_of,
    fixed_blocks,
    remember,
    tried,
)
from passes.graph import Kind
from passes.models import Probe, Task, has_own_sizes, quiet, ran_out, reason, respond, task_of, twin_of
from passes.trace import trace

logger = logging.getLogger(__name__)

OWN_SIZES = ("compact", "per_layer_config", "allow_global_per_layer_attribute_access", "auto_map", "architectures")
"""Entries by which a compact model's configuration says that layers have sizes of their own."""


def describe(config: PreTrainedConfig, kind: type[PreTrainedModel], *, cache: Path | None = None) -> Family:
    """The family of a model: the described one, or one that is discovered and proven, and remembered for its type.

    What was discovered is kept in ``cache`` (default: ``discovered`` in ``LPC_CACHE`` or ``~/.cache/lpc``). Raises
    UnsupportedModelError with the reason, and with the first check that failed where nothing could be proven.
    """
    check_dense(config)
    if config.model_type not in FAMILIES:
        dense = _dense_config(config)
        stock = getattr(kind, "stock_class", kind)
        with quiet():
            remember(config.model_type, _kept(dense, stock, cache or default_cache()))
    return family_of(config)


def _kept(config: PreTrainedConfig, kind: type[PreTrainedModel], cache: Path) -> Family:
    """The family, from the cache where it is there."""
    task_of(kind)
    small = small_config(kind, config)
    key = key_of(kind, type(config), small.to_dict())
    path = cache / f"{key}.json"
    found = IN_PROCESS.get(path) or read_family(path)
    if found is None:
        try:
            found = _Search(kind, *small_model(kind, config)).proven()
        except UnsupportedModelError as error:
            write_family(path, str(error))
            raise
        write_family(path, found)
    IN_PROCESS[path] = found
    return found


def small_model(kind: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[PreTrainedConfig, PreTrainedModel]:
    """The first small configuration, from the smallest on, whose random model can be asked anything; with that model.

    Raises UnsupportedModelError if the class has no task, if none is small, or if none runs.
    """
    task_of(kind)
    errors = list[Exception]()
    for small in small_configs(kind, config):
        model = random_model(kind, small)
        try:
            respond(model, Probe.of(model))
        except LpcError:
            raise
        except Exception as error:  # whatever a class raises for what it was not made for
            if _of_the_machine(error):
                raise
            errors.append(error)
        else:
            return small, model
    raise UnsupportedModelError(
        f"a small random {kind.__name__} does not run on a padded batch of {kind.main_input_name} alone "
        f"({type(errors[0]).__name__}: {reason(errors[0])}), so nothing of it can be proven"
    ) from errors[0]


IN_PROCESS: dict[Path, Family] = {}
"""What this process has discovered or read, by the file that it is kept in."""


def _dense_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration without what makes a compact model's layers smaller: its other entries are the dense ones."""
    if not has_own_sizes(config):
        return config
    values = {name: value for name, value in config.to_dict().items() if name not in OWN_SIZES}
    return type(config).from_dict(values)


UNSURE = "could not be proven to be understood"


def _with_reason(fixed: Mapping[str, str], failures: Sequence[LpcError]) -> dict[str, str]:
    """What stays, where what lets more go was tried and failed with the first of these failures."""
    return {name: f"{why}: {reason(failures[0])}" if why.endswith(UNSURE) else why for name, why in fixed.items()}


def _beside(candidate: Family, error: LpcError) -> LpcError:
    """A failure of a candidate with what stays in it, where that is why the rest cannot be followed or proven."""
    whys = "; ".join(dict.fromkeys(why for why in candidate.fixed.values() if not why.endswith(UNSURE)))
    if not whys or whys.partition("; ")[0] in str(error):
        return error
    return UnsupportedModelError(f"{whys}; and with that as it is: {reason(error)}")


def _of_the_machine(error: Exception) -> bool:
    """Whether an error says something of this machine at this time, and so nothing of a model type."""
    return isinstance(error, OSError) or ran_out(error)


UNPROVEN = Proof(worst=math.inf, checks=())
"""What a candidate has until it is proven."""


@torch.no_grad()
def _outputs(model: PreTrainedModel, family: Family) -> dict[str, int]:
    """How many values fixed blocks and mixtures return, by the names of their classes: those that return a tuple."""
    found: dict[str, int] = {}

    def note(block: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, tuple):
            found[type(block).__name__] = len(output)

    hidden = [*fixed_blocks(model, family), *(path for path, _ in mixtures_of(model))]
    handles = [model.get_submodule(path).register_forward_hook(note) for path in hidden]
    try:
        if handles:
            respond(model, Probe.of(model))
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class _Search:
    """The search for the family of a small random model."""

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    model: PreTrainedModel
    sizes: dict[tuple[str, ...], int] = field(default_factory=dict)

    def proven(self) -> Family:
        """The first candidate that is proven. Raises the first one's error if none is."""
        failures: list[LpcError] = []
        for candidate in self.candidates():
            try:
                family = self._finished(candidate)
                with tried(self.config.model_type, family):
                    proof, _ = prove(self.model)
            except LpcError as error:
                failures.append(_beside(candidate, error))
            except Exception as error:  # whatever a class raises for what it was not made for
                if _of_the_machine(error):
                    raise
                failures.append(_beside(candidate, UnsupportedModelError(f"{type(error).__name__}: {error}")))
            else:
                logger.info("%s is %s", self.config.model_type, proof)
                fixed, stays = (_with_reason(each, failures) for each in (family.fixed, family.stays))
                return replace(family, proof=proof, fixed=fixed, stays=stays)
            logger.debug("no family of %s: %s (%s)", self.config.model_type, failures[-1], candidate)
        why = reason(failures[0]) if failures else "it has no layers that are understood"
        raise UnsupportedModelError(
            f"the structure of {self.kind.__name__} ({self.config.model_type}) was looked for, and could not be proven "
            f"on a small random model of it: {why}. To describe it (docs/custom-models.md): {self._sketch()}"
        )

    def _sketch(self) -> str:
        """The lines that would describe the model type, as far as they were found."""
        layouts = next(self.candidates()).attentions
        shown = ("block", "projections", "output", "head_dim")
        said = [", ".join(f"{name}={getattr(each, name)!r}" for name in shown) for each in layouts]
        inside = ", ".join(f"lpc.AttentionLayout({each})" for each in said) or "lpc.AttentionLayout(block=..., ...)"
        return f"lpc.register_attention({self.config.model_type!r}, lpc.Family(({inside},)))"

    def candidates(self) -> Iterator[Family]:
        """Families from the one that lets most go to those where attention, then experts, stay."""
        twin = twin_of(self.kind, self.config)
        kinds = attention_kinds(twin, stacks=self._stacks)
        fitting = [each for each in kinds if each.layouts]
        fixed = fixed_of(twin, kinds)
        mixtures = dict(mixtures_of(twin))
        broken = {path.rpartition(".")[2]: why for path, why in mixtures.items() if why is not None}
        experts = self._experts(twin, [path for path, why in mixtures.items() if why is None])
        held = {path.rpartition(".")[2]: f"its experts {UNSURE}" for path in mixtures}
        for layouts in combinations(fitting):
            for entries in experts:
                yield Family(layouts, fixed={**fixed, **broken}, **entries)
        if mixtures and not broken:
            for layouts in combinations(fitting):
                yield Family(layouts, fixed={**fixed, **held}, experts=None, expert_channels=None)
        mlps = dict.fromkeys(mlps_of(twin, fitting, {**fixed, **broken}), f"its channels {UNSURE}")
        if mlps:
            for layouts in combinations(fitting):
                yield Family(layouts, fixed={**fixed, **broken, **held, **mlps})
        attention = {each.name: f"its attention {UNSURE}" for each in fitting}
        if attention:
            yield Family((), fixed={**fixed, **broken, **attention}, **experts[0])
            if mixtures:
                yield Family((), fixed={**fixed, **held, **broken, **attention})

    @property
    def _stacks(self) -> bool:
        own_heads = "encoder_attention_heads" in self.config.to_dict()
        return own_heads and task_of(self.kind) is Task.SEQ2SEQ_LM

    def _experts(self, twin: PreTrainedModel, paths: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of experts: all of them as units; their channels alone."""
        if not paths:
            return [{}]
        down = twin.get_parameter(f"{paths[0]}.experts.down_proj")
        experts, channels = expert_entries(self.config, down.shape[0], down.shape[2])
        why = f"their removal {UNSURE}" if experts else "no entry of the configuration says how many there are"
        alone: dict[str, Any] = {"experts": None, "expert_channels": channels, "stays": {str(Kind.EXPERTS): why}}
        return [{"experts": experts, "expert_channels": channels}, alone] if experts else [alone]

    def _finished(self, candidate: Family) -> Family:
        """A candidate with the configuration's entries for its sizes."""
        twin = twin_of(self.kind, self.config)
        candidate = replace(candidate, proof=UNPROVEN, outputs=_outputs(self.model, candidate))
        family = with_entries(
            candidate, self.kind, self.config, list(attention_blocks(twin, candidate)), stacks=self._stacks
        )
        size = self._channels(family)
        names = channel_entries(self.config, size, stacks=self._stacks) if size else []
        return replace(family, channels=next(iter(names), None))

    def _channels(self, family: Family) -> int:
        """How many channels the MLPs of the small model have; 0 if they differ, or if there are none."""
        key = tuple(sorted(family.fixed))
        if key not in self.sizes:
            with tried(self.config.model_type, family):
                graph = trace(self.config, torch.float32, model_type=self.kind)
            found = {dimension.size for dimension in graph.of_kind(Kind.MLP_CHANNELS)}
            self.sizes[key] = found.pop() if len(found) == 1 else 0
        return self.sizes[key]

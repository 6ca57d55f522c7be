"""The budget: what the compact model may cost at most, in one measure or several at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from passes.errors import OptionError
from passes.options.check import check
from passes.options.measures import MEASURES, Measure
from passes.options.option import Group, option

Amount: TypeAlias = float | int | str
"""A fraction of the dense model (a float between 0 and 1), or an absolute amount: a number or a text such as 3.5B."""

RUNTIMES = ("onnxruntime-cpu",)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a served model does for one batch: read ``prefill`` tokens at once, then write ``decode`` tokens one by one.

    Its latency is the seconds of that: one prefill call and ``decode`` calls of one token, at the mean past length
    ``prefill + decode // 2``.
    """

    batch: int = option(1, noun="a workload's batch", least=1, help="Sequences at once.")
    prefill: int = option(128, noun="a workload's prefill", least=0, help="Tokens that are read at once.")
    decode: int = option(32, noun="a workload's decode", least=0, help="Tokens that are written one by one.")

    def __post_init__(self) -> None:
        check(self)
        if not self.prefill + self.decode:
            raise OptionError(
                f"a workload's prefill and decode are numbers of tokens, got {self.prefill} and {self.decode}"
            )

    @classmethod
    def parse(cls, text: str) -> Workload:
        """``BATCHxPREFILL+DECODE``, such as 1x128+32. Raises OptionError."""
        found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)", text.strip())
        if found is None:
            raise OptionError(f"workload {text!r}: write it as BATCHxPREFILL+DECODE, such as 1x128+32")
        batch, prefill, decode = map(int, found.groups())
        return cls(batch=batch, prefill=prefill, decode=decode)

    def __str__(self) -> str:
        return f"{self.batch}x{self.prefill}+{self.decode}"


@dataclass(frozen=True)
class Limit:
    """At most ``bound`` of a measure, in its own unit (parameters, MACs a token, bytes, seconds)."""

    measure: str
    bound: float
    asked: str

    def __str__(self) -> str:
        return self.asked


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the compact model may cost at most; several limits hold together.

    An amount is a fraction of the dense model (a float between 0 and 1) or absolute: a whole number, or a text with a
    unit ("3.5B" parameters or MACs a token; "7GB" of weights; "64KiB" of key-value cache a token; "12ms").
    ``latency`` is that of the workload ``at`` on this machine, in ``runtime``; see docs/latency.md.
    """

    parameters: Amount | None = option(None, help="Parameters.")
    macs: Amount | None = option(None, help="Multiplications of one token in linear layers.")
    weight_bytes: Amount | None = option(None, help="Bytes of the weights.")
    kv_cache_bytes: Amount | None = option(None, help="Bytes of the key-value cache a token.")
    latency: Amount | None = option(None, help="Seconds of the workload.")
    at: Workload = option(
        Workload(),
        noun="workload",
        help="What latency is of: batch, prefill and decode tokens. By default 1x128+32.",
        group=Group.REMOVE,
        flag="--workload",
        metavar="BxP+D",
        words=str,
        read=Workload.parse,
    )
    runtime: str = option(RUNTIMES[0], choices=RUNTIMES, help="What latency is measured on.")
    others: Mapping[str, Amount] = option(
        factory=dict, help="Amounts of measures that were registered from outside, by name.", hash=False
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.asked:
            raise OptionError(f"a budget limits at least one of {', '.join(MEASURES)}")
        for name, amount in self.asked.items():
            _check_amount(MEASURES.named(name), amount)

    @classmethod
    def removing(cls, ratio: float) -> Budget:
        """The budget that removes ``ratio`` of the parameters. Raises OptionError unless 0 < ratio < 1."""
        if not 0 < ratio < 1:
            raise OptionError(
                f"ratio must lie strictly between 0 and 1, got {ratio}: 0.3 removes 30 % of the parameters"
            )
        return cls(parameters=1 - float(ratio))

    @classmethod
    def parse(cls, texts: Iterable[str], at: Workload = Workload(), runtime: str = RUNTIMES[0]) -> Budget:
        """A budget from texts such as ``parameters=0.5`` and ``latency=12ms``. Raises OptionError."""
        amounts: dict[str, Amount] = {}
        for text in texts:
            measure, equals, amount = text.partition("=")
            if not equals or measure not in MEASURES:
                raise OptionError(f"budget {text!r}: write MEASURE=AMOUNT, with one of {', '.join(MEASURES)}")
            if measure in amounts:
                raise OptionError(f"the budget limits {measure} twice: {amounts[measure]} and {amount}")
            amounts[measure] = _as_fraction(amount)
        own = [each.name for each in fields(cls)]
        values: dict[str, Any] = {measure: amount for measure, amount in amounts.items() if measure in own}
        others = {measure: amount for measure, amount in amounts.items() if measure not in own}
        return cls(**values, at=at, runtime=runtime, others=others)

    @property
    def asked(self) -> dict[str, Amount]:
        """The amounts as they were asked for, by measure."""
        amounts = {f.name: getattr(self, f.name) for f in fields(self) if f.name in MEASURES} | dict(self.others)
        return {measure: amount for measure, amount in amounts.items() if amount is not None}

    @property
    def needs_latency(self) -> bool:
        """Whether a latency model of this machine is needed."""
        return any(MEASURES[name].needs_latency for name in self.asked)

    def limits(self, dense: Mapping[str, float]) -> tuple[Limit, ...]:
        """The absolute limits, given what the dense model costs in each measure."""
        return tuple(
            Limit(name, _absolute(MEASURES[name], amount, dense[name]), f"{name}={amount}")
            for name, amount in self.asked.items()
        )


def _as_fraction(text: str) -> Amount:
    """A bare number is a whole amount or, with a decimal point, a fraction, as in Python."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _check_amount(measure: Measure, amount: Amount) -> None:
    name = measure.name
    if isinstance(amount, bool) or not isinstance(amount, float | int | str):
        raise OptionError(f"{name}={amount!r} is not an amount: give a fraction, a number or a text with a unit")
    if isinstance(amount, float) and not 0 < amount < 1:
        raise OptionError(
            f"{name}={amount} is not a fraction: it must lie strictly between 0 and 1; give absolute amounts as a "
            f"whole number or a text such as {measure.quoted}"
        )
    if measure.needs_unit and isinstance(amount, int):
        raise OptionError(f"{name}={amount} has no unit: write it as in {measure.quoted}, or a fraction such as 0.5")
    if not isinstance(amount, float) and not measure.parsed(amount) > 0:
        raise OptionError(f"{name}={amount} must be positive")


def _absolute(measure: Measure, amount: Amount, dense: float) -> float:
    return measure.share(amount, dense) if isinstance(amount, float) else measure.parsed(amount)

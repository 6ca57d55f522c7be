"""What is timed and how often."""

from __future__ import annotations

import os
from dataclasses import dataclass

from passes.errors import OptionError
from passes.options import Group, check, option


def _counts(text: str) -> tuple[int, ...]:
    """Whole numbers between commas. Raises OptionError."""
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise OptionError(f"benchmark threads are whole numbers, such as 1,2, not {text!r}") from None


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is timed and how often.

    A round runs every model once, in alternating order. The rounds of a call end early, but not before 6, when they
    have taken ``max_seconds``; the rounds done are recorded.
    """

    repeats: int = option(
        15,
        noun="benchmark repeats",
        least=1,
        help="Counted rounds a call; four times as many for decode steps, which are short.",
        group=Group.ADVANCED,
        common=True,
    )
    warmup: int = option(2, noun="benchmark warmup", least=0, help="Uncounted rounds before them.")
    threads: tuple[int, ...] | None = option(
        None,
        noun="benchmark threads",
        least=1,
        help="Threads of onnxruntime, one after the other if they are several; by default one a core.",
        group=Group.ADVANCED,
        metavar="N,...",
        words=str,
        read=_counts,
    )
    provider: str = option(
        "cpu",
        noun="the benchmark's provider",
        help="Where onnxruntime computes: cpu, or what `lpc doctor` lists of cuda, openvino, ...",
        group=Group.ADVANCED,
        common=True,
    )
    batches: tuple[int, ...] = option((1, 8), noun="benchmark batches", least=1, help="Sequences at once.")
    prefill_tokens: tuple[int, ...] = option(
        (128, 512), noun="benchmark prefill_tokens", least=1, help="Tokens that are read at once."
    )
    decode_pasts: tuple[int, ...] = option(
        (128, 1024), noun="benchmark decode_pasts", least=1, help="Tokens before the one that is written."
    )
    max_seconds: float = option(
        20.0, noun="benchmark max_seconds", least=0, help="When the rounds of a call end early."
    )
    beyond_context: bool = option(
        True,
        help="Also time sequences longer than the model's context, which says something of speed but not of use; such "
        "runs are marked.",
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.batches or not (self.prefill_tokens or self.decode_pasts):
            raise OptionError("benchmark needs a batch size, and a prefill length or a decode length")
        if self.threads is not None and not 0 < len(set(self.threads)) == len(self.threads):
            raise OptionError("benchmark threads: name each number once, and at least one")

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """Threads that onnxruntime gets, one after the other."""
        return self.threads or (os.cpu_count() or 1,)

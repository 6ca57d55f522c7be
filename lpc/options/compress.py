"""All that a compression is asked for, in one value: what a recipe says."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from lpc.options.data import DataOptions
from passes.errors import OptionError
from passes.options import (
    CompensateOptions,
    Group,
    LoraOptions,
    RecoverOptions,
    RunOptions,
    SnapshotOptions,
    Target,
    TraceOptions,
    TuneOptions,
    check,
    option,
)
from passes.ranks import count


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """All options of a compression; ``to_dict`` and ``from_dict`` of ``passes.options`` write and read them."""

    target: Target = option(help="What to reach.")
    trace: TraceOptions = option(TraceOptions(), help="Which dimensions to look for.")
    run: RunOptions = option(RunOptions(), help="What holds for the whole run.")
    data_options: DataOptions = option(DataOptions(), help="How data become sequences.")
    lora: LoraOptions = option(LoraOptions(), help="The adapter.")
    tune: TuneOptions = option(TuneOptions(), help="How units are ranked and the adapters train.")
    compensate: CompensateOptions | bool | None = option(
        None,
        help="Re-solve the projections that read removed units; by default where nothing was tuned yet.",
        group=Group.TUNE,
        flag="--compensate/--no-compensate",
        words=bool,
    )
    recover: RecoverOptions | None = option(None, help="Train the compact model further.")
    snapshots: SnapshotOptions | None = option(None, help="Leave a model at each of several ratios.")
    load_in: str | None = option(
        None,
        choices=("8bit", "4bit"),
        help="Rank and tune on weights of 8 or 4 bits (bitsandbytes); adapters are merged into the source's own.",
        group=Group.ADVANCED,
    )
    trust_remote_code: bool = option(False, help="Run code that comes with a hub model.", group=Group.ADVANCED)

    def __post_init__(self) -> None:
        check(self)
        if self.snapshots is not None and self.load_in:
            raise OptionError("load_in (--load-in) is for one model: leave it out with snapshots (--snapshots)")
        if self.snapshots is not None and (self.compensate or self.recover):
            raise OptionError(
                "compensate and recover (--compensate, --recover-steps) are for one model: leave them out with "
                "snapshots (--snapshots)"
            )

    @property
    def rows_read(self) -> int:
        """Sequences or rows that the run reads at most to rank and to train, by all of its processes."""
        batch, trained = self.run.batch_size, [each for each in (self.tune, self.recover) if each is not None]
        rows = max(each.steps * (each.batch_size or batch) * each.gradient_accumulation for each in trained)
        return max(self.run.samples, count() * rows)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``lpc.compress``, or with ``snapshots`` of ``lpc.compress_family``."""
        names = {each.name for each in fields(self)} - {"snapshots"}
        if self.snapshots is not None:
            names -= {"compensate", "recover", "load_in"}
        found = {name: getattr(self, name) for name in sorted(names)}
        more = vars(self.snapshots) if self.snapshots is not None else {}
        return {**found, **more}

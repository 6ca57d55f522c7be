"""``lpc estimate``: what a run will cost, before it is begun."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lpc.cli.compress import RecipeOptions, target_of, with_recipe
from lpc.cli.console import print_json
from lpc.cli.words import Given, Part
from lpc.options import CompressOptions, DataOptions, OutputOptions
from passes.errors import OptionError
from passes.options import Budget, Group, RunOptions, Target, TraceOptions, TuneOptions, option
from passes.stored import check_model

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
GIB = 2**30


def read_bytes(text: str) -> int:
    """A size such as ``80GB`` or ``24GiB``, in bytes. Raises OptionError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise OptionError("write a size such as 80GB or 24GiB")
    return int(float(found[1]) * UNITS[found[2]])


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """What the run will be done on."""

    device_bytes: int | None = option(
        None,
        least=1,
        most=10**18,
        help="Memory of the device, such as 80GB: whether the run fits, and else which option to change.",
        group=Group.DATA,
        common=True,
        flag="--device",
        metavar="SIZE",
        words=str,
        read=read_bytes,
    )
    flops: float | None = option(
        None,
        above=0,
        help="Operations a second that the device gets through, such as 400e12; by default this machine's, timed for "
        "two seconds.",
        group=Group.DATA,
        common=True,
    )


ESTIMATE = (
    Part(EstimateOptions),
    Part(RecipeOptions),
    Part(Target),
    Part(Budget),
    Part(TraceOptions),
    Part(TuneOptions),
    Part(DataOptions),
    Part(RunOptions, ("dtype", "batch_size", "samples")),
    Part(CompressOptions, ("compensate", "trust_remote_code")),
    Part(OutputOptions, ("json",)),
)


def estimate(given: Given) -> None:
    """Show what compressing MODEL will take, stage by stage. Memory, operations, time; a config.json is enough.

    Without a recipe or preset also what each preset would take.
    """
    plain = not given.of(RecipeOptions)
    given = with_recipe(given)
    model, target = given.arguments["model"], target_of(given)
    tune, data, trace = given.make(TuneOptions), given.make(DataOptions), given.make(TraceOptions)
    check_model(model, weights=False)
    from lpc.cli.tables import show_estimate, show_presets
    from lpc.estimation import estimate as run
    from lpc.estimation import estimate_presets

    more = {name: value for name, value in given.of(CompressOptions).items() if name != "load_in"}
    asked = {**more, "target": target, "tune": tune, "data_options": data, "trace": trace}
    asked["run"] = given.make(RunOptions)
    found = run(model, **asked, **given.of(EstimateOptions))
    presets = estimate_presets(model, found.rate, **asked) if plain else {}
    if given.make(OutputOptions).json:
        print_json({**found.to_json(), "presets": {name: each.to_json() for name, each in presets.items()}})
        return
    show_estimate(found)
    show_presets(presets)

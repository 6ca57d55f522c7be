"""Short forms of lpc.compress: the common options, by their declarations."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from lpc.opening import asked
from lpc.options import OWNERS, DataOptions, Short, check_short, short_names, target_from, with_short
from passes.errors import OptionError
from passes.options import RunOptions, Target, TraceOptions, TuneOptions, declared


def test_short_forms_are_the_common_options_with_their_types() -> None:
    types = {
        option.name: option.type for owner in OWNERS for option in declared(owner) if option.name in short_names(owner)
    }
    own = get_type_hints(Short)
    assert {*own} == {*types} - {"ratio"}  # an argument of its own
    for name, said in own.items():
        assert said == types[name] | None, name


def test_what_is_not_said_stays() -> None:
    given: Short = {"steps": 7, "seed": None, "samples": 4}
    assert with_short(TuneOptions(lr_scheduler="linear"), given) == TuneOptions(steps=7, lr_scheduler="linear")
    assert with_short(RunOptions(seed=3, samples=2), given) == RunOptions(seed=3, samples=4)
    assert with_short(DataOptions(heldout_rows=3), given) == DataOptions(heldout_rows=3)


def test_a_short_form_is_the_whole_runs_and_not_an_override_of_tuning() -> None:
    assert with_short(TuneOptions(), {"seed": 3, "batch_size": 2}) == TuneOptions()


def test_a_target_is_said_once() -> None:
    assert target_from(None, 0.3, {"layout": "per-layer", "steps": 3}) == Target(ratio=0.3, layout="per-layer")
    assert target_from(Target(ratio=0.2), None, {"steps": 3}) == Target(ratio=0.2)
    with pytest.raises(OptionError, match="either target or multiple and ratio, not both"):
        target_from(Target(ratio=0.2), 0.3, {"multiple": 4})


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"unknown option step \(did you mean 'steps'\?\)"):
        check_short({"step": 3})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(("short", "samples"), [({}, 5), ({"samples": 7}, 7)])
def test_samples_of_data_options_are_the_run_s_unless_said_by_themselves(short: Short, samples: int) -> None:
    options = asked(
        None, 0.3, short, TraceOptions(), run=RunOptions(), tune=TuneOptions(), data_options=DataOptions(samples=5)
    )
    assert (options.run.samples, options.data_options.samples) == (samples, None)

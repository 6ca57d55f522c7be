from __future__ import annotations

import pytest
import zoo

from passes.families import FAMILIES
from passes.models import fingerprint


@pytest.mark.parametrize("name", ["gemma2", "granite", "gpt2", "bloom", "mixtral", "bert", "t5", "bart"])
def test_a_plan_is_bound_to_every_entry_that_its_family_calls_meaningful(name: str) -> None:
    model = zoo.build(name)
    before = fingerprint(model)
    for entry in FAMILIES[model.config.model_type].meaningful:
        value = getattr(model.config, entry)
        vars(model.config)[entry] = "another"  # past the checks of types
        assert fingerprint(model) != before, entry
        vars(model.config)[entry] = value
    assert fingerprint(model) == before

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugins import installed

from passes.errors import OptionError, PluginError
from passes.registry import Registry

GROUP = "lpc.tests"
CODE = """
from fractions import Fraction

HALF = Fraction(1, 2)
ODD = "no fraction"
"""


@dataclass
class Named:
    name: str


def fractions() -> Registry[object]:
    from fractions import Fraction

    registry = Registry[object]("fraction", Fraction, GROUP)
    registry.add("third", Fraction(1, 3))
    return registry


def test_entries_are_found_by_name_in_the_order_in_which_they_came() -> None:
    registry = Registry("number", int, GROUP)
    registry.add("two", 2)
    registry.add("one", 1)
    assert list(registry.items()) == [("two", 2), ("one", 1)]
    assert (registry.named("one"), len(registry), "three" in registry) == (1, 2, False)


def test_an_unknown_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(OptionError, match="unknown fraction 'half': choose one of third"):
        fractions().named("half")


@pytest.mark.parametrize(
    ("name", "entry", "match"),
    [("third", 2, "'third' is taken"), ("", 2, "empty"), ("two", "2", "'two' is a str")],
)
def test_an_impossible_entry_is_refused(name: str, entry: object, match: str) -> None:
    registry = Registry[object]("fraction", int, GROUP)
    registry.add("third", 3)
    with pytest.raises(OptionError, match=match):
        registry.add(name, entry)
    assert list(registry) == ["third"]


def test_what_is_registered_in_a_block_is_taken_back() -> None:
    registry = Registry("number", int, GROUP)
    with registry.restored():
        registry.add("one", 1)
        assert "one" in registry
    assert "one" not in registry


def test_an_entry_of_a_package_is_loaded_when_its_name_is_asked_for(tmp_path: Path) -> None:
    with installed(tmp_path, "half_package", GROUP, {"half": "half_package:HALF"}, CODE):
        registry = fractions()
        assert list(registry) == ["third", "half"]
        assert "half" in registry
        assert "half_package" not in sys.modules
        assert str(registry["third"]) == "1/3"
        assert "half_package" not in sys.modules
        assert str(registry.named("half")) == "1/2"
        assert "half_package" in sys.modules


@pytest.mark.parametrize(
    ("value", "code", "match"),
    [
        ("broken_one:HALF", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken_two:MISSING", CODE, "AttributeError.*MISSING"),
        ("broken_three:ODD", CODE, "must be a Fraction, and is a str"),
    ],
)
def test_a_broken_entry_is_one_error_that_names_it_and_its_package(
    tmp_path: Path, value: str, code: str, match: str
) -> None:
    package = value.partition(":")[0]
    with installed(tmp_path, package, GROUP, {"half": value}, code):
        registry = fractions()
        assert str(registry.named("third")) == "1/3"
        with pytest.raises(PluginError, match=rf"'half' that the package '{package}' brings \(lpc\.tests: .*{match}"):
            registry.named("half")


def test_an_entry_with_another_name_than_its_entry_point_is_refused(tmp_path: Path) -> None:
    code = "from test_registry import Named\nENTRY = Named('mine')\n"
    with installed(tmp_path, "misnamed", GROUP, {"yours": "misnamed:ENTRY"}, code):
        registry = Registry("thing", object, GROUP, name_of=lambda entry: getattr(entry, "name", ""))
        with pytest.raises(PluginError, match="calls itself 'mine'"):
            registry.named("yours")


def test_a_package_may_not_take_a_name_that_is_there(tmp_path: Path) -> None:
    with (
        installed(tmp_path, "greedy_package", GROUP, {"third": "greedy_package:HALF"}, CODE),
        pytest.raises(PluginError, match="'greedy_package' brings the fraction 'third', a name that is taken"),
    ):
        list(fractions())


def test_two_packages_may_not_bring_the_same_name(tmp_path: Path) -> None:
    with (
        installed(tmp_path, "first_package", GROUP, {"half": "first_package:HALF"}, CODE),
        installed(tmp_path, "second_package", GROUP, {"half": "second_package:HALF"}, CODE),
        pytest.raises(PluginError, match=r"taken already by the package '(first|second)_package'"),
    ):
        fractions().named("half")

from __future__ import annotations

import inspect
import re

import pytest

from passes import errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_an_lpc_error(cls: type[Exception]) -> None:
    assert issubclass(cls, errors.LpcError)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.OptionError, ValueError),
        (errors.MissingFileError, FileNotFoundError),
        (errors.DataError, ValueError),
        (errors.ModelError, ValueError),
        (errors.UnsupportedModelError, NotImplementedError),
        (errors.PlanError, ValueError),
        (errors.OutputError, OSError),
        (errors.OutputExistsError, FileExistsError),
        (errors.PassError, RuntimeError),
    ],
)
def test_errors_are_caught_by_the_builtin_too(cls: type[Exception], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="the message"):
        raise cls("the message")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"^[ │├└─]*(\w+Error)\b", errors.__doc__, re.MULTILINE)
    assert sorted(drawn) == sorted(cls.__name__ for cls in CLASSES)

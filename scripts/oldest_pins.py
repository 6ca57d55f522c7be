"""The requirements of pyproject.toml, each at its lower bound, as pip takes them: for `make test-oldest`.

    python scripts/oldest_pins.py [--except NAME ...] [PYPROJECT]

Prints ``name==lower`` a line, of the dependencies and of the extra ``dev``. A requirement without a lower bound is an
error: nothing could be said of it. ``--except`` leaves packages out, whose versions another file pins.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*>=\s*(?P<lower>[0-9][0-9A-Za-z.]*)")


def oldest(requirements: Iterable[str]) -> dict[str, str]:
    """The lower bound of each package. Raises ValueError for a requirement that does not read ``name>=version``."""
    found = {}
    for requirement in requirements:
        match = REQUIREMENT.fullmatch(requirement.strip())
        if match is None:
            raise ValueError(f"{requirement!r} in pyproject.toml has no plain lower bound: write name>=version")
        found[match["name"]] = match["lower"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("pyproject", type=Path, nargs="?", default=PYPROJECT)
    parser.add_argument("--except", dest="left_out", nargs="*", default=[], metavar="NAME")
    arguments = parser.parse_args()
    project = tomllib.loads(arguments.pyproject.read_text(encoding="utf-8"))["project"]
    bounds = oldest([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    for name in arguments.left_out:
        del bounds[name]
    for name, lower in sorted(bounds.items()):
        print(f"{name}=={lower}")


if __name__ == "__main__":
    main()

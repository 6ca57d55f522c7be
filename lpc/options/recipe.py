"""A recipe: the options of a compression in a YAML file, all of them or those that are not as by default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from lpc.options.compress import CompressOptions
from lpc.options.data import DataOptions
from lpc.options.instructions import InstructionFormat
from passes.errors import DataError, MissingFileError, OptionError
from passes.options import (
    CompensateOptions,
    LoraOptions,
    RecoverOptions,
    RunOptions,
    SnapshotOptions,
    Target,
    TraceOptions,
    TuneOptions,
    from_dict,
    nearest,
    schema,
    to_dict,
)

__all__ = [
    "PRESET_RECIPES",
    "RECIPE_FILE",
    "check_parts",
    "find_recipe",
    "known_recipes",
    "read_recipe",
    "read_yaml",
    "recipe_options",
    "recipe_schema",
    "recipe_text",
]

RECIPE_FILE = "recipe.yaml"
PRESET_RECIPES: Mapping[str, str | None] = {"fast": "fastest", "default": None, "best": "best"}
"""What ``--preset`` may be, by the recipe that it is short for; None: the options as they are by default."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
PARTS: Mapping[str, type] = {
    "target": Target,
    "trace": TraceOptions,
    "run": RunOptions,
    "data_options": DataOptions,
    "tune": TuneOptions,
    "recover": RecoverOptions,
    "snapshots": SnapshotOptions,
}
"""The parts of a recipe whose options the command line has words for, one by one."""
WHOLE: Mapping[str, type] = {"lora": LoraOptions, "compensate": CompensateOptions}
"""Those that are given as a whole."""
PLAIN = ("load_in", "trust_remote_code")
"""Those that are options themselves."""


def _shipped() -> Any:
    return files("lpc") / "assets" / "recipes"


def known_recipes() -> tuple[str, ...]:
    """The names of the recipes that come with lpc."""
    return tuple(
        sorted(each.name.removesuffix(".yaml") for each in _shipped().iterdir() if each.name.endswith(".yaml"))
    )


def find_recipe(name: str | Path) -> str:
    """The text of a recipe: of a file, of ``OUT/recipe.yaml``, or of one that comes with lpc, by name.

    Raises MissingFileError, naming the nearest, and DataError for a file that cannot be read.
    """
    path = Path(name)
    path = path / RECIPE_FILE if path.is_dir() else path
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the recipe {path} cannot be read: {error}") from error
    if str(name) not in known_recipes():
        known = known_recipes()
        raise MissingFileError(
            f"no recipe file {path}, and none of that name: {', '.join(known)}{nearest(str(name), known)}"
        )
    return str((_shipped() / f"{name}.yaml").read_text(encoding="utf-8"))


def read_recipe(text: str) -> Mapping[str, Any]:
    """The values of a recipe. Raises DataError for a text that is no YAML mapping, OptionError for unknown parts."""
    values = read_yaml(text, "recipe", "`tune: {steps: 200}`")
    check_parts(values)
    return values


def read_yaml(text: str, what: str, example: str) -> Mapping[str, Any]:
    """The mapping that a YAML text says. Raises DataError for what is none; messages say what it should be."""
    import yaml

    try:
        values = yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"the {what} is no YAML: {error}") from error
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise DataError(f"a {what} is a mapping of options, such as {example}, got {values!r:.80}")
    return values


def check_parts(values: Mapping[str, Any]) -> None:
    """Raise OptionError, naming the nearest, for a part that no recipe has."""
    known = (*PARTS, *WHOLE, *PLAIN)
    for name in values:
        if name not in known:
            raise OptionError(f"unknown option {name}{nearest(name, known)}: there are {', '.join(known)}")


def _loader() -> Any:
    """YAML's safe loader, for which 1e-4 is a number too, as in YAML 1.2."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, [*"-+.0123456789"])
    return Loader


def recipe_options(values: Mapping[str, Any]) -> dict[type, dict[str, Any]]:
    """What a recipe says, checked, as the command line holds it: by dataclass, field by field. Raises OptionError."""
    said: dict[type, dict[str, Any]] = {}
    for name, kind in PARTS.items():
        part = values.get(name)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise OptionError(f"{name} must hold options, got {part!r:.80}")
        part = _without_open_ends(part)
        more = {"ratio": 0.5} if kind is Target and not {"ratio", "budget"} & part.keys() else {}
        made: Any = from_dict(kind, {**part, **more}, f"{name}.")
        said[kind] = {each: getattr(made, each) for each in part} or (vars(made) if kind is RecoverOptions else {})
    format = said.get(DataOptions, {}).pop("instructions", None)
    if format is not None:
        said[InstructionFormat] = dict(vars(format))
    rest = {name: values[name] for name in (*WHOLE, *PLAIN) if values.get(name) is not None}
    whole = from_dict(CompressOptions, {**rest, "target": {"ratio": 0.5}})
    said[CompressOptions] = {name: getattr(whole, name) for name in rest}
    return said


def _without_open_ends(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A target's ratio or budget that is not said: one of the two is null in a recipe that a run wrote."""
    return {name: value for name, value in part.items() if value is not None or name not in ("ratio", "budget")}


def recipe_text(options: CompressOptions, head: str = "") -> str:
    """The recipe of a run, with every option; ``head`` is told in comments. Where it was kept is not part of it."""
    import yaml

    plain = to_dict(replace(options, tune=replace(options.tune, checkpoints=None, resume=False)))
    comments = "".join(f"# {line}\n" for line in head.splitlines())
    return comments + str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def recipe_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe, for editors; nothing is required of one."""
    found = {name: each for name, each in schema(CompressOptions).items() if name != "required"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lpc recipe", **found}

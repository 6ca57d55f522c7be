"""``lpc recipe``: what recipes there are, and what one of them says."""

from __future__ import annotations

from dataclasses import dataclass

from lpc.cli import console
from lpc.cli.words import Given, Part
from lpc.options import OutputOptions, find_recipe, known_recipes, read_recipe, recipe_options, recipe_schema
from passes.options import Group, option


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What is shown."""

    schema: bool = option(False, help="Print the JSON schema of recipes, for editors.", group=Group.OUTPUT)


SHOW = (Part(ShowOptions), Part(OutputOptions, ("json",)))


def show(given: Given) -> None:
    """Show a recipe by NAME, file, or output folder; without one, the names of those that come with lpc."""
    name, as_json = given.arguments["name"], given.make(OutputOptions).json
    if given.make(ShowOptions).schema:
        console.print_json(recipe_schema())
    elif name is None:
        for each in known_recipes():
            console.print_line(f"{each}: {find_recipe(each).splitlines()[0].removeprefix('# ')}")
    else:
        text = find_recipe(name)
        recipe_options(read_recipe(text))
        console.print_json(read_recipe(text)) if as_json else console.print_line(text.rstrip())

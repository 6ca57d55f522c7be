"""The command line. Each command parses, calls the library, and prints what came back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpc import __version__
from lpc.cli import commands, console, plans, recipe, sweep, written
from lpc.cli.compress import PARTS, compress
from lpc.cli.estimate import ESTIMATE, estimate
from lpc.cli.interruption import Commands
from lpc.cli.words import add_command, argument

app = typer.Typer(
    name="lpc",
    cls=Commands,
    help="Make a trained transformer smaller: prune heads and MLP channels while tuning, verify, export to ONNX.",
    no_args_is_help=True,
    epilog="Exit codes: 0 well, 1 an error that nobody foresaw or a failed verify, 2 what you can mend, "
    "130 interrupted, 143 terminated.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

MODEL = argument("model", str, "MODEL", "A model folder, or a name on the Hugging Face hub.")
PLAN = argument("plan", Path, "PLAN", "A plan.json.")
WRITTEN = argument("folder", Path, "DIR", "An lpc output, an ONNX package, or a checkpoint.")

add_command(app, compress, [MODEL], PARTS, shared=True)
add_command(app, estimate, [MODEL], ESTIMATE)
add_command(app, commands.inspect, [MODEL], commands.INSPECT)
add_command(app, commands.export, [argument("folder", Path, "HF_DIR", "A checkpoint.")], commands.EXPORT)
add_command(
    app, commands.benchmark, [argument("folder", Path, "DIR", "An lpc output, or an ONNX folder.")], commands.BENCHMARK
)
add_command(
    app,
    commands.evaluate,
    [argument("folder", Path, "DIR", "An lpc output, a checkpoint, or an ONNX folder.")],
    commands.EVALUATE,
)
add_command(app, written.verify, [WRITTEN], written.VERIFY)
add_command(app, written.serve, [WRITTEN], written.SERVE)
add_command(app, commands.compare, [argument("runs", list[Path], "RUN...", "Outputs of lpc.")], commands.COMPARE)
add_command(app, sweep.sweep, [argument("file", Path, "FILE", "A sweep.yaml: model, data, grid.")], sweep.SWEEP)
add_command(app, commands.doctor, [], commands.DOCTOR)
add_command(app, commands.demo, [], commands.DEMO)
add_command(app, plans.plan, [MODEL], plans.PLAN)
add_command(app, plans.apply, [PLAN, MODEL], plans.APPLY)
add_command(
    app,
    plans.diff,
    [argument("first", Path, "PLAN", "A plan.json."), argument("second", Path, "PLAN", "Another.")],
    plans.DIFF,
)


def _tell_version(asked: bool) -> None:
    if asked:
        console.print_line(f"lpc {__version__}")
        raise typer.Exit


VERSION = typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_tell_version)


@app.callback()
def everywhere(
    version: Annotated[bool, VERSION] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bars and warnings, only results and errors.")] = False,
) -> None:
    """Make a trained transformer smaller: prune heads and MLP channels while tuning, verify, export to ONNX."""
    if quiet:
        console.keep_quiet()


recipes = typer.Typer(no_args_is_help=True, help="Recipes: the options of lpc compress in a file.")
words = argument("name", str | None, "[RECIPE]", "A name, a recipe.yaml, or an output folder.", None)
add_command(recipes, recipe.show, [words], recipe.SHOW)
app.add_typer(recipes, name="recipe")


def main() -> None:
    """The ``lpc`` command: exit code 0 when all is well, 2 with one message for what the user can mend."""
    with console.user_errors():
        console.prepare_process()
        app()

"""``lpc sweep``: a grid of options, each cell one compression."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from lpc.cli import console
from lpc.cli.progress import progress_shown
from lpc.cli.words import Given, Part
from lpc.options import OutputOptions, SweepOptions
from passes.errors import OptionError
from passes.options import Group, check, option


@dataclass(frozen=True, kw_only=True)
class SweepingOptions:
    """How the cells are run, or what is done in place of running them all."""

    jobs: int = option(
        1,
        least=1,
        most=1024,
        help="Cells at once, each a process of its own; cores, and several GPUs, are shared out among them.",
        group=Group.OUTPUT,
        common=True,
    )
    cell: str | None = option(
        None, help="Run this one alone, by number or name.", group=Group.OUTPUT, common=True, metavar="N|NAME"
    )
    slurm: bool = option(False, help="Run nothing: print an array script for sbatch.", group=Group.OUTPUT, common=True)
    gather: bool = option(
        False, help="Run nothing: write the report of the cells that are there.", group=Group.OUTPUT, common=True
    )

    def __post_init__(self) -> None:
        check(self)
        if sum((self.cell is not None, self.slurm, self.gather)) > 1:
            raise OptionError("--cell, --slurm and --gather each stand alone: leave all but one out")


SWEEP = (Part(SweepingOptions), Part(OutputOptions, ("out", "json"), {"out": Path("sweep-out")}))


def sweep(given: Given) -> None:
    """Compress by every cell of a grid of options. Ends with one report and the Pareto front.

    FILE says what is tried (docs/sweep.md). The same command goes on where it was: finished cells are kept. Exit code 2
    if a cell failed.
    """
    asked, output = given.make(SweepingOptions), given.make(OutputOptions)
    declaration = SweepOptions.read(given.arguments["file"])
    cell = declaration.cell(asked.cell) if asked.cell is not None else None
    from lpc.cli.tables import show_cell, show_sweep
    from lpc.sweeping import SweepFolder, begun, run_cell, slurm_script
    from lpc.sweeping import sweep as run

    folder = SweepFolder(path=output.out)
    if cell is None and not asked.slurm:
        with progress_shown() as progress:
            report = run(declaration, output.out, jobs=asked.jobs, gather=asked.gather, progress=progress)
        show_sweep(report, output.out, as_json=output.json)
        if not (report.is_whole or asked.gather):
            sys.exit(console.USER_ERROR)
        return
    begun(declaration, folder)
    if cell is None:
        script = slurm_script(declaration, folder)
        console.print_json({"script": script}) if output.json else console.print_line(script.rstrip())
        return
    with progress_shown() as progress:
        outcome = run_cell(declaration, cell, folder, progress)
    if not show_cell(cell, outcome, folder.output(cell), as_json=output.json):
        sys.exit(console.USER_ERROR)

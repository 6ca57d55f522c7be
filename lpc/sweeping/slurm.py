"""A sweep as an array of Slurm, one task a cell."""

from __future__ import annotations

import shlex

from lpc.options import SweepOptions
from lpc.sweeping.folder import CELLS, DECLARATION, SweepFolder

SCRIPT = """#!/bin/bash
#SBATCH --job-name=lpc-sweep
#SBATCH --array=0-{last}
#SBATCH --output={log}
# Add what your cluster asks for, such as --partition, --gres=gpu:1, --cpus-per-task, --mem and --time. A task that runs
# out of time goes on where it was when the array is submitted again; finished cells are left as they are.
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
srun {command} --cell "$SLURM_ARRAY_TASK_ID"
# When all are done: {command} --gather
"""


def slurm_script(sweep: SweepOptions, folder: SweepFolder) -> str:
    """The text of a script for ``sbatch``, to be submitted where the paths of the sweep are seen from."""
    command = shlex.join(["lpc", "sweep", str(folder.path / DECLARATION), "--out", str(folder.path)])
    log = folder.path / CELLS / "%a.slurm.log"
    return SCRIPT.format(last=len(sweep.cells) - 1, log=log, command=command)

"""``lpc compress --snapshots``: a model at each of several ratios in one run."""

from __future__ import annotations

from pathlib import Path

from lpc.cli import console
from lpc.cli.tables import show_family
from lpc.family import compress_family
from lpc.material import DataOptions
from passes.budget import Target
from passes.trace import TraceOptions
from passes.tuning import SnapshotOptions, TuneOptions


def run_family(
    model: str,
    data: list[Path],
    snapshots: SnapshotOptions,
    out: Path,
    *,
    target: Target,
    tune: TuneOptions,
    text: DataOptions,
    trace: TraceOptions,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    export: tuple[str, ...],
    benchmark: bool,
    force: bool,
    json: bool,
) -> None:
    """Compress, save and print. Raises LpcError."""
    with console.progress_bars() as progress:
        family = compress_family(
            model,
            data,
            snapshots.ratios,
            cooldown=snapshots.cooldown,
            target=target,
            tune=tune,
            text=text,
            trace=trace,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        report = family.save(out, export=export, benchmark=benchmark, force=force, progress=progress)
    show_family(report, out, as_json=json)

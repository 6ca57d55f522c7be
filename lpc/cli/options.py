"""Options that several commands share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lpc.data import InstructionFormat
    from passes.budget import Target
    from passes.tuning import RecoverOptions, SnapshotOptions, TuneOptions

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Write into an output folder that is not empty.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a name on the Hugging Face hub.")]
Out = Annotated[Path, typer.Option(help="Output folder.")]
Export = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Formats to write (default: hf,onnx)."),
]
Onnx = Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write the ONNX package too; short for --export.")]
QueryHeads = Annotated[bool, typer.Option("--query-heads", help="Keep all KV heads; prune query heads inside a group.")]
CustomCode = Annotated[
    bool, typer.Option("--custom-code", help="Allow sizes that no stock class holds; adds a modelling file.")
]
Depth = Annotated[
    str | None, typer.Option(help="Whole units of depth may go too: layers, or blocks (attention and MLP apart).")
]
Hidden = Annotated[bool, typer.Option("--hidden", help="The hidden size may shrink too (families with RMS norms).")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.")]

PromptTemplate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Prompt of instruction data: a text with {instruction}, and {input} (default: Alpaca's)."
    ),
]

Compensate = Annotated[
    bool | None,
    typer.Option("--compensate/--no-compensate", help="Solve output projections anew (default: if nothing was tuned)."),
]
Distill = Annotated[
    float | None,
    typer.Option(metavar="WEIGHT", help="Share of the loss that is the dense model's, 0 to 1 (default 0.5; 0: none)."),
]
OneShot = Annotated[
    bool | None,
    typer.Option("--one-shot/--progressive", help="Remove all before tuning, or on the way (default: by criterion)."),
]
RecoverSteps = Annotated[int | None, typer.Option(help="Optimizer steps on the compact model, at most.")]

Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps, or auto, what is there.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: fp32, bf16, fp16, or auto, as they are stored.")]

Ratio = Annotated[float | None, typer.Option(help="Share of all parameters to remove; short for a --budget.")]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="MEASURE=AMOUNT",
        help="What may stay: parameters, macs, weight_bytes, kv_cache_bytes or latency, as a fraction of dense (0.5) "
        "or absolute (3.5B, 7GB, 12ms). May be repeated; all hold together.",
    ),
]
At = Annotated[
    str, typer.Option("--workload", metavar="BxP+D", help="What latency is of: batch, prefill and decode tokens.")
]
LayoutName = Annotated[str, typer.Option("--layout", help="uniform: the same widths everywhere. per-layer: its own.")]
Multiple = Annotated[int | None, typer.Option(help="Round MLP widths to this (default: 64 from 1024 up, else 8).")]
MinHeads = Annotated[int, typer.Option(help="Least KV heads (or query heads, if these go) a layer.")]
MinChannels = Annotated[int, typer.Option(help="Least MLP channels a layer.")]
Protect = Annotated[
    list[str] | None, typer.Option(help="A layer that stays whole, such as layers.0 or layers.-1; may be repeated.")
]
Freeze = Annotated[
    list[str] | None, typer.Option(help="A dimension or kind that stays whole, such as kv_groups; may be repeated.")
]
ComparisonName = Annotated[
    str, typer.Option("--comparison", help="How layers' scores compare: raw, kind or dimension (docs/budgets.md).")
]

Snapshots = Annotated[
    str | None,
    typer.Option(metavar="R,R,...", help="Ascending ratios: leave a model at each, OUT/0.1 and so on, and one curve."),
]
SnapshotSteps = Annotated[
    int | None, typer.Option(help="Steps to heal at each of --snapshots (default: a part of the schedule's).")
]
Timed = Annotated[bool, typer.Option("--benchmark", help="With --snapshots: time all models against the dense one.")]

DEFAULT_WORKLOAD = "1x128+32"
DEFAULT_COMPARISON = "kind"


def target_of(
    ratio: float | None,
    limits: list[str] | None,
    at: str,
    layout: str,
    multiple: int | None,
    min_heads: int,
    min_channels: int,
    protect: list[str] | None,
    freeze: list[str] | None,
    comparison: str,
) -> Target:
    """The target that the options say. Raises OptionError."""
    from passes.budget import Budget, Target, Workload

    workload = Workload.parse(at)
    return Target(
        ratio=ratio,
        budget=Budget.parse(limits, at=workload) if limits else None,
        layout=layout,
        multiple=multiple,
        min_heads=min_heads,
        min_channels=min_channels,
        protect=tuple(protect or ()),
        freeze=tuple(freeze or ()),
        comparison=comparison,
    )


def exports_of(names: str | None, onnx: bool) -> tuple[str, ...]:
    """The formats that the options name. Raises OptionError."""
    from exporters.registry import DEFAULT_EXPORTS, chosen

    asked = DEFAULT_EXPORTS if names is None else tuple(name.strip() for name in names.split(",") if name.strip())
    return tuple(chosen(name for name in asked if onnx or name != "onnx"))


def instructions_of(template: Path | None) -> InstructionFormat | None:
    """The format that a template file asks for. Raises MissingFileError, DataError, OptionError."""
    from lpc.data import InstructionFormat, read_text

    return None if template is None else InstructionFormat(template=read_text(template))


def snapshots_of(text: str | None, cooldown: int | None, timed: bool) -> SnapshotOptions | None:
    """The snapshots that the options ask for. Raises OptionError."""
    from passes.errors import OptionError
    from passes.tuning import SnapshotOptions

    if text is None and (cooldown is not None or timed):
        raise OptionError("--snapshot-steps and --benchmark go with --snapshots; one model is timed by lpc benchmark")
    return None if text is None else SnapshotOptions.parse(text, cooldown)


@dataclass(frozen=True)
class Healing:
    """What the options say of tuning, of compensation and of recovery."""

    tune: TuneOptions
    compensate: bool | None
    recover: RecoverOptions | None


def healing_of(
    tune: TuneOptions, one_shot: bool | None, compensate: bool | None, distill: float | None, recover_steps: int | None
) -> Healing:
    """Tuning with its schedule and distillation, and what follows it. Raises OptionError."""
    from passes.tuning import ONE_SHOT, DistillOptions, RecoverOptions, Schedule

    taught = tune.distill if distill is None else DistillOptions(weight=distill) if distill else None
    schedule = tune.schedule if one_shot is None else ONE_SHOT if one_shot else Schedule()
    tune = replace(tune, distill=taught, schedule=schedule)
    recover = None
    if recover_steps is not None:  # a teacher for it is a second model in memory: only if asked for
        recover = RecoverOptions(steps=recover_steps, bf16=tune.bf16, distill=taught if distill else None)
    return Healing(tune, compensate, recover)


def check_family(healing: Healing) -> None:
    """Raise OptionError for what a family of models does not do."""
    from passes.errors import OptionError

    if healing.compensate or healing.recover:
        raise OptionError("--compensate and --recover-steps are for one model: leave them out with --snapshots")

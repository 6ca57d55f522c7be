"""What the command line alone says: what data there are, where results go, and what is printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporters.files import PACKAGE, REPOSITORY, Owned
from exporters.options import DEFAULT_EXPORTS, EXPORTER_NAMES
from passes.errors import OptionError
from passes.options import AUTO, Group, check, names_in, option

YES, NO = "yes", "no"
ONNX, TRITON = "onnx", "triton"


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What a command reads beside the model."""

    data: tuple[Path, ...] = option(
        (),
        help="What to rank, tune and measure on. A causal LM: text, or .jsonl files with text, with prompts and "
        "answers or with messages; by default what it writes itself. Any model: .jsonl files with its inputs and "
        "labels, or a folder saved by datasets' save_to_disk.",
        group=Group.DATA,
        common=True,
        repeated=True,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where a command writes, and what it prints. Each command has those that it names."""

    out: Path = option(Path("lpc-out"), help="Output folder.", group=Group.OUTPUT, common=True)
    export: tuple[str, ...] = option(
        DEFAULT_EXPORTS,
        choices=EXPORTER_NAMES.known,
        help="Formats to write, by name.",
        group=Group.OUTPUT,
        metavar="NAME,...",
        words=str,
        read=names_in,
    )
    onnx: bool = option(
        True,
        help="Write the ONNX package too; --no-onnx is short for an --export without it.",
        group=Group.OUTPUT,
        flag="--onnx/--no-onnx",
        common=True,
    )
    format: str = option(
        ONNX,
        choices=(ONNX, TRITON),
        help="What of the graphs is written: the ONNX package, or a Triton model repository with it.",
        group=Group.OUTPUT,
    )
    streamed: str = option(
        AUTO,
        choices=(AUTO, YES, NO),
        help="Write the ONNX package of a causal language model a tensor at a time, and compare it a layer at a time; "
        "auto: where the loaded model would need more memory than is free.",
        group=Group.OUTPUT,
    )
    force: bool = option(False, help="Replace an output that is there already.", group=Group.OUTPUT)
    fresh: bool = option(False, help="Begin anew where an unfinished run was kept.", group=Group.OUTPUT)
    benchmark: bool = option(False, help="With --snapshots: time all models against the dense one.", group=Group.OUTPUT)
    json: bool = option(False, help="Print one JSON object instead of tables.", group=Group.OUTPUT)

    def __post_init__(self) -> None:
        check(self)
        if self.is_repository and self.streams:
            raise OptionError("a Triton repository is not written a tensor at a time: leave --streamed yes out")

    @property
    def streams(self) -> bool | None:
        """Whether weights go through one at a time; None: where the loaded model would be too large."""
        return None if self.streamed == AUTO else self.streamed == YES

    @property
    def is_repository(self) -> bool:
        """Whether ``lpc export`` writes a Triton model repository."""
        return self.format == TRITON

    @property
    def owned(self) -> Owned:
        """What ``lpc export`` owns in the folder that it writes into."""
        return REPOSITORY if self.is_repository else PACKAGE

    @property
    def exports(self) -> tuple[str, ...]:
        """The formats to write. Raises OptionError if there are none."""
        asked = tuple(name for name in self.export if self.onnx or name != "onnx")
        if not asked:
            raise OptionError(f"name at least one format to export: {', '.join(EXPORTER_NAMES.known())}")
        return asked

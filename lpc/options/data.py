"""How data become sequences."""

from __future__ import annotations

from dataclasses import dataclass

from lpc.options.instructions import InstructionFormat
from passes.options import Group, check, left_to_run, option


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data become sequences, and what of them is held out: neither scored nor tuned on, only measured."""

    sequence_length: int | None = option(
        None,
        least=2,
        help="Tokens a sequence; by default 256 for text and 512, the most a row has, for instructions, or the model's "
        "context if that is shorter.",
        group=Group.DATA,
        common=True,
    )
    heldout_fraction: float = option(
        0.05, above=0, below=1, help="Share held out: of text the end of the stream, of rows a random choice."
    )
    heldout_sequences: int = option(64, least=1, help="Sequences of text that are held out at most.")
    heldout_rows: int = option(1000, least=1, help="Rows that are held out at most.")
    sentences: int = option(
        4096,
        least=2,
        help="Texts that an embedding model is ranked and tuned on at most, a random choice: the dense model first "
        "gives its vectors of all of them.",
        group=Group.DATA,
    )
    samples: int | None = left_to_run("samples")
    self_share: float | None = option(
        None,
        least=0,
        most=1,
        help="Share of the sequences to rank and tune on that the model writes itself, drawn before anything else: "
        "chats by its chat template, else texts. By default all where no data are given, a quarter where a model with "
        "a chat template gets plain text, else none.",
        group=Group.DATA,
        flag="--self-data",
        metavar="SHARE",
    )
    self_sequences: int = option(
        256,
        least=2,
        help="Sequences that the model writes at most, in a mix their share; longer tuning takes them repeatedly.",
        group=Group.DATA,
    )
    self_seconds: float = option(
        600.0,
        above=0,
        most=604_800,
        help="Seconds after which it begins no further batch of them (eight of the run's batches at once).",
        group=Group.DATA,
    )
    self_temperature: float = option(
        1.0,
        above=0,
        most=10,
        help="Temperature that it draws their tokens at: 1 as it would say them, below 1 the likely ones more often.",
        group=Group.DATA,
    )
    instructions: InstructionFormat | None = option(
        None,
        help="How prompts and answers become rows; by default as the columns are, where data have no text.",
    )

    def __post_init__(self) -> None:
        check(self)

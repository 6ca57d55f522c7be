"""The way from what the user said of data to what a run is made on, and what of it the model writes itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Sized
from dataclasses import replace
from typing import cast

from lpc.data import TEXT_LENGTH, Reading, RowFormat, TokenBlocks, check_size
from lpc.evaluation import check_asked, replies
from lpc.generation import GeneratePass, Mixed, OwnText, Script, mixed_count
from lpc.material.material import AnyData, Material, of_data, of_text
from lpc.options import DataOptions
from lpc.source import Source
from passes.errors import DataError, OptionError, TokenizerError
from passes.models import base_model
from passes.ranks import sharded

__all__ = ["prepare"]

logger = logging.getLogger(__name__)

CHAT_SHARE = 0.25
"""The share of chats of its own making in what a model with a chat template is tuned on, where it is given text."""


def prepare(source: Source, data: AnyData | None, options: DataOptions, reads: int | None = None) -> Material:
    """Read the data for a model; None: the model's own, which it has yet to write, and not more than a run ``reads``.

    Raises DataError, MissingFileError, TokenizerError (before anything is read, for a tokenizer with more tokens than
    the model), OptionError, and ModelError for a model that cannot be batched.
    """
    model = base_model(source.model)
    reading = Reading(
        rows=RowFormat.of(type(model), model.config),
        tokenizer=source.tokenizer,
        sequence_length=options.sequence_length,
        instructions=options.instructions,
    )
    if source.tokenizer is not None and reading.rows.vocabulary is not None:
        check_size(source.tokenizer, reading.rows.vocabulary)
    most = options.self_sequences if reads is None else min(options.self_sequences, reads)
    material = _material(source, data, reading, options, most)
    tokenizer = source.tokenizer
    if not reading.is_causal or tokenizer is None or tokenizer.chat_template is None or sharded():
        return material  # sharded weights (FSDP) are there only for all processes together
    try:
        check_asked(model, tokenizer)
    except (DataError, TokenizerError) as error:
        logger.warning("the fixed prompts are not asked: %s", error)
        return material
    return replace(material, answer=lambda answering: replies(answering, tokenizer))


def _material(source: Source, data: AnyData | None, reading: Reading, options: DataOptions, most: int) -> Material:
    if data is None:
        return _of_own(source, reading, options, most)
    material, blocks = of_data(source, data, reading, options)
    if blocks is not None:
        return _with_own(source, material, blocks, options, most)
    if options.self_share:
        raise OptionError(f"self_share (--self-data) {options.self_share} goes with text, and the data are rows")
    return replace(material, options=replace(options, self_share=0.0))


def _of_own(source: Source, reading: Reading, options: DataOptions, most: int) -> Material:
    """Nothing but what the model writes, ``most`` sequences and those of them that are held out, the first."""
    if not reading.is_causal:
        wanted = ", ".join([*reading.rows.inputs, *reading.rows.task.label_names])
        raise DataError(
            f"no data are given, and {reading.rows.model} ({reading.rows.task}) writes none by itself: give data= "
            f"(--data), rows with its inputs and labels ({wanted})"
        )
    if options.self_share not in (None, 1.0):
        raise OptionError(f"self_share (--self-data) {options.self_share} needs data for the rest: give data= (--data)")
    count = min(options.self_sequences, math.ceil(most / (1 - options.heldout_fraction)) + 1)
    heldout = max(1, min(options.heldout_sequences, round(options.heldout_fraction * count)))
    script = Script.of(base_model(source.model), source.tokenizer)
    own = OwnText(script, length=reading.length(TEXT_LENGTH), count=count - heldout, heldout=heldout)
    material = of_text(source, own, own.length, own.held)
    note = f"no data were given: ranked, tuned and measured on {_told(own, count)}"
    return _generating(material, own, count, replace(options, self_share=1.0), (note,))


def _with_own(source: Source, material: Material, blocks: TokenBlocks, options: DataOptions, most: int) -> Material:
    """The user's text with the model's own in it: as large a share as was asked for, or as a model that chats gets."""
    forgets = _is_plain(source, blocks)
    share = options.self_share if options.self_share is not None else CHAT_SHARE if forgets else 0.0
    given, length = len(cast(Sized, material.train)), material.context_length
    assert length is not None
    count = most if share == 1 else math.floor(share * mixed_count(given, share))
    count = min(math.ceil(share * most), count)
    if options.self_share and not count:
        raise OptionError(
            f"self_share (--self-data) {options.self_share} of {given} sequences is none: give more text, or 1"
        )
    share = share if count else 0.0
    settled, notes = replace(options, self_share=share), tuple[str, ...]()
    if forgets:
        logger.warning(
            "the tokenizer has a chat template and the data are plain text, by which a model may forget how to answer: "
            "%s of what is tuned on are chats of its own making (--self-data); chats as data are best",
            f"{share:.0%}" if share else "none",
        )
        notes = ("a model with a chat template was given plain text, by which it may forget how to answer",)
    if not count:
        return replace(material, options=settled, notes=notes)
    own = OwnText(Script.of(base_model(source.model), source.tokenizer), length=length, count=count)
    train = own if share == 1 else Mixed(material.train, own, share)
    notes = (*notes, f"{share:.0%} of what it was ranked and tuned on are from {_told(own, count)}")
    return _generating(replace(material, train=train), own, count, settled, notes)


def _generating(material: Material, own: OwnText, count: int, options: DataOptions, notes: tuple[str, ...]) -> Material:
    generate = GeneratePass.of(own, count, options.self_seconds, options.self_temperature)
    return replace(material, generate=generate, options=options, notes=notes)


def _told(own: OwnText, count: int) -> str:
    kind = "chats" if own.script.is_chat else "texts"
    return f"{count} {kind} of {own.length} tokens that the model wrote itself"


def _is_plain(source: Source, blocks: TokenBlocks) -> bool:
    """Whether a model with a chat template is given text in which nothing is marked as its chats are."""
    if source.tokenizer is None or source.tokenizer.chat_template is None:
        return False
    marks = Script.of(base_model(source.model), source.tokenizer).marks
    return not bool(sum((blocks.tensor == mark).any() for mark in marks))

"""compress() and apply(): the whole way from a dense model to a verified compact one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lpc.data import BlockDataset, Data, split_heldout, token_sequences
from lpc.perplexity import Perplexity, token_perplexity
from lpc.report import HeldOut, Report
from lpc.result import Result
from lpc.source import ModelLike, Source, load_adapter, load_source
from passes.adapter import LoraOptions
from passes.attach import AttachPass
from passes.decide import DecidePass, ReplayPass
from passes.errors import OptionError
from passes.infra import Pass, Progress, Sequential, plain, silent
from passes.masks import masked
from passes.merge import MergePass
from passes.models import base_model
from passes.plan import Plan
from passes.program import Program
from passes.shrink import ShrinkPass
from passes.target import Target
from passes.trace import TracePass
from passes.tune import TuneOptions, TunePass


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How text becomes sequences.

    ``sequence_length`` in tokens (default: 256, or the model's context if that is shorter). The last
    ``heldout_fraction`` of the stream, at most ``heldout_sequences``, is neither scored nor tuned on and gives the
    report's perplexities.
    """

    sequence_length: int | None = None
    heldout_fraction: float = 0.05
    heldout_sequences: int = 64

    def __post_init__(self) -> None:
        if self.sequence_length is not None and self.sequence_length < 2:
            raise OptionError(f"sequence_length must be at least 2, got {self.sequence_length}")
        if not 0 < self.heldout_fraction < 1:
            raise OptionError(f"heldout_fraction must lie between 0 and 1, got {self.heldout_fraction}")
        if self.heldout_sequences < 1:
            raise OptionError(f"heldout_sequences must be at least 1, got {self.heldout_sequences}")


DEFAULT_SEQUENCE_LENGTH = 256
DEFAULT_LORA = LoraOptions()
DEFAULT_TUNE = TuneOptions()
DEFAULT_TEXT = DataOptions()


def compress(
    model: ModelLike,
    data: Data,
    ratio: float,
    *,
    steps: int | None = None,
    seed: int | None = None,
    multiple: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    lora: LoraOptions = DEFAULT_LORA,
    tune: TuneOptions = DEFAULT_TUNE,
    text: DataOptions = DEFAULT_TEXT,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Result:
    """Make a model smaller by ``ratio`` of all its parameters, and prove that nothing but the removal changed.

    ``model`` is a live transformers or peft model (never changed), a local folder or a hub name; ``data`` is a path or
    paths, a list of texts, a ``datasets.Dataset`` or token-id sequences. ``steps`` and ``seed`` are short for the same
    fields of ``tune``. ``multiple`` is what MLP widths are rounded to (default: 64 from 1024 channels up, else 8).

    Raises LpcError: OptionError, MissingFileError, DataError, ModelError, UnsupportedModelError, TokenizerError for
    what the user gave, UnreachableRatioError stating the largest ratio, PostconditionError if a verification fails.
    """
    target = Target(ratio=ratio, multiple=multiple)
    tune = replace(tune, steps=tune.steps if steps is None else steps, seed=tune.seed if seed is None else seed)
    source = load_source(model, tokenizer, trust_remote_code=trust_remote_code)
    program = TracePass()(Program.start(source.model)).program
    target.widths(program.traced)
    train, heldout = _sequences(source, data, text, tune)
    dense = token_perplexity(program.model, heldout)
    progress("held-out", 1, 3)
    own_adapter = isinstance(program.model, PeftModel)
    program = Sequential(
        AttachPass(lora, tune.seed),
        TunePass(target, BlockDataset(train), tune, progress),
        DecidePass(target, tune.criterion, _choices(tune)),
        progress=progress,
    )(program).program
    removed = None if own_adapter else _removed_perplexity(program, heldout)
    progress("held-out", 2, 3)
    program = Sequential(MergePass(), ShrinkPass(), progress=progress)(program).program
    pruned = token_perplexity(program.model, heldout)
    progress("held-out", 3, 3)
    return _result(source, program, _heldout(dense, removed, pruned))


def apply(
    plan: Plan | str | Path,
    model: ModelLike,
    *,
    adapter: PeftModel | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
) -> Result:
    """Replay a plan without data and without training: the same compact checkpoint again, bit for bit.

    ``model`` is the source that the plan was made for, ``adapter`` the folder of the trained adapter (``OUT/adapter``),
    or a PeftModel that wears it. Raises PlanError when the plan is for another model, and what ``compress`` raises.
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    if isinstance(adapter, PeftModel):
        source = load_source(adapter, tokenizer)
    else:
        source = load_source(model, tokenizer, trust_remote_code=trust_remote_code)
        if adapter is not None:
            source = replace(source, model=load_adapter(source.model, adapter))
    steps: list[Pass] = [TracePass(), ReplayPass(plan), MergePass(), ShrinkPass()]
    return _result(source, Sequential(*steps)(Program.start(source.model)).program, None)


def _sequences(source: Source, data: Data, text: DataOptions, tune: TuneOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out sequences, [n, sequence_length] each."""
    config = base_model(source.model).config
    length = text.sequence_length or min(DEFAULT_SEQUENCE_LENGTH, config.max_position_embeddings)
    if length > config.max_position_embeddings:
        raise OptionError(
            f"sequence_length {length} is longer than the model's context of {config.max_position_embeddings} tokens"
        )
    blocks = token_sequences(data, source.tokenizer, sequence_length=length, vocab_size=config.vocab_size).tensor
    fraction = min(text.heldout_fraction, text.heldout_sequences / len(blocks))
    return split_heldout(blocks, fraction)


def _heldout(dense: Perplexity, removed: float | None, pruned: Perplexity) -> HeldOut:
    return HeldOut(
        dense=dense.value,
        removed=removed,
        pruned=pruned.value,
        tokens=pruned.tokens,
        context_length=pruned.context_length,
    )


def _choices(tune: TuneOptions) -> Mapping[str, Any]:
    """What of the options made the decision."""
    names = ("steps", "seed", "revival", "importance", "schedule")
    return {name: plain(getattr(tune, name)) for name in names}


def _removed_perplexity(program: Program, heldout: torch.Tensor) -> float:
    """Perplexity of the dense weights with the units gone and nothing healed."""
    assert isinstance(program.model, PeftModel)
    assert program.masks is not None
    with program.model.disable_adapter(), masked(program.model, program.traced, program.masks):
        return token_perplexity(program.model, heldout).value


def _result(source: Source, program: Program, heldout: HeldOut | None) -> Result:
    assert program.plan is not None
    report = Report.of(source.name, program.traced, program.plan, program.history, heldout)
    return Result(program=program, report=report, tokenizer=source.tokenizer)

"""Save: the compact Hugging Face checkpoint, reloaded and compared bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from passes.errors import PostconditionError
from passes.infra import Pass, PassResult
from passes.models import base_model
from passes.parity import Parity
from passes.program import Program, respond


@dataclass(frozen=True)
class SavePass(Pass):
    """Writes config, safetensors weights, generation config and tokenizer, for plain ``from_pretrained``.

    Ensures that a stock reload has the same tensors, and computes the same logits, bit for bit.
    """

    folder: Path = field(metadata={"record": False})
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, metadata={"record": False})
    name = "save"

    def call(self, program: Program) -> PassResult:
        """Write the folder."""
        save_checkpoint(base_model(program.model), self.tokenizer, self.folder)
        return PassResult(program, modified=False)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """Reload and compare."""
        model = base_model(after.model)
        reloaded = reload(self.folder).to(next(model.parameters()).device)
        different = first_different_tensor(model, reloaded)
        if different is not None:
            raise PostconditionError(f"pass 'save' wrote a checkpoint whose {different} is not what was saved")
        response = respond(reloaded, after.probe)
        return (response.compare("save", respond(model, after.probe), tolerance=0.0),)


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write a model, and its tokenizer if it has one, in Hugging Face's format; safetensors only."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def reload(folder: Path) -> PreTrainedModel:
    """Load a checkpoint with the stock class: no network, no remote code, safetensors only."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return model.eval()


def first_different_tensor(model: PreTrainedModel, other: PreTrainedModel) -> str | None:
    """The name of the first parameter that is not bit-equal in both, or None."""
    theirs: dict[str, torch.Tensor] = dict(other.named_parameters())
    mine: dict[str, torch.Tensor] = dict(model.named_parameters())
    if set(theirs) != set(mine):
        return min(set(theirs) ^ set(mine))
    return next((name for name, value in mine.items() if not _bit_equal(value, theirs[name])), None)


def _bit_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)

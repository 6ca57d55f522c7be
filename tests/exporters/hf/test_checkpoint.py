from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from exporters.hf import SavePass, checkpoint
from passes.errors import PostconditionError
from passes.models import vendor
from passes.pipeline import Program


def test_save_writes_what_stock_transformers_loads_bit_for_bit(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    result = SavePass(tmp_path / "hf", tiny_tokenizer)(Program.start(tiny_llama))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(loaded) is type(tiny_llama)
    for name, value in tiny_llama.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode("cat") == tiny_tokenizer.encode("cat")
    assert [(p.name, p.value) for p in result.program.history[-1].parity] == [("save", 0.0)]
    assert not list((tmp_path / "hf").glob("*.bin"))


def test_save_compares_a_model_with_its_own_attention(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    """What the reloaded model would take by itself sums in another order."""
    tiny_llama.set_attn_implementation("eager")
    result = SavePass(tmp_path / "hf")(Program.start(tiny_llama))
    assert [(p.name, p.value) for p in result.program.history[-1].parity] == [("save", 0.0)]
    assert vendor.attention_of(tiny_llama.config) == "eager"


def test_save_refuses_a_checkpoint_that_reloads_differently(
    tiny_llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = checkpoint.reload

    def spoiled(folder: Path) -> PreTrainedModel:
        model = genuine(folder)
        with torch.no_grad():
            model.get_parameter("model.norm.weight")[0] += 1e-6
        return model

    monkeypatch.setattr(checkpoint, "reload", spoiled)
    with pytest.raises(PostconditionError, match=r"model\.norm\.weight"):
        SavePass(tmp_path / "hf")(Program.start(tiny_llama))

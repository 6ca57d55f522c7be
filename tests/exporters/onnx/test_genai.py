from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnx_workbench import exported
from transformers import PreTrainedTokenizerBase

from exporters.onnx import genai
from exporters.onnx.genai import genai_config, verify_greedy
from exporters.onnx.greedy import torch_greedy
from exporters.onnx.torch_caches import flat_shapes
from exporters.options import OnnxOptions
from passes.errors import PostconditionError

OPTIONS = OnnxOptions(precision=("fp32",), greedy_prompts=2, greedy_tokens=6)


def test_genai_config_describes_the_pruned_model() -> None:
    _, package = exported("pruned mistral")
    config = json.loads((package.folder / "genai_config.json").read_text(encoding="utf-8"))
    model, decoder = config["model"], config["model"]["decoder"]
    assert (model["type"], model["context_length"], model["vocab_size"]) == ("mistral", 128, 272)
    assert [model[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [256, 256, 256]
    assert (decoder["head_size"], decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (8, 6, 3)
    assert config["search"]["past_present_share_buffer"] is False


def test_genai_config_takes_ids_from_the_tokenizer_when_the_model_has_none(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = copy.deepcopy(exported("llama")[0])
    for source in (model.config, model.generation_config):
        source.bos_token_id = source.pad_token_id = None
        source.eos_token_id = [3, 4]
    described = genai_config(model, tiny_tokenizer, flat_shapes(model), positions=True, share=False)["model"]
    assert [described[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [256, [3, 4], 256]


def test_search_defaults_come_from_the_generation_config(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    model = copy.deepcopy(exported("llama")[0])
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    search = genai_config(model, tiny_tokenizer, flat_shapes(model), positions=True, share=False)["search"]
    assert (search["do_sample"], search["temperature"], search["top_p"]) == (True, 0.6, 1.0)


def test_greedy_verification_holds_on_more_prompts() -> None:
    model, package = exported("mistral with window")
    assert (
        verify_greedy(model, package.folder, OnnxOptions(precision=("fp32",), greedy_prompts=3, greedy_tokens=10)).value
        == 0.0
    )


def test_greedy_verification_suppresses_what_ends_a_text_in_genai(monkeypatch: pytest.MonkeyPatch) -> None:
    model, package = exported("mistral with window")
    silent, seen = copy.deepcopy(model), list[Any]()
    silent.generation_config.eos_token_id = None  # the tokenizer's is in the package

    def watched(*args: Any, eos: Any, **more: Any) -> Any:
        seen.append(eos)
        return torch_greedy(*args, eos=eos, **more)

    monkeypatch.setattr("exporters.onnx.genai.torch_greedy", watched)
    verify_greedy(silent, package.folder, OPTIONS)
    assert set(seen) == {256}


def test_greedy_verification_fails_when_genai_serves_another_model() -> None:
    model, package = exported("qwen3, one KV head, untied")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.copy_(-other.lm_head.weight)
    with pytest.raises(PostconditionError, match="GenAI's tokens differ"):
        verify_greedy(other, package.folder, OPTIONS)


@pytest.mark.parametrize(("gap", "accepted"), [(1e-6, True), (1e-3, False)])
def test_another_token_passes_only_when_the_logits_tie(
    gap: float, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, package = exported("llama")
    logits = torch.tensor([[1.0, 1.0 - gap, 0.0]])
    answer = SimpleNamespace(sequences=torch.tensor([[5, 0]]), logits=(logits,))
    monkeypatch.setattr(genai, "torch_greedy", lambda *_, **__: answer)
    monkeypatch.setattr(genai, "_genai_greedy", lambda *_: [5, 1])
    options = OnnxOptions(precision=("fp32",), greedy_prompts=1, greedy_tokens=1)
    if accepted:
        assert verify_greedy(model, package.folder, options).value == pytest.approx(gap, rel=0.1)
    else:
        with pytest.raises(PostconditionError, match="not by a tie"):
            verify_greedy(model, package.folder, options)

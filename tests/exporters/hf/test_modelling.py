"""Checkpoints that carry their own modelling file: loaded without lpc, and by lpc without running the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from transformers import AutoConfig, PreTrainedModel

import lpc
from exporters.hf.checkpoint import first_different_tensor, save_checkpoint
from exporters.hf.modelling import modelling_source, save_with_modelling_file
from passes.errors import UnsupportedModelError
from passes.models import FILE as MODELLING_FILE
from passes.models import compact_class
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

WITHOUT_LPC = """
import sys, torch, transformers

def check(folder, auto):
    load = getattr(transformers, auto).from_pretrained
    model = load(folder, trust_remote_code=True).eval()
    inputs = torch.load(folder + "/inputs.pt")
    logits = model(**inputs).logits
    if auto == "AutoModelForCausalLM":
        ids = inputs["input_ids"][:1]
        cut = dict(attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        tokens = model.generate(ids, **cut)
        assert torch.equal(tokens, model.generate(ids, cache_implementation="static", **cut))
        torch.save(tokens, folder + "/tokens.pt")
    model.save_pretrained(folder + "/again")
    assert torch.equal(load(folder + "/again", trust_remote_code=True).eval()(**inputs).logits, logits)
    torch.save(logits.detach(), folder + "/logits.pt")

for folder in sys.argv[1:]:
    check(*folder.split("="))
assert not {"lpc", "passes", "exporters"} & set(sys.modules)
"""

CASES = {"gpt2": "AutoModelForCausalLM", "bloom": "AutoModelForCausalLM", "bart": "AutoModelForSeq2SeqLM"}


def half(name: str) -> PreTrainedModel:
    """A model of the zoo that has lost half of everything, other units in every layer."""
    model = zoo.build(name)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=True))
    kept = {d.name: [u for u in range(d.size) if (u + d.layer) % 2] for d in graph.dimensions}
    return build_compact(model, graph, kept)


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, PreTrainedModel], Path]:
    """Models, and the folder of their checkpoints after one process without lpc has loaded and run them all."""
    root = tmp_path_factory.mktemp("elsewhere")
    models = {name: half(name) for name in CASES}
    for name, model in models.items():
        save_checkpoint(model, None, root / name)
        torch.save(zoo.inputs(name, zoo.ZOO[name]), root / name / "inputs.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(root / "cache")}
    command = [sys.executable, "-c", WITHOUT_LPC, *(f"{root / name}={auto}" for name, auto in CASES.items())]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return models, root


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_checkpoint_works_in_a_process_without_lpc(
    name: str, loaded_elsewhere: tuple[dict[str, PreTrainedModel], Path]
) -> None:
    model, folder = loaded_elsewhere[0][name], loaded_elsewhere[1] / name
    inputs = zoo.inputs(name, zoo.ZOO[name])
    assert torch.equal(torch.load(folder / "logits.pt"), model(**inputs).logits)
    if CASES[name] == "AutoModelForCausalLM":
        ids = inputs["input_ids"][:1]
        mine = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert torch.equal(torch.load(folder / "tokens.pt"), mine)


def test_lpc_loads_it_without_running_the_file(tmp_path: Path) -> None:
    model = half("gpt2")
    save_checkpoint(model, None, tmp_path)
    (tmp_path / MODELLING_FILE).write_text("raise SystemExit('the file was run')\n")
    loaded = lpc.load(tmp_path)
    assert type(loaded).__name__ == "CompactGPT2LMHeadModel"
    assert first_different_tensor(model, loaded) is None


def test_the_file_imports_nothing_but_torch_and_transformers() -> None:
    source = modelling_source(type(half("gpt2")))
    imports = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))}
    assert imports - sys.stdlib_module_names == {"torch", "transformers"}


def test_the_live_model_s_configuration_stays_as_it_was(tmp_path: Path) -> None:
    model = half("gpt2")
    model.config.dtype = "float32"  # transformers fills this in whenever it saves
    before = model.config.to_dict()
    save_with_modelling_file(model, tmp_path / "hf")
    assert model.config.to_dict() == before
    assert AutoConfig.from_pretrained(tmp_path / "hf").auto_map


def test_a_class_that_is_not_of_transformers_is_refused() -> None:
    class OwnForCausalLM(type(half("gpt2")).__mro__[1]):  # type: ignore[misc]
        pass

    with pytest.raises(UnsupportedModelError, match="OwnForCausalLM is not one of transformers' classes"):
        modelling_source(compact_class(OwnForCausalLM))


def test_a_compact_model_is_not_pruned_again(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="compact"):
        lpc.compress(half("gpt2"), data=[list(range(64))] * 8, ratio=0.1, steps=1)

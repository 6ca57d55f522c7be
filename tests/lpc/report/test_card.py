from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lpc.report.card import card, licence_of

MANIFEST: dict[str, Any] = {
    "source": {"path": "owner/base", "family": "llama", "parameters": 100, "licence": "apache-2.0"},
    "target": {"parameters": 80},
    "layout": "uniform",
    "ratio": {"asked": 0.2, "achieved": 0.2},
    "cost": {"dense": {"parameters": 100}, "pruned": {"parameters": 80}},
    "widths": {},
    "heldout": {"labels": 1270, "measures": {"perplexity": {"dense": 5.0, "removed": 50.0, "pruned": 7.5}}},
    "compatibility": [{"target": "transformers", "runs": "yes"}],
}
RUN = {
    "model": "pruned",
    "backend": "hf",
    "scores": [
        {"task": "arc_easy", "metric": "acc_norm (none)", "fewshot": 0, "limit": 100, "value": 0.5, "stderr": 0.01},
        {"task": "broken", "metric": "ppl", "fewshot": 0, "limit": None, "value": None, "stderr": None},
    ],
}


def test_the_hub_reads_its_own_head_back() -> None:
    found = ModelCard(card(MANIFEST, {"runs": [RUN]}, "LlamaForCausalLM")).data
    assert (found.license, found.base_model, found.pipeline_tag) == ("apache-2.0", "owner/base", "text-generation")
    results = {(each.dataset_type, each.metric_type): each.metric_value for each in found.eval_results or ()}
    assert results == {("held-out", "perplexity"): 7.5, ("arc_easy", "acc_norm"): 0.5}
    assert [each.dataset_name for each in found.eval_results or ()][1] == "arc_easy (first 100)"


def test_a_base_of_another_class_has_its_own_task() -> None:
    text = card(MANIFEST, None, "BertForSequenceClassification")
    assert ModelCard(text).data.pipeline_tag == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained" in text


def test_what_needs_a_modelling_file_says_so() -> None:
    values = {**MANIFEST, "compatibility": [{"target": "transformers", "runs": "no"}]}
    assert "trust_remote_code=True" in card(values, None, "LlamaForCausalLM")
    assert "trust_remote_code" not in card(MANIFEST, None, "LlamaForCausalLM")


def test_a_folder_is_no_name_on_the_hub(tmp_path: Path) -> None:
    values = {**MANIFEST, "source": {**MANIFEST["source"], "path": str(tmp_path), "licence": None}}
    text = card(values, None, "LlamaForCausalLM")
    assert ModelCard(text).data.base_model is None
    assert f"The folder of {tmp_path.name} states no licence" in text


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# hello", "mit"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: 'mit\\n# owned'\n---\n", None),
        ("---\n: : :\n  - [\n---\n", None),
        ("---\n" + "[" * 30000 + "\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# no head", None),
        ("", None),
    ],
)
def test_the_licence_is_that_of_the_base_s_card(tmp_path: Path, text: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_of(str(tmp_path)) == licence


def test_no_card_states_no_licence(tmp_path: Path) -> None:
    assert licence_of(str(tmp_path)) is None
    assert licence_of("owner/base") is None


def test_names_cannot_leave_the_head() -> None:
    values = {**MANIFEST, "source": {**MANIFEST["source"], "path": "owner/x\n---\nlicense: evil"}}
    head = card(values, None, "LlamaForCausalLM").split("\n---")[0].removeprefix("---")
    assert yaml.safe_load(head)["license"] == "apache-2.0"

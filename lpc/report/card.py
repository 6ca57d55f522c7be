"""The model card ``hf/README.md``, in the Hugging Face hub's format, from what the manifest holds."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from lpc.evaluation import difference_rows, told
from lpc.report.render import size_rows, table, text_table

logger = logging.getLogger(__name__)

CARD = "hf/README.md"
TAGS = ["lpc", "pruned"]
TASKS: Mapping[str, str] = {
    "ForCausalLM": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForConditionalGeneration": "text-generation",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}
"""The hub's name of the task, by the end of the class's name."""
FRONT = "---"
HEAD_BYTES = 65536
"""So much of a base model's card is looked at."""
LICENCE = re.compile(r"[\w.+-]{1,64}")
"""What the hub's licence names look like."""


def licence_of(source: str) -> str | None:
    """The licence that the card beside a model folder states; None where there is no folder, card or statement."""
    place = Path(source) / "README.md"
    if not place.is_file():
        return None
    with place.open("rb") as file:
        parts = file.read(HEAD_BYTES).decode("utf-8", errors="replace").split(f"\n{FRONT}", 1)
    if len(parts) < 2 or not parts[0].startswith(FRONT):
        return None
    try:
        values = yaml.safe_load(parts[0].removeprefix(FRONT))
    except (yaml.YAMLError, ValueError, RecursionError):
        logger.warning("the head of %s is no YAML, so the licence that it may state is not taken over", place)
        return None
    licence = values.get("license") if isinstance(values, dict) else None
    return licence if isinstance(licence, str) and LICENCE.fullmatch(licence) else None


def card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any] | None, architecture: str) -> str:
    """The text of the card. ``architecture`` is the class that ``config.json`` names."""
    source = manifest["source"]["path"]
    base = source.rstrip("/").rpartition("/")[2]
    name = f"{base}-pruned"
    task = next((task for end, task in TASKS.items() if architecture.endswith(end)), None)
    data = ModelCardData(
        license=manifest["source"].get("licence"),
        base_model=None if Path(source).is_dir() else source,
        library_name="transformers",
        pipeline_tag=task,
        tags=TAGS,
        model_name=name,
        eval_results=list(_results(manifest, evaluation, task or "other")) or None,
    )
    sections = [f"{FRONT}\n{data.to_yaml()}\n{FRONT}", _what(manifest, name, base), _against(evaluation)]
    sections += [_use(architecture, manifest), _limits(manifest)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _against(evaluation: Mapping[str, Any] | None) -> str:
    """What lm-eval's paired comparisons say."""
    header, rows = difference_rows(evaluation or {})
    said = "Against the dense model on the same documents, by lm-eval, with the standard error of the difference:"
    return f"## Evaluation\n\n{said}\n\n{text_table(header, rows)}" if rows else ""


def _what(manifest: Mapping[str, Any], name: str, base: str) -> str:
    licence, achieved = manifest["source"].get("licence"), manifest["ratio"]["achieved"]
    stated = (
        f"The licence is that of the base model: {licence}."
        if licence
        else (f"The folder of {base} states no licence; whatever holds for it holds for this model too.")
    )
    return (
        f"# {name}\n\n{base} with {achieved:.1%} of its parameters removed: whole heads and channels, in "
        f"{manifest['layout']} widths, chosen by lpc, which wrote this card. {stated}\n\n"
        + table(["", "dense", "pruned", "ratio"], size_rows(manifest))
    )


def _use(architecture: str, manifest: Mapping[str, Any]) -> str:
    needs_file = any(v["target"] == "transformers" and v["runs"] != "yes" for v in manifest.get("compatibility", ()))
    trust = ", trust_remote_code=True" if needs_file else ""
    end = next((each for each in TASKS if architecture.endswith(each)), "")
    auto = f"AutoModel{end.removeprefix('Model')}"
    auto = "AutoModelForSeq2SeqLM" if auto == "AutoModelForConditionalGeneration" else auto
    without = "\n\nWith lpc installed, `lpc.load(FOLDER)` needs no remote code." if needs_file else ""
    return (
        f"## How to use\n\n```python\nfrom transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("FOLDER"{trust})\n```{without}\n\n'
        "The ONNX package, where one was made, is loaded by onnxruntime and, of a causal language model, "
        "by `onnxruntime_genai.Model(FOLDER)`."
    )


def _limits(manifest: Mapping[str, Any]) -> str:
    heldout = manifest.get("heldout")
    measured = (
        f"Quality was measured on {heldout['labels']:,} labels of held-out data, and on what this card's head names; "
        if heldout
        else "Quality was not measured in the run; "
    )
    return (
        "## Limits\n\n"
        + measured
        + "what the base model knew beyond that may have suffered more. What the base model's card "
        "says of bias, safety and intended use holds here too, and was not checked again after pruning."
    )


def _results(manifest: Mapping[str, Any], evaluation: Mapping[str, Any] | None, task: str) -> Iterator[EvalResult]:
    """Held-out measures of the run, and lm-eval's of the checkpoint."""
    measures = (manifest.get("heldout") or {}).get("measures", {})
    for name, values in measures.items():
        yield EvalResult(
            task_type=task,
            dataset_type="held-out",
            dataset_name="held-out data of the run",
            metric_type=name,
            metric_value=values["pruned"],
        )
    for run in (evaluation or {}).get("runs", ()):
        if (run["model"], run["backend"]) != ("pruned", "hf"):
            continue
        for score in run["scores"]:
            if score["value"] is not None:
                yield EvalResult(
                    task_type=task,
                    dataset_type=score["task"],
                    dataset_name=told(score).replace(f" {score['metric']}", "", 1),
                    metric_type=score["metric"].partition(" (")[0],
                    metric_value=score["value"],
                )

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from lm_tasks import BEGINNINGS, CHOICES, ENDINGS, FUNCTIONS, TASK_YAML, TASKS, write_rows
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from exporters.onnx import export_onnx
from lpc.evaluation import Evaluation, evaluate, evaluation_rows
from lpc.evaluation.evaluate import _context_length
from lpc.evaluation.results import ModelRun
from lpc.evaluation.subjects import find_subjects
from lpc.options import EvaluateOptions
from passes.errors import (
    LpcError,
    MissingFileError,
    ModelError,
    OptionError,
    PostconditionError,
    TokenizerError,
)

CONTEXT = 32


@pytest.fixture(scope="module")
def output_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``lpc compress`` leaves: hf/, onnx/ and a manifest that names the source (here the same model)."""
    folder = tmp_path_factory.mktemp("evaluate") / "out"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    export_onnx(model, tokenizer, folder / "onnx")
    (folder / "lpc.json").write_text(json.dumps({"source": {"path": str(tiny_model_folder)}}))
    return folder


@pytest.fixture(scope="module")
def everything(
    output_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, list[tuple[str, int, int]]]:
    """One evaluation of everything at once, and the progress it told; its documents are longer than the context."""
    folder = tmp_path_factory.mktemp("tasks")
    paths = tuple(str(write_rows(folder / f"{name}.jsonl", rows)) for name, rows in TASKS.items())
    told: list[tuple[str, int, int]] = []
    options = EvaluateOptions(text=text_file, tasks=paths, limit=2, context_length=CONTEXT)
    return evaluate(output_folder, options, progress=lambda *step: told.append(step)), told


def log_likelihood(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    """Of the continuation, token by token."""
    total = 0.0
    with torch.no_grad():
        for position, token in enumerate(continuation):
            ids = torch.tensor([context + continuation[:position]])
            total += float(model(input_ids=ids).logits[0, -1].double().log_softmax(-1)[token])
    return total


def run_of(evaluation: Evaluation, backend: str, model: str = "pruned") -> ModelRun:
    return next(run for run in evaluation.runs if (run.model, run.backend) == (model, backend))


def test_dense_pruned_and_onnx_are_side_by_side(everything: tuple[Evaluation, list[tuple[str, int, int]]]) -> None:
    evaluation, told = everything
    runs = [(run.model, run.backend) for run in evaluation.runs]
    assert runs == [("dense", "hf"), ("pruned", "hf"), ("pruned", "onnx"), ("pruned", "genai")]
    assert {(stage, total) for stage, _, total in told} == {("percent of all tasks", 100)}
    percents = [done for _, done, _ in told]
    assert percents == sorted(percents)
    assert {0, 25, 50, 75, 100} <= set(percents)  # a model more each time
    assert all(run.warnings == () and run.context_length == CONTEXT for run in evaluation.runs)


def test_token_perplexity_equals_a_direct_computation_when_documents_exceed_the_context(
    everything: tuple[Evaluation, list[tuple[str, int, int]]],
    tiny_model_folder: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    text_file: Path,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    documents = [part.strip() for part in text_file.read_text().split("<|endoftext|>")[:2]]
    total, tokens = 0.0, 0
    for document in documents:
        ids = tiny_tokenizer.encode(document)
        tokens += len(ids)
        # the first window scores CONTEXT tokens after bos; the later ones, too, but the last reaches further back
        done = 0
        while done < len(ids):
            end = min(done + CONTEXT, len(ids))
            before = [256, *ids][done : done + 1]
            if done and end - done < CONTEXT:
                before = ids[end - CONTEXT - 1 : done]
            total += log_likelihood(model, before, ids[done:end])
            done = end
    text = run_of(everything[0], "hf").text
    assert text is not None
    assert (text.documents, text.tokens) == (2, tokens)
    assert text.log_likelihood == pytest.approx(total, rel=1e-5)
    assert text.token_perplexity == pytest.approx(math.exp(-total / tokens), rel=1e-5)
    assert text.words == sum(len(document.split()) for document in documents)
    assert text.word_perplexity == pytest.approx(math.exp(-total / text.words), rel=1e-4)
    assert text.byte_perplexity == pytest.approx(math.exp(-total / tokens), rel=1e-5)  # one token a byte


@pytest.mark.parametrize("backend", ["onnx", "genai"])
def test_onnx_agrees_with_torch_when_windows_are_full(
    everything: tuple[Evaluation, list[tuple[str, int, int]]], backend: str
) -> None:
    evaluation, _ = everything
    agreements = [each for each in evaluation.agreements if each.backend == backend]
    assert {each.task for each in agreements} == {"text", *TASKS}
    assert max(max(each.total, each.worst) for each in agreements) < 1e-5
    assert next(each.requests for each in agreements if each.task == "choices") == 5


def test_bos_that_the_tokenizer_adds_changes_nothing(
    everything: tuple[Evaluation, list[tuple[str, int, int]]], output_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    adding = AutoTokenizer.from_pretrained(output_folder / "hf")
    end = "<|endoftext|>"
    adding.backend_tokenizer.post_processor = TemplateProcessing(single=f"{end} $A", special_tokens=[(end, 256)])
    for part in ("hf", "onnx"):
        (tmp_path / part).mkdir()
        for file in (output_folder / part).iterdir():
            if not file.name.startswith("tokenizer"):
                (tmp_path / part / file.name).symlink_to(file)
        adding.save_pretrained(tmp_path / part)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("a")["input_ids"][0] == 256
    found = evaluate(tmp_path, EvaluateOptions(text=text_file, limit=2, context_length=CONTEXT))
    assert [run.text for run in found.runs[:2]] == [run_of(everything[0], each).text for each in ("hf", "onnx")]


def test_choices_are_scored_by_their_log_likelihood(
    everything: tuple[Evaluation, list[tuple[str, int, int]]],
    tiny_model_folder: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)

    def score(question: str, answer: str) -> float:
        return log_likelihood(model, tiny_tokenizer.encode(question), tiny_tokenizer.encode(f" {answer}"))

    def best(scores: list[float]) -> int:
        return scores.index(max(scores))

    plain = [best([score(row["query"], c) for c in row["choices"]]) == row["gold"] for row in CHOICES]
    normed = [best([score(row["query"], c) / len(c) for c in row["choices"]]) == row["gold"] for row in CHOICES]
    begun = [best([score(b, r["continuation"]) for b in r["context_options"]]) == r["gold"] for r in BEGINNINGS]
    values = {(s.task, s.metric): s.value for s in run_of(everything[0], "hf").scores}
    assert values["choices", "acc"] == sum(plain) / 2
    assert values["choices", "acc_norm"] == sum(normed) / 2
    assert values["beginnings", "acc"] == sum(begun)
    assert values["endings", "perplexity"] == pytest.approx(
        math.exp(-score(ENDINGS[0]["context"], ENDINGS[0]["continuation"])), rel=1e-4
    )


def test_eval_json_keeps_what_lm_eval_says_and_where_it_comes_from(
    everything: tuple[Evaluation, list[tuple[str, int, int]]], tmp_path: Path, text_file: Path
) -> None:
    everything[0].write(tmp_path / "eval.json")
    values = json.loads((tmp_path / "eval.json").read_text())
    run = values["runs"][1]["lm_eval"]
    assert values["schema_version"] == 2
    assert values["asked"][0]["limit"] == 2
    assert len(values["runs"][0]["texts"][0]["sha256"]) == 64
    assert {"lm-eval", "torch", "onnxruntime"} <= values["asked"][0]["versions"].keys()
    assert run["results"]["choices"]["acc_norm,none"] == run_of(everything[0], "hf").scores[1].value
    assert run["n-samples"]["text"] == {"original": 40, "effective": 2}
    assert run["n-shot"]["choices"] == 0
    assert run["configs"]["text"]["output_type"] == "loglikelihood_rolling"
    assert "samples" not in run


def test_table_has_a_column_a_run(everything: tuple[Evaluation, list[tuple[str, int, int]]]) -> None:
    header, rows = evaluation_rows(everything[0].to_json())
    assert header == ["", "dense hf", "pruned hf", "pruned onnx", "pruned genai"]
    assert all(len(row) == 5 for row in rows)
    assert rows[0][0] == f"token perplexity (context {CONTEXT})"
    assert "endings acc (first 2)" in [row[0] for row in rows]
    assert rows[-1][0] == "seconds, without loading"


def test_task_from_include_path_leaves_the_cache_alone(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    include = tmp_path / "tasks"
    include.mkdir()
    file = write_rows(tmp_path / "rows.jsonl", CHOICES)
    (include / "mine.yaml").write_text(TASK_YAML.format(file=file))
    (include / "functions.py").write_text(FUNCTIONS)
    found = evaluate(tiny_model_folder, EvaluateOptions(tasks=("mine",), include_path=include))
    assert [(score.task, score.metric, score.samples) for score in found.runs[0].scores] == [("mine", "acc", 2)]
    assert (found.runs[0].model, found.runs[0].text, found.agreements) == ("model", None, ())
    assert not cache.exists()
    assert cache == datasets.config.HF_DATASETS_CACHE


def test_evaluation_is_silent(
    tiny_model_folder: Path, text_file: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logger = logging.getLogger("lm_eval")
    before = (logger.level, logger.propagate, list(logger.handlers))
    evaluate(tiny_model_folder, EvaluateOptions(text=text_file, limit=1))
    assert capfd.readouterr() == ("", "")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_live_dense_model_is_scored_and_stays_as_it_was(
    output_folder: Path, tiny_llama: PreTrainedModel, text_file: Path
) -> None:
    tiny_llama.train()
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    found = evaluate(output_folder, EvaluateOptions(text=text_file, limit=1, backend="hf"), dense=tiny_llama)
    dense, pruned = (run_of(found, "hf", name).text for name in ("dense", "pruned"))
    assert dense is not None
    assert dense == pruned
    assert tiny_llama.training
    assert all(torch.equal(before[name], value) for name, value in tiny_llama.state_dict().items())


def test_truncated_requests_are_counted(output_folder: Path, tmp_path: Path) -> None:
    rows = [{"query": "word " * 20, "choices": ["yes", "no"], "gold": 0}]
    options = EvaluateOptions(tasks=(str(write_rows(tmp_path / "long.jsonl", rows)),), context_length=CONTEXT)
    found = evaluate(output_folder, options)
    assert [run.truncated for run in found.runs] == [2, 2, 2, 2]
    assert all(each.worst < 1e-5 for each in found.agreements)


def test_disagreement_of_backends_raises_with_the_numbers(
    output_folder: Path, text_file: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(output_folder / "hf")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1.2
    model.save_pretrained(folder / "hf")
    tiny_tokenizer.save_pretrained(folder / "hf")
    (folder / "onnx").symlink_to(output_folder / "onnx")
    with pytest.raises(PostconditionError, match=r"text: log-likelihoods of model by onnx differ .* 1e-03 allowed"):
        evaluate(folder, EvaluateOptions(text=text_file, limit=1))


def test_nan_weights_raise(tiny_llama: PreTrainedModel, output_folder: Path, text_file: Path) -> None:
    with torch.no_grad():
        tiny_llama.model.norm.weight[0] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        evaluate(output_folder, EvaluateOptions(text=text_file, limit=1, backend="hf"), dense=tiny_llama)


def test_source_that_is_gone_is_left_out(output_folder: Path, tmp_path: Path) -> None:
    for source in ("/no/such/folder", "owner/hub-model"):
        (tmp_path / "lpc.json").write_text(json.dumps({"source": {"path": source}}))
        (tmp_path / "hf").unlink(missing_ok=True)
        (tmp_path / "hf").symlink_to(output_folder / "hf")
        assert [(s.model, s.backend) for s in find_subjects(tmp_path, "all", None)] == [("pruned", "hf")]


def test_plain_onnx_folder_is_evaluated_by_both_runtimes(output_folder: Path) -> None:
    found = find_subjects(output_folder / "onnx", "all", None)
    assert [(s.model, s.backend) for s in found] == [("model", "onnx"), ("model", "genai")]


def test_each_of_several_packages_is_evaluated_under_its_precision(output_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    for name in ("int4", "fp32", "mine"):
        (tmp_path / "onnx" / name).symlink_to(output_folder / "onnx")
    found = find_subjects(tmp_path, "all", None)
    assert [each.backend for each in found] == ["onnx fp32", "onnx int4", "genai fp32", "genai int4"]
    assert [each.folder.name for each in found] == ["fp32", "int4", "fp32", "int4"]
    assert {each.engine for each in found} == {"onnx", "genai"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text": None}, OptionError, "nothing to evaluate"),
        ({"backend": "tf"}, OptionError, "unknown backend 'tf'"),
        ({"limit": 0}, OptionError, "limit must be at least 1, got 0"),
        ({"context_length": 4096}, OptionError, "at most 128"),
        ({"include_path": Path("no-such")}, MissingFileError, "no-such"),
        ({"text": Path("no.txt")}, MissingFileError, "no such file"),
        ({"tasks": ("no.jsonl",)}, MissingFileError, "no such file"),
    ],
)
def test_impossible_options_raise(
    output_folder: Path, text_file: Path, changes: dict[str, object], error: type[LpcError], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(output_folder, EvaluateOptions(**{"text": text_file, "limit": 1, **changes}))  # type: ignore[arg-type]


def test_missing_parts_raise(output_folder: Path, tiny_model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    options = EvaluateOptions(text=text_file, limit=1)
    with pytest.raises(MissingFileError, match="no such folder"):
        evaluate(tmp_path / "none", options)
    with pytest.raises(OptionError, match="backend all cannot run"):
        evaluate(tmp_path, options)
    with pytest.raises(OptionError, match="backend genai cannot run"):
        evaluate(tiny_model_folder, replace(options, backend="genai"))
    AutoModelForCausalLM.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        evaluate(tmp_path, options)


def test_broken_graph_raises_with_the_folder(tmp_path: Path, output_folder: Path, text_file: Path) -> None:
    for file in (output_folder / "onnx").iterdir():
        (tmp_path / file.name).write_bytes(b"broken" if file.suffix == ".onnx" else file.read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded for backend onnx"):
        evaluate(tmp_path, EvaluateOptions(text=text_file, limit=1, backend="onnx"))


def test_generating_task_is_refused_by_the_onnx_backend(output_folder: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    (tmp_path / "talk.yaml").write_text(
        f"task: talk\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n"
        "generation_kwargs: {until: [b], max_gen_toks: 2}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    options = EvaluateOptions(tasks=("talk",), include_path=tmp_path)
    with pytest.raises(OptionError, match="task talk generates text"):
        evaluate(output_folder, options)


def test_context_defaults_to_what_all_models_allow(output_folder: Path) -> None:
    subjects = find_subjects(output_folder, "all", None)
    options = EvaluateOptions(tasks=("x",))
    assert _context_length(options, subjects) == 128


def test_numbers_that_are_not_finite_are_null_in_json(
    everything: tuple[Evaluation, list[tuple[str, int, int]]], tmp_path: Path
) -> None:
    run = everything[0].runs[0]
    assert run.text is not None
    endless = replace(run, texts=(replace(run.text, word_perplexity=math.inf),))
    replace(everything[0], runs=(endless,)).write(tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text())["runs"][0]["texts"][0]["word_perplexity"] is None

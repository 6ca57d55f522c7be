"""The command of lm-eval itself that repeats an evaluation, where there is one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lpc.evaluation.built import Built
from lpc.evaluation.kept import Kept
from lpc.evaluation.results import ModelRun
from lpc.options import AUTO_BATCH, EvaluateOptions

__all__ = ["commands"]


def commands(
    built: Sequence[Built], runs: Sequence[ModelRun], options: EvaluateOptions, keep: Path | None, device: torch.device
) -> Iterator[str]:
    """A line a torch model and number of documents, for the tasks that lm-eval knows by name.

    Not for a text, a .jsonl file, or local sets that were not kept or stand beside tasks of the user's own. Not for
    ONNX: lm-eval's own backends cut windows otherwise. A live model has no folder.
    """
    named = [each.asked for each in built if not each.is_text and not each.asked.name.endswith(".jsonl")]
    if options.task_data is not None and (keep is None or options.include_path is not None):
        return
    included = Kept(folder=keep).tasks if options.task_data and keep else options.include_path
    includes = [str(included.absolute())] if included else []
    for run in runs:
        if run.backend != "hf" or not any(Path(run.folder).glob("*.safetensors")):
            continue
        for limit in dict.fromkeys(each.limit for each in named):
            yield _command(run, [each.name for each in named if each.limit == limit], limit, options, includes, device)


def _command(
    run: ModelRun,
    tasks: Sequence[str],
    limit: int | None,
    options: EvaluateOptions,
    includes: Sequence[str],
    device: torch.device,
) -> str:
    arguments = {
        "pretrained": run.folder,
        "dtype": "float32",
        "max_length": run.context_length,
        "add_bos_token": False,
        "prefix_token_id": run.prefix_token_id,
    }
    words = ["lm-eval", "run", "--model", "hf", "--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())]
    words += ["--tasks", ",".join(tasks), "--device", str(device)]
    words += ["--batch_size", str(options.batch_size or ("auto" if device.type == "cuda" else AUTO_BATCH))]
    words += ["--num_fewshot", str(options.fewshot)] if options.fewshot is not None else []
    words += ["--limit", str(limit)] if limit is not None else []
    words += ["--include_path", includes[0]] if includes else []
    return shlex.join([*words, "--log_samples", "--output_path", f"lm-eval-{run.model}"])

"""A Triton model repository of a decoder, classifiers and an embedding model, read by Triton's own protobuf.

    python tests/servers/triton.py --servers VENV        (a part of make test-servers)

What each ``config.pbtxt`` says is held against the graph beside it as onnxruntime, which is Triton's backend, sees it.
``run.py`` starts a server. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import onnxruntime
import zoo
from conftest import build_model, build_tokenizer
from transformers import BertModel

from exporters.options import OnnxOptions
from exporters.triton import export_repository

TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}


def repositories(work: Path) -> list[Path]:
    """Configurations of four models, one of each kind."""
    options = OnnxOptions(precision=("fp32",), greedy_prompts=0)
    export_repository(build_model("llama", head_dim=16), build_tokenizer(), work / "decoder", options)
    export_repository(zoo.build("bert-sequence-classification"), None, work / "classifier", options)
    export_repository(zoo.build("vit"), None, work / "images", options)
    embedding = BertModel(zoo.build("bert").config).eval()
    export_repository(embedding, None, work / "embeddings", replace(options, pooling=True))
    return sorted(work.glob("*/*/config.pbtxt"))


def differences(config: dict[str, Any], path: Path) -> list[str]:
    """What a configuration says otherwise than the session of its graph."""
    session = onnxruntime.InferenceSession(
        path.parent / "1" / config["default_model_filename"], providers=["CPUExecutionProvider"]
    )
    batched = int(config.get("max_batch_size", 0)) > 0
    found = []
    for part, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        said = {each["name"]: (each["data_type"], [int(size) for size in each["dims"]]) for each in config[part]}
        shapes = {each.name: [size if isinstance(size, int) else -1 for size in each.shape] for each in values}
        seen = {each.name: (TYPES[each.type], shapes[each.name][1 if batched else 0 :]) for each in values}
        if said != seen:
            found.append(f"{part}: {said}, the graph has {seen}")
    cached = any(each.name.startswith("past_key_values.") for each in session.get_inputs())
    expected = {"name": path.parent.name, "backend": "onnxruntime"}
    found += [f"{key} is {config.get(key)!r}" for key, value in expected.items() if config.get(key) != value]
    if cached == batched or batched != ("dynamic_batching" in config):
        found.append(f"cached {cached}, batched {batched}, dynamic_batching {'dynamic_batching' in config}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=Path, required=True, help="the environment that make test-servers makes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        paths = repositories(Path(work))
        command = [given.servers / "bin/python", Path(__file__).with_name("triton_parse.py"), *paths]
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"Triton's protobuf refuses a configuration: {run.stderr.strip()[-2000:]}")
            return 1
        found = {path: differences(config, path) for path, config in zip(paths, json.loads(run.stdout), strict=True)}
    for path, wrong in found.items():
        print(f"Triton, {path.parent.parent.name}: {'; '.join(wrong) or 'as the graph is'}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())

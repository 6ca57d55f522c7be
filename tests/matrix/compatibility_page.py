"""docs/compatibility.md, written from ``exporters.runtimes.compatibility``; a test holds the two together.

    python tests/matrix/compatibility_page.py

writes the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "tests" / "servers" / "results.json"
sys.path.insert(0, str(ROOT))

from exporters.runtimes.compatibility import TARGETS
from exporters.runtimes.verdict import Runtime
from lpc.report.render import text_table

OTHERWISE = {
    "transformers": "at every save, reloaded bit for bit",
    "transformers, trust_remote_code": "tests/exporters/hf/test_modelling.py",
    "lm-eval, onnxruntime-genai backend": "tests/lpc/evaluation/test_evaluate.py",
}
"""Where else a runtime is run that ``make test-servers`` does not start."""

HEAD = """# Where it runs

Every saved output says where it runs: the last lines of `lpc compress`, the section *Where it runs* of
`report.md`, and `compatibility` in `lpc.json`. This page is generated from the rules by
`python tests/matrix/compatibility_page.py`; do not edit it.

The verdicts are

- **yes**: it takes the output as it is;
- **with file**: it takes it with the modelling file beside the weights (`trust_remote_code=True`);
- **partly**: it takes it, but not every way; the reason says which;
- **no**: it refuses it, or would compute something else;
- **unverified**: nothing is claimed, because nothing was run and no rule reaches that far.

and each but the last says how it is known: *run here*, of this very model, or *by rule, not run here*: concluded from
the model's shape and the runtime's documents and sources, which may have changed since. What is said of vLLM,
llama.cpp, Triton and optimum-onnx was read in stored copies from 2025 and 2026 (vLLM 0.9 to 0.32, llama.cpp of 2026).

## Seen running

`make test-servers` starts the real thing, sends it prompts of text that the model never saw, and compares its greedy
tokens with torch's; the model is {model}. How to serve with each of them:
[serving.md](serving.md).

{seen}

## The rules

For each runtime the constraints are looked at in this order, and the first one that a model does not meet is its
verdict. A model is square if heads x head_dim is its hidden size; removing heads makes it non-square, as the size of a
head stays.
"""


def page() -> str:
    """The page's text."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    model = next(iter(found.values()))["model"]
    return HEAD.format(model=model, seen=seen(found)) + "".join(section(target) for target in TARGETS)


def seen(found: dict[str, dict[str, Any]]) -> str:
    """A line a runtime: when it was run here, in which versions, how; of the others that they were not."""
    rows = []
    for name in dict.fromkeys([*(target.name for target in TARGETS), *found]):
        ran = found.get(name)
        if ran is None:
            rows.append([name, OTHERWISE.get(name, "by rule, not run here"), "", ""])
            continue
        versions = ", ".join(f"{package} {version}" for package, version in ran["versions"].items())
        rows.append([name, f"{ran['date']}, {versions}", ran["how"], f"{ran['equal']} of {ran['prompts']}"])
    return text_table(["runtime", "run here", "how", "prompts with torch's tokens"], rows)


def section(target: Runtime) -> str:
    rows = [[check.needs, check.otherwise, check.source] for check in target.checks]
    table = text_table(["it needs", "or else", "source"], rows)
    return f"\n### {target.name}\n\nAt best: {target.meaning}.\n\n{table}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

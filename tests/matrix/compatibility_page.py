"""docs/compatibility.md, written from ``exporters.runtimes.compatibility``; a test holds the two together.

    python tests/matrix/compatibility_page.py

writes the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
sys.path.insert(0, str(ROOT))

from exporters.runtimes.compatibility import TARGETS
from exporters.runtimes.verdict import Runtime
from lpc.report.render import text_table

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
the model's shape and the runtime's documents and sources, which may have changed since. vLLM, llama.cpp, Triton and
optimum-onnx were never run by lpc; what is said of them was read in stored copies from 2025 and 2026 (vLLM 0.9 to 0.32,
llama.cpp of 2026).

For each runtime the constraints are looked at in this order, and the first one that a model does not meet is its
verdict. A model is square if heads x head_dim is its hidden size; removing heads makes it non-square, as the size of a
head stays.
"""


def page() -> str:
    """The page's text."""
    return HEAD + "".join(section(target) for target in TARGETS)


def section(target: Runtime) -> str:
    rows = [[check.needs, check.otherwise, check.source] for check in target.checks]
    table = text_table(["it needs", "or else", "source"], rows)
    return f"\n## {target.name}\n\nAt best: {target.meaning}.\n\n{table}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Tasks of a few rows."""

from __future__ import annotations

import json
from pathlib import Path

CHOICES = [
    {"query": "The cat sat on the", "choices": ["mat", "dog and the tree"], "gold": 0},
    {"query": "The dog ran round the", "choices": ["cat", "tree", "mat"], "gold": 1},
]


BEGINNINGS = [{"context_options": ["The cat and the", "The dog"], "continuation": "sat on the mat", "gold": 1}]


ENDINGS = [{"context": "The cat sat on the", "continuation": "mat"}]


HELLASWAG = [
    {
        "ctx_a": "A man stands. [title] He",
        "ctx_b": "runs",
        "activity_label": "Running",
        "endings": ["away [step] fast.", "home."],
        "label": "1",
    }
]


TASKS = {"choices": CHOICES, "beginnings": BEGINNINGS, "endings": ENDINGS, "hellaswag": HELLASWAG}


TASK_YAML = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
process_docs: !function functions.upper
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


FUNCTIONS = "def upper(docs):\n    return docs.map(lambda row: {**row, 'query': row['query'].upper()})\n"


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

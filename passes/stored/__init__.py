"""What lies in a model's folder, read without torch: JSON, the headers of weights, what a configuration may declare."""

from passes.stored.checkpoint import (
    DTYPES,
    INDEX,
    WEIGHTS,
    StoredTensor,
    check_fetched,
    headers,
    read_json,
    read_json_list,
    stored_files,
    stored_tensors,
)
from passes.stored.declared import check_declared
from passes.stored.door import check_model, check_plan, read_config

__all__ = [
    "DTYPES",
    "INDEX",
    "WEIGHTS",
    "StoredTensor",
    "check_declared",
    "check_fetched",
    "check_model",
    "check_plan",
    "headers",
    "read_config",
    "read_json",
    "read_json_list",
    "stored_files",
    "stored_tensors",
]

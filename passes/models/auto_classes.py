"""Transformers' own auto classes load checkpoints whose layers have sizes of their own, once that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig

from passes.models import vendor
from passes.models.resized import compact_class, has_own_sizes
from passes.models.tasks import AUTO_CLASSES, model_class, task_of


def register_auto_classes(folder: str | Path) -> None:
    """Have the auto classes load this checkpoint, and others of its model type, without running the file beside it.

    The class that has the sizes of such a checkpoint is registered with the auto class of its task, and with
    ``AutoModel``, for this process; models of the usual sizes stay of their stock class. ``lpc.load`` needs no such
    call. Does nothing for a checkpoint that has the usual sizes.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not has_own_sizes(config):
        return
    resized: Any = model_class(config)
    getattr(transformers, AUTO_CLASSES[task_of(resized)]).register(type(config), resized, exist_ok=True)
    for headless in vendor.classes_for("AutoModel", config):
        transformers.AutoModel.register(type(config), compact_class(headless), exist_ok=True)

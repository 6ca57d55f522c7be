"""The modelling file of a compact model that no stock class can hold.

``config.json`` names it in ``auto_map``, so ``from_pretrained(folder, trust_remote_code=True)`` loads the model without
lpc; the file itself imports torch and transformers only.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from passes import compact_modeling
from passes.compact_modeling import PREFIX
from passes.errors import UnsupportedModelError
from passes.tasks import AUTO_CLASSES, task_of

MODELLING_FILE = "modeling_compact.py"


def needs_modelling_file(model: PreTrainedModel) -> bool:
    """Whether the model has sizes that its stock class cannot be configured to."""
    return getattr(model.config, "compact", None) is not None


def save_with_modelling_file(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights, a configuration that names the modelling file, and that file. ``model`` stays as it is."""
    had = "auto_map" in vars(model.config)
    own = vars(model.config).get("auto_map")
    model.config.auto_map = {AUTO_CLASSES[task_of(model)]: f"{Path(MODELLING_FILE).stem}.{type(model).__name__}"}
    try:
        model.save_pretrained(folder)
    finally:
        if had:
            model.config.auto_map = own
        else:
            del model.config.auto_map  # left as None, it would be written and break AutoTokenizer
    (folder / MODELLING_FILE).write_text(modelling_source(type(model)), encoding="utf-8")


def modelling_source(compact: type[PreTrainedModel]) -> str:
    """The text of the modelling file of a class that ``compact_class`` made.

    Raises UnsupportedModelError if it resizes a class that is not transformers' own, which the file could not import.
    """
    stock = compact.__name__.removeprefix(PREFIX)
    if not hasattr(transformers, stock):
        raise UnsupportedModelError(
            f"{stock} is not one of transformers' classes, so a checkpoint cannot carry a file that resizes it: "
            "describe the configuration's entries for its sizes (lpc.Family), or leave custom_code out"
        )
    source = inspect.getsource(compact_modeling).replace(
        "from torch import nn\n", f"from torch import nn\nfrom transformers import {stock}\n", 1
    )
    return f"{source}\n\n{compact.__name__} = compact_class({stock})\n"

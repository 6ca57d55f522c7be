"""The modelling file of a compact model that no stock class can hold.

``config.json`` names it in ``auto_map``, so ``from_pretrained(folder, trust_remote_code=True)`` loads the model without
lpc; the file itself (``passes.models.resized`` as it stands) imports torch and transformers only.
"""

from __future__ import annotations

import inspect

import transformers
from transformers import PreTrainedModel

from passes.errors import UnsupportedModelError
from passes.models import FILE as MODELLING_FILE
from passes.models import resized

__all__ = ["MODELLING_FILE", "modelling_source", "needs_modelling_file"]


def needs_modelling_file(model: PreTrainedModel) -> bool:
    """Whether the model has sizes that its stock class cannot be configured to."""
    return hasattr(type(model), "stock_class")


def modelling_source(compact: type[PreTrainedModel]) -> str:
    """The text of the modelling file of a class that ``compact_class`` made.

    Raises UnsupportedModelError if it resizes a class that is not transformers' own, which the file could not import.
    """
    stock = compact.__dict__["stock_class"].__name__
    if not hasattr(transformers, stock):
        raise UnsupportedModelError(
            f"{stock} is not one of transformers' classes, so a checkpoint cannot carry a file that resizes it: "
            "describe the configuration's entries for its sizes (lpc.Family), or leave custom_code out"
        )
    return inspect.getsource(resized)

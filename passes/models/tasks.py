"""Tasks: what a model's head computes, read off its class; and the class that a configuration names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from passes.errors import ModelError, UnsupportedModelError
from passes.models import vendor
from passes.models.resized import PREFIX, compact_class, has_own_sizes


class Task(StrEnum):
    """What the head on a transformer computes, and with it what the model's own loss is.

    A text model without a head is for feature extraction: what it computes are embeddings, and its loss is their
    distance to the dense model's (``passes.models.embedding``).
    """

    CAUSAL_LM = "causal-lm"
    MASKED_LM = "masked-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    IMAGE_CLASSIFICATION = "image-classification"
    SEQ2SEQ_LM = "seq2seq-lm"
    FEATURE_EXTRACTION = "feature-extraction"

    @property
    def label_names(self) -> tuple[str, ...]:
        """The inputs without which the model computes no loss."""
        return ("start_positions", "end_positions") if self is Task.QUESTION_ANSWERING else ("labels",)


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    """The class names of one entry of a mapping: mostly one, a tuple for a few vision models."""
    return (entry,) if isinstance(entry, str) else tuple(entry)


# A class in several mappings has the first of these tasks: BART's is listed under masked LM as well.
_MAPPINGS: dict[Task, Mapping[str, Any]] = {
    Task.SEQ2SEQ_LM: vendor.names_by_model_type("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    Task.CAUSAL_LM: vendor.names_by_model_type("MODEL_FOR_CAUSAL_LM_MAPPING"),
    Task.MASKED_LM: vendor.names_by_model_type("MODEL_FOR_MASKED_LM_MAPPING"),
    Task.SEQUENCE_CLASSIFICATION: vendor.names_by_model_type("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    Task.TOKEN_CLASSIFICATION: vendor.names_by_model_type("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
    Task.QUESTION_ANSWERING: vendor.names_by_model_type("MODEL_FOR_QUESTION_ANSWERING_MAPPING"),
    Task.IMAGE_CLASSIFICATION: vendor.names_by_model_type("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
}

_SUFFIXES = {
    "ForCausalLM": Task.CAUSAL_LM,
    "ForMaskedLM": Task.MASKED_LM,
    "ForSequenceClassification": Task.SEQUENCE_CLASSIFICATION,
    "ForTokenClassification": Task.TOKEN_CLASSIFICATION,
    "ForQuestionAnswering": Task.QUESTION_ANSWERING,
    "ForImageClassification": Task.IMAGE_CLASSIFICATION,
    "ForConditionalGeneration": Task.SEQ2SEQ_LM,
    "ForSeq2SeqLM": Task.SEQ2SEQ_LM,
}

_BARE = frozenset(name for entry in vendor.names_by_model_type("MODEL_MAPPING").values() for name in _names(entry))

AUTO_CLASSES = {
    Task.CAUSAL_LM: "AutoModelForCausalLM",
    Task.MASKED_LM: "AutoModelForMaskedLM",
    Task.SEQUENCE_CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
    Task.IMAGE_CLASSIFICATION: "AutoModelForImageClassification",
    Task.SEQ2SEQ_LM: "AutoModelForSeq2SeqLM",
    Task.FEATURE_EXTRACTION: "AutoModel",
}
"""transformers' auto classes, by task."""


def _stock_tasks() -> dict[str, Task]:
    found: dict[str, Task] = {}
    for task, mapping in _MAPPINGS.items():
        for entry in mapping.values():
            for name in _names(entry):
                found.setdefault(name, task)
    return found


_STOCK_TASKS = _stock_tasks()


def task_of(model: PreTrainedModel | type[PreTrainedModel]) -> Task:
    """The task of a model or of its class: by the class's name, or by that of a stock class that it derives from.

    A class of the user's own is known by how its name ends, as in ``MyModelForCausalLM``. Raises UnsupportedModelError
    naming the class if there is no task for it.
    """
    model_class = model if isinstance(model, type) else type(model)
    for parent in model_class.__mro__:
        if parent.__module__.startswith("transformers.") and parent.__name__ in _STOCK_TASKS:
            return _STOCK_TASKS[parent.__name__]
    for suffix, task in _SUFFIXES.items():
        if model_class.__name__.endswith(suffix):
            return task
    if _is_headless_text(model_class):
        return Task.FEATURE_EXTRACTION
    if model_class.__name__ in _BARE:
        raise UnsupportedModelError(
            f"{model_class.__name__} has no task that lpc knows: it reads {_other_inputs(model_class)}, and without a "
            "head lpc prunes models of text alone, as embedding models: hand it over with its head, if there is one"
        )
    raise UnsupportedModelError(
        f"{model_class.__name__} has no task that lpc knows; supported are models for {', '.join(Task)}, "
        "stock ones or ones whose class name ends in, say, ForSequenceClassification"
    )


OTHER_INPUTS = frozenset({"pixel_values", "input_features", "input_values", "decoder_input_ids", "bbox"})
"""What a model takes that does not read text alone, or is no single stack."""


def _is_headless_text(kind: type[PreTrainedModel]) -> bool:
    """Whether a class is, in all that it computes, a stock one without a head that reads text."""
    kind = getattr(kind, "headless", kind)
    stock: Any = next((each for each in kind.__mro__ if each.__module__.startswith("transformers.")), None)
    if stock is None or stock.__name__ not in _BARE or kind.forward is not stock.forward:
        return False
    taken = inspect.signature(kind.forward).parameters
    return "input_ids" in taken and OTHER_INPUTS.isdisjoint(taken)


def _other_inputs(kind: type[PreTrainedModel]) -> str:
    """What a class reads that is not text alone."""
    taken = inspect.signature(kind.forward).parameters
    named = [name for name in taken if name in OTHER_INPUTS]
    return ", ".join(named or list(taken)[1:2]) or "something else than text"


def check_loss(kind: type[PreTrainedModel], model_type: str) -> None:
    """Raise UnsupportedModelError for a class that computes no loss: its ``forward`` takes no labels.

    A class of the user's own may take them among its ``**kwargs``; a stock one that does not name them has none. That
    of an embedding model is made (``passes.models.embedding``).
    """
    task = task_of(kind)
    if task is Task.FEATURE_EXTRACTION:
        return
    taken = inspect.signature(kind.forward).parameters
    stock = kind.__module__.startswith("transformers.")
    anything = not stock and any(each.kind is each.VAR_KEYWORD for each in taken.values())
    if not anything and not any(name in taken for name in task.label_names):
        other = next(iter(_names(_MAPPINGS[task].get(model_type, ()))), None)
        instead = f": load it as {other}, which does" if other not in (None, kind.__name__) else ""
        raise UnsupportedModelError(f"{kind.__name__} has no loss, its forward takes no labels{instead}")


def check_padding(config: PreTrainedConfig, task: Task) -> None:
    """Raise ModelError for a padding token that is no token, where it is needed.

    Embeddings refuse one beyond the vocabulary. A decoder that classifies looks for it in its inputs, which cannot hold
    -1, as old Llama configurations have it.
    """
    text = config.get_text_config()
    pad, words = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is None or words is None:
        return
    if not isinstance(pad, int) or pad >= words or (pad < 0 and task is not Task.CAUSAL_LM):
        raise ModelError(
            f"pad_token_id is {pad!r}, which is none of the {words} tokens: set it in config.json "
            "(model.config.pad_token_id) to a token that the tokenizer pads with, such as its eos token"
        )


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The transformers class of a configuration: the one that ``architectures`` names.

    A configuration whose layers have sizes of their own has the stock class, resized. Where no class is named:
    the seq2seq class of an encoder-decoder, else the masked LM class of an encoder, else the causal LM class. Raises
    UnsupportedModelError if the class is neither one of transformers' nor registered there, does not belong to the
    configuration, or has no task.
    """
    name = (config.architectures or [None])[0] or _default_class(config)
    compact = has_own_sizes(config)
    found = _class_named(name.removeprefix(PREFIX) if compact else name, config) if name else None
    if found is None:
        what = f"the class {name!r}" if name else f"the model type {config.model_type!r}"
        raise UnsupportedModelError(
            f"transformers has no class for {what}: register it (AutoConfig.register, AutoModelForCausalLM.register or "
            "the like), or load the model with its own class and hand over the live model"
        )
    wanted = cast(Any, found).config_class
    if not isinstance(config, wanted):
        raise UnsupportedModelError(
            f"the configuration names the class {name}, which wants a {wanted.__name__}, "
            f"but it is a {type(config).__name__}: correct its architectures or its model_type"
        )
    task_of(found)
    return cast("type[PreTrainedModel]", compact_class(found)) if compact else found


def _class_named(name: str, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """A class of transformers, or one of the user's own that is registered with transformers' auto classes."""
    stock: Any = getattr(transformers, name, None)
    if isinstance(stock, type) and issubclass(stock, PreTrainedModel):
        return stock
    for auto in AUTO_CLASSES.values():
        for own in vendor.classes_for(auto, config):
            if own.__name__ == name:
                return own
    return None


def _default_class(config: PreTrainedConfig) -> str | None:
    order: tuple[Task, ...] = (Task.CAUSAL_LM, Task.SEQ2SEQ_LM, Task.IMAGE_CLASSIFICATION)
    if getattr(config, "is_encoder_decoder", False):
        order = (Task.SEQ2SEQ_LM, *order)
    elif not getattr(config, "is_decoder", False):
        order = (Task.MASKED_LM, *order)
    for task in order:
        if config.model_type in _MAPPINGS[task]:
            return _names(_MAPPINGS[task][config.model_type])[0]
    return None

"""Asking and running a transformers model: its task, adapters, masks, probes, batches, stock classes."""

from passes.models.adapter import (
    ADAPTER,
    GRADIENT,
    Adapter,
    active_adapter,
    check_adapter,
    check_adapter_folder,
    lora_config,
    lora_weights,
    projections,
    scored_by,
)
from passes.models.base import (
    base_model,
    check_finite,
    count_parameters,
    evaluation_mode,
    module_at,
    parameter_at,
    plain_name,
    takes,
)
from passes.models.batches import Collate, Row, batches, label_count, sample_rows
from passes.models.fingerprint import fingerprint
from passes.models.heldout import heldout_loss
from passes.models.loading import register_auto_classes
from passes.models.masks import MaskedModel, masked
from passes.models.parameters import replaced, swapped
from passes.models.parity import Parity, relative_difference, rounding_tolerance
from passes.models.probe import Probe, Response, positions, respond
from passes.models.resized import FILE, PREFIX, compact_class, has_own_sizes
from passes.models.routing import routers, routing
from passes.models.stock import build_stock, filled, stock_class, twin_of
from passes.models.tasks import AUTO_CLASSES, Task, model_class, task_of
from passes.models.weights import DenseWeight, Weight, Window, stacked

__all__ = [
    "ADAPTER",
    "AUTO_CLASSES",
    "FILE",
    "GRADIENT",
    "PREFIX",
    "Adapter",
    "Collate",
    "DenseWeight",
    "MaskedModel",
    "Parity",
    "Probe",
    "Response",
    "Row",
    "Task",
    "Weight",
    "Window",
    "active_adapter",
    "base_model",
    "batches",
    "build_stock",
    "check_adapter",
    "check_adapter_folder",
    "check_finite",
    "compact_class",
    "count_parameters",
    "evaluation_mode",
    "filled",
    "fingerprint",
    "has_own_sizes",
    "heldout_loss",
    "label_count",
    "lora_config",
    "lora_weights",
    "masked",
    "model_class",
    "module_at",
    "parameter_at",
    "plain_name",
    "positions",
    "projections",
    "register_auto_classes",
    "relative_difference",
    "replaced",
    "respond",
    "rounding_tolerance",
    "routers",
    "routing",
    "sample_rows",
    "scored_by",
    "stacked",
    "stock_class",
    "swapped",
    "takes",
    "task_of",
    "twin_of",
]

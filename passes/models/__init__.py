"""Asking and running a transformers model: its task, adapters, masks, probes, batches, stock classes."""

from passes.models import vendor
from passes.models.adapter import (
    ADAPTER,
    ADAPTER_FILE,
    ADAPTER_FILES,
    CONFIG_FILE,
    GRADIENT,
    Adapter,
    LoraLayers,
    active_adapter,
    beyond_lora,
    check_adapter,
    check_adapter_folder,
    lora_config,
    lora_layers,
    lora_weights,
    projections,
    scored_by,
    stated_scaling,
    stored_factors,
)
from passes.models.auto_classes import register_auto_classes
from passes.models.base import (
    base_model,
    check_finite,
    check_finite_tensor,
    count_parameters,
    evaluation_mode,
    module_at,
    parameter_at,
    plain_name,
    takes,
)
from passes.models.batches import Collate, Row, batches, label_count, pieces, sample_rows
from passes.models.declared import check_declared
from passes.models.fingerprint import Fingerprint, fingerprint, tensors_digest
from passes.models.fit import Misfit
from passes.models.generation import generated
from passes.models.head import TokenHead, label_losses, labelled, scored_logits
from passes.models.heldout import heldout_loss
from passes.models.lean_loss import lean_loss
from passes.models.loading import dense_weights, keep_own_head, load_model, quiet, unloaded, unreadable
from passes.models.masks import MaskedModel, masked
from passes.models.memory import memory_advice, ran_out, smaller_batches
from passes.models.packed import full_precision, is_packed, packed_weights, packing_of
from passes.models.parameters import replaced, swapped
from passes.models.parity import Parity, relative_difference, rounding_tolerance
from passes.models.precision import (
    WIDE,
    bit_difference,
    constant_difference,
    plain_arithmetic,
    unchanged,
    wide,
    widened,
)
from passes.models.probe import OUTPUTS, Probe, Response, positions, respond
from passes.models.reasons import reason
from passes.models.resized import FILE, PREFIX, compact_class, has_own_sizes
from passes.models.routing import routers, routing
from passes.models.stock import build_stock, filled, rope_types, shell, stock_class, twin_of, weightless
from passes.models.stored import DTYPES, StoredTensor, check_fetched, headers, read_json
from passes.models.tasks import AUTO_CLASSES, Task, check_loss, check_padding, model_class, task_of
from passes.models.unloaded import Unloaded
from passes.models.weights import DenseWeight, Projection, Weight, Window, packer_of, unpacked

__all__ = [
    "ADAPTER",
    "ADAPTER_FILE",
    "ADAPTER_FILES",
    "AUTO_CLASSES",
    "CONFIG_FILE",
    "DTYPES",
    "FILE",
    "GRADIENT",
    "OUTPUTS",
    "PREFIX",
    "WIDE",
    "Adapter",
    "Collate",
    "DenseWeight",
    "Fingerprint",
    "LoraLayers",
    "MaskedModel",
    "Misfit",
    "Parity",
    "Probe",
    "Projection",
    "Response",
    "Row",
    "StoredTensor",
    "Task",
    "TokenHead",
    "Unloaded",
    "Weight",
    "Window",
    "active_adapter",
    "base_model",
    "batches",
    "beyond_lora",
    "bit_difference",
    "build_stock",
    "check_adapter",
    "check_adapter_folder",
    "check_declared",
    "check_fetched",
    "check_finite",
    "check_finite_tensor",
    "check_loss",
    "check_padding",
    "compact_class",
    "constant_difference",
    "count_parameters",
    "dense_weights",
    "evaluation_mode",
    "filled",
    "fingerprint",
    "full_precision",
    "generated",
    "has_own_sizes",
    "headers",
    "heldout_loss",
    "is_packed",
    "keep_own_head",
    "label_count",
    "label_losses",
    "labelled",
    "lean_loss",
    "load_model",
    "lora_config",
    "lora_layers",
    "lora_weights",
    "masked",
    "memory_advice",
    "model_class",
    "module_at",
    "packed_weights",
    "packer_of",
    "packing_of",
    "parameter_at",
    "pieces",
    "plain_arithmetic",
    "plain_name",
    "positions",
    "projections",
    "quiet",
    "ran_out",
    "read_json",
    "reason",
    "register_auto_classes",
    "relative_difference",
    "replaced",
    "respond",
    "rope_types",
    "rounding_tolerance",
    "routers",
    "routing",
    "sample_rows",
    "scored_by",
    "scored_logits",
    "shell",
    "smaller_batches",
    "stated_scaling",
    "stock_class",
    "stored_factors",
    "swapped",
    "takes",
    "task_of",
    "tensors_digest",
    "twin_of",
    "unchanged",
    "unloaded",
    "unpacked",
    "unreadable",
    "vendor",
    "weightless",
    "wide",
    "widened",
]

"""lpc: a compiler that makes trained transformers smaller.

``import lpc`` is light: torch and transformers are imported when a name that needs them is first used (PEP 562). It has
transformers' classes load checkpoints whose layers have sizes of their own (``passes.loading``), and keeps onnxruntime
from reporting home (``exporters.telemetry``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exporters.telemetry import switch_off as _switch_off
from passes.loading import install as _install

if TYPE_CHECKING:
    from exporters.onnx_options import OnnxOptions as OnnxOptions
    from lpc.compression import DataOptions as DataOptions
    from lpc.compression import apply as apply
    from lpc.compression import compress as compress
    from lpc.family import CompactFamily as CompactFamily
    from lpc.family import compress_family as compress_family
    from lpc.instructions import InstructionFormat as InstructionFormat
    from lpc.planning import diff as diff
    from lpc.planning import plan as plan
    from lpc.report import Report as Report
    from lpc.result import Result as Result
    from lpc.scoring import Score as Score
    from lpc.scoring import score as score
    from lpc.source import load as load
    from passes.adapter import LoraOptions as LoraOptions
    from passes.attention import AttentionLayout as AttentionLayout
    from passes.attention import Packing as Packing
    from passes.budget import Budget as Budget
    from passes.budget import Workload as Workload
    from passes.compensate import CompensateOptions as CompensateOptions
    from passes.criteria import CRITERIA as CRITERIA
    from passes.criteria import register_criterion as register_criterion
    from passes.distill import DistillOptions as DistillOptions
    from passes.families import Family as Family
    from passes.families import register_attention as register_attention
    from passes.importance import ImportanceOptions as ImportanceOptions
    from passes.plan import Plan as Plan
    from passes.recover import RecoverOptions as RecoverOptions
    from passes.schedule import ONE_SHOT as ONE_SHOT
    from passes.schedule import Schedule as Schedule
    from passes.scores import SavedScores as SavedScores
    from passes.target import Target as Target
    from passes.trace import TraceOptions as TraceOptions
    from passes.tune import TuneOptions as TuneOptions

_ERRORS = (
    "DataError",
    "LpcError",
    "MissingFileError",
    "ModelError",
    "OptionError",
    "OutputError",
    "OutputExistsError",
    "PassError",
    "PlanError",
    "PostconditionError",
    "PreconditionError",
    "TokenizerError",
    "UnreachableBudgetError",
    "UnsupportedModelError",
)

_HOMES = {
    "AttentionLayout": "passes.attention",
    "Budget": "passes.budget",
    "CRITERIA": "passes.criteria",
    "CompactFamily": "lpc.family",
    "CompensateOptions": "passes.compensate",
    "DataOptions": "lpc.compression",
    "DistillOptions": "passes.distill",
    "Family": "passes.families",
    "ImportanceOptions": "passes.importance",
    "InstructionFormat": "lpc.instructions",
    "LoraOptions": "passes.adapter",
    "ONE_SHOT": "passes.schedule",
    "OnnxOptions": "exporters.onnx_options",
    "Packing": "passes.attention",
    "Plan": "passes.plan",
    "RecoverOptions": "passes.recover",
    "Report": "lpc.report",
    "Result": "lpc.result",
    "SavedScores": "passes.scores",
    "Schedule": "passes.schedule",
    "Score": "lpc.scoring",
    "Target": "passes.target",
    "TraceOptions": "passes.trace",
    "TuneOptions": "passes.tune",
    "Workload": "passes.budget",
    "apply": "lpc.compression",
    "compress": "lpc.compression",
    "compress_family": "lpc.family",
    "diff": "lpc.planning",
    "load": "lpc.source",
    "plan": "lpc.planning",
    "register_attention": "passes.families",
    "register_criterion": "passes.criteria",
    "score": "lpc.scoring",
    **dict.fromkeys(_ERRORS, "passes.errors"),
}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOMES)]

_install()
_switch_off()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lpc' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

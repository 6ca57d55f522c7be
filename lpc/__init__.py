"""lpc: a compiler that makes trained transformers smaller.

``import lpc`` is light: torch and transformers are imported when a name that needs them is first used (PEP 562). It
changes nothing in other libraries but one: onnxruntime is kept from reporting home (``exporters.telemetry``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exporters.telemetry import switch_off as _switch_off

if TYPE_CHECKING:
    from exporters.onnx import Precision as Precision
    from exporters.onnx import register_precision as register_precision
    from exporters.options import OnnxOptions as OnnxOptions
    from exporters.registry import Exporter as Exporter
    from exporters.registry import register_exporter as register_exporter
    from lpc.checkup import doctor as doctor
    from lpc.comparing import compare as compare
    from lpc.compression import apply as apply
    from lpc.compression import compress as compress
    from lpc.estimation import Estimate as Estimate
    from lpc.estimation import estimate as estimate
    from lpc.evaluating import evaluate as evaluate
    from lpc.evaluation import Quality as Quality
    from lpc.evaluation import quality as quality
    from lpc.exporting import export as export
    from lpc.exporting import export_each as export_each
    from lpc.family import CompactFamily as CompactFamily
    from lpc.family import compress_family as compress_family
    from lpc.inspection import inspect as inspect
    from lpc.options import BenchmarkOptions as BenchmarkOptions
    from lpc.options import CompressOptions as CompressOptions
    from lpc.options import DataOptions as DataOptions
    from lpc.options import EvaluateOptions as EvaluateOptions
    from lpc.options import InstructionFormat as InstructionFormat
    from lpc.options import SweepOptions as SweepOptions
    from lpc.planning import diff as diff
    from lpc.planning import plan as plan
    from lpc.report import Report as Report
    from lpc.result import Result as Result
    from lpc.serving import serve as serve
    from lpc.source import load as load
    from lpc.speed import benchmark as benchmark
    from lpc.streaming import apply_to as apply_to
    from lpc.sweeping import sweep as sweep
    from lpc.verifying import verify as verify
    from passes.criteria import CRITERIA as CRITERIA
    from passes.criteria import SavedScores as SavedScores
    from passes.criteria import register_criterion as register_criterion
    from passes.families import AttentionLayout as AttentionLayout
    from passes.families import Family as Family
    from passes.families import Packing as Packing
    from passes.families import register_attention as register_attention
    from passes.graph import Plan as Plan
    from passes.models import register_auto_classes as register_auto_classes
    from passes.options import ONE_SHOT as ONE_SHOT
    from passes.options import Budget as Budget
    from passes.options import CompensateOptions as CompensateOptions
    from passes.options import DistillOptions as DistillOptions
    from passes.options import ImportanceOptions as ImportanceOptions
    from passes.options import LoraOptions as LoraOptions
    from passes.options import Measure as Measure
    from passes.options import RecoverOptions as RecoverOptions
    from passes.options import RunOptions as RunOptions
    from passes.options import Schedule as Schedule
    from passes.options import Target as Target
    from passes.options import TraceOptions as TraceOptions
    from passes.options import TuneOptions as TuneOptions
    from passes.options import Workload as Workload
    from passes.options import register_measure as register_measure
    from passes.pipeline import Pass as Pass
    from passes.pipeline import PassResult as PassResult
    from passes.pipeline import Pipeline as Pipeline
    from passes.pipeline import Program as Program
    from passes.pipeline import RunContext as RunContext

_ERRORS = (
    "DataError",
    "EngineError",
    "FinishedError",
    "LpcError",
    "MissingFileError",
    "ModelError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "PassError",
    "PlanError",
    "PluginError",
    "PostconditionError",
    "PreconditionError",
    "RankError",
    "StoppedError",
    "TokenizerError",
    "UnreachableBudgetError",
    "UnsupportedModelError",
)

_HOMES = {
    "AttentionLayout": "passes.families",
    "BenchmarkOptions": "lpc.options",
    "Budget": "passes.options",
    "CRITERIA": "passes.criteria",
    "CompactFamily": "lpc.family",
    "CompensateOptions": "passes.options",
    "CompressOptions": "lpc.options",
    "DataOptions": "lpc.options",
    "DistillOptions": "passes.options",
    "Estimate": "lpc.estimation",
    "EvaluateOptions": "lpc.options",
    "Exporter": "exporters.registry",
    "Family": "passes.families",
    "ImportanceOptions": "passes.options",
    "InstructionFormat": "lpc.options",
    "LoraOptions": "passes.options",
    "Measure": "passes.options",
    "ONE_SHOT": "passes.options",
    "OnnxOptions": "exporters.options",
    "Packing": "passes.families",
    "Pass": "passes.pipeline",
    "PassResult": "passes.pipeline",
    "Pipeline": "passes.pipeline",
    "Plan": "passes.graph",
    "Precision": "exporters.onnx",
    "Program": "passes.pipeline",
    "RecoverOptions": "passes.options",
    "Report": "lpc.report",
    "Result": "lpc.result",
    "RunContext": "passes.pipeline",
    "RunOptions": "passes.options",
    "SavedScores": "passes.criteria",
    "Schedule": "passes.options",
    "Quality": "lpc.evaluation",
    "SweepOptions": "lpc.options",
    "Target": "passes.options",
    "TraceOptions": "passes.options",
    "TuneOptions": "passes.options",
    "Workload": "passes.options",
    "apply": "lpc.compression",
    "apply_to": "lpc.streaming",
    "compare": "lpc.comparing",
    "compress": "lpc.compression",
    "register_auto_classes": "passes.models",
    "compress_family": "lpc.family",
    "benchmark": "lpc.speed",
    "diff": "lpc.planning",
    "estimate": "lpc.estimation",
    "doctor": "lpc.checkup",
    "evaluate": "lpc.evaluating",
    "export": "lpc.exporting",
    "export_each": "lpc.exporting",
    "inspect": "lpc.inspection",
    "load": "lpc.source",
    "plan": "lpc.planning",
    "register_attention": "passes.families",
    "register_criterion": "passes.criteria",
    "register_exporter": "exporters.registry",
    "register_measure": "passes.options",
    "register_precision": "exporters.onnx",
    "quality": "lpc.evaluation",
    "sweep": "lpc.sweeping",
    "serve": "lpc.serving",
    "verify": "lpc.verifying",
    **dict.fromkeys(_ERRORS, "passes.errors"),
}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOMES)]

_switch_off()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lpc' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""What a user can ask of the compiler: budgets and their measures, schedules, tuning, one declaration an option."""

from passes.options.budget import RUNTIMES, Amount, Budget, Limit, Workload
from passes.options.check import check, checked, nearest
from passes.options.compensate import CompensateOptions
from passes.options.criteria import CRITERION_NAMES
from passes.options.distill import DistillOptions
from passes.options.importance import ImportanceOptions
from passes.options.lora import LoraOptions
from passes.options.measures import BYTES, COUNTS, MEASURES, SECONDS, Measure, register_measure
from passes.options.names import Names, names_in
from passes.options.option import AUTO, Facts, Group, Option, as_in, declared, option
from passes.options.plain import from_dict, schema, to_dict
from passes.options.recover import RecoverOptions
from passes.options.run import DTYPE_NAMES, DtypeLike, RunOptions, left_to_run
from passes.options.schedule import ONE_SHOT, Schedule, cubic
from passes.options.score import ScoreOptions
from passes.options.snapshots import SnapshotOptions
from passes.options.target import Balance, Comparison, Layout, Target
from passes.options.trace import TraceOptions
from passes.options.tune import LOGGERS, TuneOptions, check_loggers
from passes.options.types import alternatives, main_type, read_text, texts_of

__all__ = [
    "AUTO",
    "BYTES",
    "COUNTS",
    "CRITERION_NAMES",
    "DTYPE_NAMES",
    "LOGGERS",
    "MEASURES",
    "ONE_SHOT",
    "RUNTIMES",
    "SECONDS",
    "Amount",
    "Balance",
    "Budget",
    "Comparison",
    "CompensateOptions",
    "DistillOptions",
    "DtypeLike",
    "Facts",
    "Group",
    "ImportanceOptions",
    "Layout",
    "Limit",
    "LoraOptions",
    "Measure",
    "Names",
    "Option",
    "RecoverOptions",
    "RunOptions",
    "Schedule",
    "ScoreOptions",
    "SnapshotOptions",
    "Target",
    "TraceOptions",
    "TuneOptions",
    "Workload",
    "alternatives",
    "as_in",
    "check",
    "check_loggers",
    "checked",
    "cubic",
    "declared",
    "from_dict",
    "left_to_run",
    "main_type",
    "names_in",
    "nearest",
    "option",
    "read_text",
    "register_measure",
    "schema",
    "texts_of",
    "to_dict",
]

"""How units are ranked: one file a criterion (``loraprune``, ``obs``, ...), behind one interface."""

from passes.criteria.base import AnyModel, Criterion, Finite, Needs
from passes.criteria.fisher import Fisher
from passes.criteria.flap import Flap
from passes.criteria.loraprune import LoRAPrune
from passes.criteria.magnitude import Magnitude
from passes.criteria.mask_fisher import MaskFisher
from passes.criteria.measured_depth import MeasuredDepth
from passes.criteria.obs import Obs
from passes.criteria.portions import HOST_WORK_BYTES, portions, room_on
from passes.criteria.random import Random
from passes.criteria.reap import Reap
from passes.criteria.registry import (
    CRITERIA,
    CriterionEntry,
    CriterionFactory,
    ScoreFunction,
    best_criterion,
    criterion,
    criterion_named,
    make_criterion,
    register_criterion,
)
from passes.criteria.saved import SCORES_FILE, SavedScores
from passes.criteria.taylor import Taylor
from passes.criteria.wanda import Wanda

__all__ = [
    "CRITERIA",
    "HOST_WORK_BYTES",
    "SCORES_FILE",
    "AnyModel",
    "Criterion",
    "CriterionEntry",
    "CriterionFactory",
    "Finite",
    "Fisher",
    "Flap",
    "LoRAPrune",
    "Magnitude",
    "MaskFisher",
    "MeasuredDepth",
    "Needs",
    "Obs",
    "Random",
    "Reap",
    "SavedScores",
    "ScoreFunction",
    "Taylor",
    "Wanda",
    "best_criterion",
    "criterion",
    "criterion_named",
    "make_criterion",
    "portions",
    "register_criterion",
    "room_on",
]

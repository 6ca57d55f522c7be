"""Criteria: how units are ranked. Each gives scores [units] a dimension; the lowest go first. One file an idea."""

from passes.criteria.base import Criterion, Needs, mean_over_ranks
from passes.criteria.fisher import Fisher
from passes.criteria.flap import Flap
from passes.criteria.loraprune import LoRAPrune
from passes.criteria.magnitude import Magnitude
from passes.criteria.mask_fisher import MaskFisher
from passes.criteria.obs import Obs
from passes.criteria.random import Random
from passes.criteria.registry import (
    AUTO,
    CRITERIA,
    CriterionEntry,
    CriterionFactory,
    ScoreFunction,
    best_criterion,
    criterion_named,
    make_criterion,
    register_criterion,
)
from passes.criteria.taylor import Taylor
from passes.criteria.wanda import Wanda

__all__ = [
    "AUTO",
    "CRITERIA",
    "Criterion",
    "CriterionEntry",
    "CriterionFactory",
    "Fisher",
    "Flap",
    "LoRAPrune",
    "Magnitude",
    "MaskFisher",
    "Needs",
    "Obs",
    "Random",
    "ScoreFunction",
    "Taylor",
    "Wanda",
    "best_criterion",
    "criterion_named",
    "make_criterion",
    "mean_over_ranks",
    "register_criterion",
]

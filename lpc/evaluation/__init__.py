"""How good a model is: held-out quality, perplexity, lm-eval."""

from lpc.evaluation.evaluate import evaluate
from lpc.evaluation.heldout import Quality, quality, quality_of
from lpc.evaluation.perplexity import token_perplexity
from lpc.evaluation.plausible import warn_of_loss, warn_of_text
from lpc.evaluation.results import Evaluation
from lpc.evaluation.tables import evaluation_rows

__all__ = [
    "Evaluation",
    "Quality",
    "evaluate",
    "evaluation_rows",
    "quality",
    "quality_of",
    "token_perplexity",
    "warn_of_loss",
    "warn_of_text",
]

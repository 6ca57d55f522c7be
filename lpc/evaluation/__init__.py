"""How good a model is: held-out quality, perplexity, lm-eval."""

from lpc.evaluation.evaluate import evaluate
from lpc.evaluation.heldout import Score, score, score_model
from lpc.evaluation.perplexity import token_perplexity
from lpc.evaluation.plausible import warn_of_loss, warn_of_text
from lpc.evaluation.results import Evaluation
from lpc.evaluation.tables import evaluation_rows

__all__ = [
    "Evaluation",
    "Score",
    "evaluate",
    "evaluation_rows",
    "score",
    "score_model",
    "token_perplexity",
    "warn_of_loss",
    "warn_of_text",
]

"""How good a model is: held-out quality, perplexity, lm-eval."""

from lpc.evaluation.completing import NEW_TOKENS, completions
from lpc.evaluation.evaluate import evaluate
from lpc.evaluation.heldout import embedding_quality, quality, quality_of
from lpc.evaluation.kept import EVALUATION, Kept
from lpc.evaluation.perplexity import token_perplexity
from lpc.evaluation.plausible import warn_of_loss, warn_of_text
from lpc.evaluation.quality import Quality
from lpc.evaluation.replies import REPLY_TOKENS, Replies, RepliesCompared, Reply, check_asked, fixed_prompts, replies
from lpc.evaluation.results import Evaluation
from lpc.evaluation.similarity import embedded
from lpc.evaluation.tables import difference_rows, evaluation_rows, told, verdict

__all__ = [
    "EVALUATION",
    "NEW_TOKENS",
    "REPLY_TOKENS",
    "Evaluation",
    "Kept",
    "Quality",
    "Replies",
    "RepliesCompared",
    "Reply",
    "check_asked",
    "completions",
    "difference_rows",
    "embedded",
    "embedding_quality",
    "evaluate",
    "evaluation_rows",
    "fixed_prompts",
    "quality",
    "quality_of",
    "replies",
    "token_perplexity",
    "told",
    "verdict",
    "warn_of_loss",
    "warn_of_text",
]

"""The description of a model type that nobody described: found, and proven on a small random model of its class."""

from passes.discovery.search import describe, small_model
from passes.discovery.small import random_model, small_config

__all__ = ["describe", "random_model", "small_config", "small_model"]

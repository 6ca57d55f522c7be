"""A plan applied to a checkpoint a tensor at a time: merged, cut and proven, none of its models in memory."""

from passes.streaming.streaming import Streaming

__all__ = ["Streaming"]

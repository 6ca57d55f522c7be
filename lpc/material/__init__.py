"""What a model is tuned and measured on: the user's data, the model's own, or both."""

from lpc.material.material import Answerer, AnyData, Material, Measurer, set_aside
from lpc.material.prepare import prepare

__all__ = ["Answerer", "AnyData", "Material", "Measurer", "prepare", "set_aside"]

"""What a model writes by itself: texts to tune on where the user gives none, and shares of them beside the user's."""

from lpc.generation.own import AT_ONCE, GeneratePass, Mixed, OwnText, Written, mixed_count
from lpc.generation.script import Script

__all__ = ["AT_ONCE", "GeneratePass", "Mixed", "OwnText", "Script", "Written", "mixed_count"]

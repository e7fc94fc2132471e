"""A zoo of procedural objects with true captions: training data without a download."""

from datasets.zoo.kinds import COLORS, KINDS
from datasets.zoo.sample import ZooObject, is_held_out, redraw, sample_object

__all__ = ["COLORS", "KINDS", "ZooObject", "is_held_out", "redraw", "sample_object"]

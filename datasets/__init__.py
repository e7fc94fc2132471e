"""Loading and making of training data. Importing it registers the data sets."""

from datasets.images import laion, listed
from datasets.orbits import gobjaverse, packed

__all__ = ["gobjaverse", "laion", "listed", "packed"]

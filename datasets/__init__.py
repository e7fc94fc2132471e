"""Loads and renders training data. Importing this package registers the data sets."""

from datasets.images import laion, listed
from datasets.orbits import gobjaverse, packed

__all__ = ["gobjaverse", "laion", "listed", "packed"]

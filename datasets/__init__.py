"""Loads and renders training data. Importing this package registers the data sets."""

from pathlib import Path

from utils.registry import import_parts

import_parts(__name__, Path(__file__).parent)

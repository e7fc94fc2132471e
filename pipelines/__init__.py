"""Sampling, training and evaluation. Importing this package registers samplers, tasks and writers."""

from pathlib import Path

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
from pipelines.sampling.pipeline import ViewsPipeline
from utils.registry import import_parts

import_parts(__name__, Path(__file__).parent)

__all__ = ["ViewsPipeline"]

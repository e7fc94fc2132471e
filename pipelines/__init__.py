"""Sampling, training and evaluation. Importing this package registers samplers, entrances and writers."""

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
from pipelines.reconstruction import feed_forward
from pipelines.sampling import inference, sample_folder, sampler
from pipelines.sampling.pipeline import ViewsPipeline
from pipelines.training import objectives, pretrain, preview

__all__ = [
    "ViewsPipeline",
    "feed_forward",
    "inference",
    "objectives",
    "pretrain",
    "preview",
    "sample_folder",
    "sampler",
]

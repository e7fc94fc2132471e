"""Sampling, training and evaluation. Importing this package registers samplers, entrances and writers."""

from pipelines import inference, sampler, visual  # noqa: F401

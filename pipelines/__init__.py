"""Sampling, training and evaluation. Importing this package registers samplers, entrances and writers."""

from pipelines import inference, objectives, pretrain, preview, sampler, visual  # noqa: F401

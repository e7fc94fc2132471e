"""Sampling, training and evaluation. Importing this package registers samplers, entrances and writers."""

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
from pipelines import inference, objectives, pretrain, preview, reconstruction, sampler, visual  # noqa: F401

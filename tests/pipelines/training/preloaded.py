"""What a training imports."""

import open_clip  # noqa: F401
from diffusers import AutoencoderKL  # noqa: F401
from torch.distributed import fsdp  # noqa: F401

import train_net  # noqa: F401
from pipelines.training import trainer  # noqa: F401

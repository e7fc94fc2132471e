"""What a training imports."""

# ruff: noqa: E402
import gc

gc.disable()  # it would take a fifth of the time of these imports

import open_clip  # noqa: F401
import torch.utils.data._utils.worker
from diffusers import AutoencoderKL  # noqa: F401
from torch.distributed import fsdp  # noqa: F401

import train_net  # noqa: F401
from pipelines.training import trainer  # noqa: F401

# Workers ask this often whether the training is still there; PyTorch's five seconds would be waited for.
torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.5

gc.freeze()  # processes that are forked from this one need not look at these modules
gc.enable()

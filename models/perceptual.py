"""LPIPS as a loss, with its real weights or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.errors import ConfigError

LPIPS_SIZE = 256


class PerceptualLoss(nn.Module):
    """Mean LPIPS (arXiv:1801.03924, VGG) of images in [0, 1], compared at 256 x 256 at most."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_FCHW: Tensor, true_FCHW: Tensor) -> Tensor:
        if images_FCHW.shape[-1] > LPIPS_SIZE:
            images_FCHW, true_FCHW = (
                functional.interpolate(images, size=LPIPS_SIZE, mode="bilinear", align_corners=False)
                for images in (images_FCHW, true_FCHW)
            )
        return self.network(images_FCHW, true_FCHW, normalize=True).mean()


def load_lpips(device: torch.device, *, option: str = "objective.lambda_lpips") -> PerceptualLoss:
    """LPIPS on VGG-16, its weights taken from torch's cache; nothing is downloaded.

    Raises:
        ConfigError: the weights are not there.
    """
    import torchvision.models

    url = torchvision.models.VGG16_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.is_file():
        raise ConfigError(f"{option} is not 0, but the weights of LPIPS are missing: put {url} into {file.parent}")
    from torchmetrics.functional.image.lpips import _LPIPS

    return PerceptualLoss(_LPIPS(net="vgg")).to(device).eval()

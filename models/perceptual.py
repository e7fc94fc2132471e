"""LPIPS (arXiv:1801.03924) from torchmetrics, as a metric and as a loss, with its published weights.

The weights must be in torch's cache. Nothing is downloaded. Letters: V views, F images, C channels, H W pixels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from utils.errors import ConfigError

log = logging.getLogger(__name__)

# In order of preference; the first is the network in the LGM and NeRF literature.
LPIPS_NETWORKS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}
LOSS_SIZE = 256


class Lpips(nn.Module):
    """Distance of each image to its true image, (F,); differentiable.

    Args:
        network: vgg, alex or squeeze; its weights must be in torch's cache.
    """

    def __init__(self, network: str) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        super().__init__()
        self.network = network
        # The metric of torchmetrics keeps one mean over all images, so its network is called directly.
        self.net = LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True).net.requires_grad_(False)

    def forward(self, images_FCHW: Tensor, true_FCHW: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return self.net(images_FCHW, true_FCHW, normalize=True).flatten()


class PerceptualLoss(nn.Module):
    """Mean LPIPS of images in [0, 1], compared with at most 256 x 256 pixels."""

    def __init__(self, lpips: nn.Module) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, images_FCHW: Tensor, true_FCHW: Tensor) -> Tensor:
        if images_FCHW.shape[-1] > LOSS_SIZE:
            images_FCHW, true_FCHW = (
                functional.interpolate(images, size=LOSS_SIZE, mode="bilinear", align_corners=False)
                for images in (images_FCHW, true_FCHW)
            )
        return self.lpips(images_FCHW, true_FCHW).mean()


def load_perceptual_loss(device: torch.device, *, option: str = "objective.lambda_lpips") -> PerceptualLoss:
    """The LPIPS loss with VGG-16.

    Raises:
        ConfigError: the weights of VGG-16 are not in torch's cache.
    """
    file = weight_file("vgg")
    if not file.is_file():
        raise ConfigError(
            f"{option} is not 0, but the weights of LPIPS are missing; put {weight_url('vgg')} into {file.parent}"
        )
    return PerceptualLoss(Lpips("vgg")).to(device).eval()


def find_lpips(*, device: torch.device) -> Lpips | None:
    """LPIPS with the first of LPIPS_NETWORKS whose weights exist; if there is none, a warning and None."""
    for network in LPIPS_NETWORKS:
        if weight_file(network).is_file():
            return Lpips(network).to(device).eval()
    names = [weight_file(network).name for network in LPIPS_NETWORKS]
    log.warning(
        "LPIPS is not measured, because none of %s is in %s; put one of these files of torchvision there",
        names,
        weight_file("vgg").parent,
    )
    return None


def weight_url(network: str) -> str:
    """URL of the weights of a network at torchvision."""
    import torchvision.models

    return getattr(torchvision.models, LPIPS_NETWORKS[network]).DEFAULT.url


def weight_file(network: str) -> Path:
    """Path of the weights of a network in torch's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weight_url(network)).name

"""Train an autoencoder on views; at the end its latents have mean 0 and standard deviation 1.

Letters: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.training.data.global_batch import epoch_order
from pipelines.training.data.orbits_in_memory import OrbitPixels, load_orbits
from pipelines.training.objectives.base import Objective
from utils.errors import ConfigError
from utils.images import psnr_db, save_png
from utils.registry import ENGINE
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

NUM_PREVIEWS = 8
LEAST_ERROR = 1e-6  # mean squared error, 60 dB: an image with almost no error must not dominate the gradient


@ENGINE.register(name="train_autoencoder_entrance")
class RestoreViews(Objective):
    """Loss of absolute errors of pixels and of their differences at several scales, PSNR, and a small KL divergence."""

    stem = "autoencoder"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            kl_weight: weight of the KL divergence from the normal distribution, a mean over latent values.
            edge_weight: weight of the error of differences between neighbouring pixels, which keeps thin parts sharp.
            num_scales: number of scales for the differences; each scale halves the image.
            object_weight: additional weight of the pixels of the object, relative to those of the background.
            decibel_weight: weight of the mean PSNR of the images, which is subtracted; an image with a small error then
                counts as much as any other.
            color_spread: if above 0, half of the images get a random permutation of the colour channels, and each
                channel of all images is raised to a power whose logarithm has this standard deviation; white and black
                do not change.
            mirror: flip half of the images horizontally.
            num_whitening: number of images for whitening the latents at the end; 0: no whitening.
        """

        kl_weight: float = 1e-4
        edge_weight: float = 1.0
        num_scales: int = 3
        object_weight: float = 1.0
        decibel_weight: float = 0.0
        color_spread: float = 0.0
        mirror: bool = False
        num_whitening: int = 2048

        def __post_init__(self) -> None:
            not_negative = (
                "kl_weight",
                "edge_weight",
                "object_weight",
                "decibel_weight",
                "color_spread",
                "num_whitening",
            )
            for name in not_negative:
                if getattr(self, name) < 0:
                    raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
            if self.num_scales < 1:
                raise ConfigError(f"num_scales must be >= 1, got {self.num_scales}")

    @classmethod
    def weight_files(cls, options: Config, cfg: RunConfig) -> dict[str, str | None]:
        return super().weight_files(options, cfg) | {"auto_encoder.pretrained": cfg.auto_encoder.pretrained}

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=1)
        self.config = config
        if not cfg.auto_encoder.options.can_be_trained:
            raise ConfigError(
                f"TASK_TYPE={cfg.TASK_TYPE} cannot train auto_encoder.type={cfg.auto_encoder.type}; "
                "set auto_encoder.type=AutoencoderKL"
            )
        self.network = cfg.auto_encoder.build()
        if config.num_whitening and self.network.scale_factor != 1:
            raise ConfigError(
                f"auto_encoder.scale_factor={self.network.scale_factor}, but objective.num_whitening gives the latents "
                "standard deviation 1; set scale_factor to 1.0, or num_whitening to 0"
            )
        self.orbits = load_orbits(cfg.vid_dataset.build(), device=device)

    @property
    def sample_source(self) -> OrbitPixels:
        return self.orbits

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for orbits_B, views_B in self.global_batch.single_views(
            self.orbits.num_orbits, self.orbits.num_views, start=start
        ):
            yield self.varied(*self.orbits.views(orbits_B, views_B))

    def varied(self, images_B3HW: Tensor, masks_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Change colours at random and flip images horizontally, according to the options."""
        num = len(images_B3HW)
        if self.config.mirror:
            turned_B111 = (self.global_batch.rand(num) < 0.5).view(-1, 1, 1, 1)
            images_B3HW = torch.where(turned_B111, images_B3HW.flip(-1), images_B3HW)
            masks_B1HW = torch.where(turned_B111, masks_B1HW.flip(-1), masks_B1HW)
        if self.config.color_spread:
            kept_B1 = self.global_batch.rand(num, 1) < 0.5
            order_B3 = self.global_batch.rand(num, 3).argsort(dim=1)
            order_B3 = torch.where(kept_B1, torch.arange(3, device=order_B3.device), order_B3)
            images_B3HW = images_B3HW.gather(1, order_B3.view(-1, 3, 1, 1).expand_as(images_B3HW))
            power_B3 = (self.config.color_spread * self.global_batch.randn(num, 3)).exp()
            images_B3HW = images_B3HW ** power_B3.view(-1, 3, 1, 1)
        return images_B3HW, masks_B1HW

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images_B3HW, masks_B1HW = batch
        posterior = self.network.encode(images_B3HW * 2 - 1)
        noise = self.global_batch.randn(*posterior.mean.shape).to(posterior.mean.dtype)
        restored_B3HW = self.network.decode(posterior.mean + posterior.std * noise).float() / 2 + 0.5
        weight_B1HW = 1 + self.config.object_weight * masks_B1HW
        pixel = ((restored_B3HW - images_B3HW).abs() * weight_B1HW).mean()
        edge = edge_error(restored_B3HW, images_B3HW, weight_B1HW, num_scales=self.config.num_scales)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = pixel + self.config.edge_weight * edge + self.config.kl_weight * divergence
        if self.config.decibel_weight:
            psnr_B = psnr_db((restored_B3HW - images_B3HW).square().mean(dim=(1, 2, 3)) + LEAST_ERROR)
            loss = loss - self.config.decibel_weight * psnr_B.mean()
        psnr = psnr_db((restored_B3HW.detach().clamp(0, 1) - images_B3HW).square().mean())
        return loss, {"pixel": pixel.detach(), "edge": edge.detach(), "kl": divergence.detach(), "psnr": psnr}

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.network.network.encoder, self.network.network.decoder]

    def finish(self) -> None:
        if self.config.num_whitening:
            mean_C, std_C = self.latent_moments()
            self.network.whiten(mean_C, std_C)
            log.info("latents whitened: they had mean %s, standard deviation %s", *(_short(v) for v in (mean_C, std_C)))

    @torch.no_grad()
    def latent_moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each latent channel over random training views."""
        latents, generator = [], torch.Generator().manual_seed(self.cfg.seed)
        for orbits_B in epoch_order(self.orbits.num_orbits, 32, seed=self.cfg.seed):
            views_B = torch.randint(self.orbits.num_views, orbits_B.shape, generator=generator)
            images_B3HW, _ = self.orbits.views(orbits_B, views_B)
            latents.append(self.network.encode(images_B3HW * 2 - 1).mean.float())
            if 32 * len(latents) >= self.config.num_whitening:
                break
        channels_CM = torch.cat(latents).transpose(0, 1).flatten(1)
        return channels_CM.mean(dim=1), channels_CM.std(dim=1)

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> None:
        """Write an image with views above and restored views below."""
        numbers = torch.arange(min(NUM_PREVIEWS, self.orbits.num_orbits))
        images_B3HW, _ = self.orbits.views(numbers, torch.zeros_like(numbers))
        restored_B3HW = self.network.decode(self.network.encode(images_B3HW * 2 - 1).mean) / 2 + 0.5
        rows = [torch.cat(list(images), dim=2) for images in (images_B3HW, restored_B3HW.clamp(0, 1))]
        save_png(folder / f"autoencoder_{step:08d}.png", torch.cat(rows, dim=1).float().cpu())


def edge_error(restored_B3HW: Tensor, images_B3HW: Tensor, weight_B1HW: Tensor, *, num_scales: int) -> Tensor:
    """Return the mean absolute error of differences between neighbouring pixels, at `num_scales` scales."""
    error, total = restored_B3HW - images_B3HW, restored_B3HW.new_zeros(())
    for _ in range(num_scales):
        across = (error[..., :, 1:] - error[..., :, :-1]).abs() * weight_B1HW[..., :, 1:]
        down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight_B1HW[..., 1:, :]
        total = total + across.mean() + down.mean()
        error, weight_B1HW = functional.avg_pool2d(error, 2), functional.avg_pool2d(weight_B1HW, 2)
    return total / num_scales


def _short(values: Tensor) -> str:
    return "[" + " ".join(f"{value:.2f}" for value in values.tolist()) + "]"

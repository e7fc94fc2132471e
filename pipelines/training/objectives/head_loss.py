"""The loss, the choice of views and the previews of both objectives that train the Gaussian head.

Letters: B batch, V views of an orbit, K views of a sample, the first I of which are the head's input, C channels,
H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.gaussians.lgm import evenly_spaced
from models.gaussians.rendering import Rendering, pick_rasterizer, render
from models.gaussians.scene import Gaussians
from models.perceptual import load_perceptual_loss
from pipelines.reconstruction.feed_forward import FeedForwardConfig
from pipelines.training.data.orbits_in_memory import composite
from utils.cameras import intrinsics, opencv_to_opengl
from utils.errors import ConfigError
from utils.images import psnr_db
from utils.registry import RECONSTRUCTORS
from utils.settings.run import RunConfig

Options = TypeVar("Options", bound=FeedForwardConfig)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Options of the loss; an objective adds its own options.

    Attributes:
        num_output_views: K, the number of rendered views in the loss, including the input views.
        alpha_weight: weight of the squared error of the masks.
        structure_weight: weight of one minus the structural similarity (SSIM).
        lambda_lpips: weight of LPIPS at 256 x 256; with 0, LPIPS is not used and needs no weights.
    """

    num_output_views: int = 8
    alpha_weight: float = 1.0
    structure_weight: float = 0.0
    lambda_lpips: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha_weight", "structure_weight", "lambda_lpips"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    def check_views(self, *, num_inputs: int, num_views: int) -> None:
        """Check that the numbers of views fit each other.

        Raises:
            ConfigError: they do not.
        """
        if not num_inputs <= self.num_output_views <= num_views:
            raise ConfigError(
                f"objective.num_output_views={self.num_output_views} must lie between the head's {num_inputs} input "
                f"views and the data's {num_views}"
            )


def head_options(cfg: RunConfig, kind: type[Options]) -> Options:
    """Return the options of the reconstruction whose head is trained.

    Args:
        kind: the class of options that the objective can train.

    Raises:
        ConfigError: the reconstruction has no such head.
    """
    options = cfg.reconstruction.options
    if not isinstance(options, kind):
        valid = (
            name
            for name in RECONSTRUCTORS.names()
            if issubclass(RECONSTRUCTORS.section({"type": name}).cls.Config, kind)
        )
        raise ConfigError(
            f"TASK_TYPE={cfg.TASK_TYPE} does not train the head of reconstruction.type={cfg.reconstruction.type}; use "
            f"{' or '.join(valid)}, or set refine=false to train the generator"
        )
    return options


class HeadLoss(nn.Module):
    """Squared errors of colour and mask in renders over random backgrounds (arXiv:2402.05054, section 3.3).

    Args:
        fov_deg: field of view of the renders.
        size: height and width of a render in pixels.
        rasterizer: see models.gaussians.rendering.
    """

    def __init__(
        self,
        config: LossConfig,
        *,
        fov_deg: float,
        size: int,
        rasterizer: str,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config, self.size = config, size
        self.rasterizer = pick_rasterizer(rasterizer, device)
        self.K_33 = intrinsics(fov_deg, size).to(device)
        self.lpips = load_perceptual_loss(device) if config.lambda_lpips else None

    def forward(
        self,
        gaussians: Gaussians,
        poses_BK44: Tensor,
        rgba_BKHW4: Tensor,
        *,
        num_given: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and figures for the log.

        Args:
            poses_BK44: camera to world with OpenGL axes, in the head's frame.
            rgba_BKHW4: true views, bytes with straight alpha.
            num_given: the first views of K that the head was given; the log also has the PSNR of the others.
            generator: for the random backgrounds.
        """
        background_B3 = torch.rand(len(rgba_BKHW4), 3, generator=generator, device=poses_BK44.device)
        truth_BKCHW, masks_BK1HW = sized(rgba_BKHW4, background_B3[:, None, :, None, None], self.size)
        drawn = self.render(gaussians, poses_BK44, background=background_B3)
        squares_BKCHW = (drawn.colors_BV3HW - truth_BKCHW).square()
        color, mask = squares_BKCHW.mean(), (drawn.alphas_BV1HW - masks_BK1HW).square().mean()
        loss = color + self.config.alpha_weight * mask
        figures = {"color": color.detach(), "mask": mask.detach()}
        unseen = squares_BKCHW[:, num_given:].detach()
        if unseen.numel():
            figures["psnr_unseen"] = psnr_db(unseen.mean(dim=(1, 2, 3, 4))).mean()
        if self.config.structure_weight:
            from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second

            # In bfloat16 the variance of a flat region is a rounding error, and its likeness means nothing.
            with torch.autocast(truth_BKCHW.device.type, enabled=False):
                likeness = structural_similarity_index_measure(
                    drawn.colors_BV3HW.flatten(0, 1).float(), truth_BKCHW.flatten(0, 1).float(), data_range=1.0
                )
            loss = loss + self.config.structure_weight * (1 - likeness)
            figures["ssim"] = likeness.detach()
        if self.lpips is not None:
            distance = self.lpips(drawn.colors_BV3HW.flatten(0, 1), truth_BKCHW.flatten(0, 1))
            loss = loss + self.config.lambda_lpips * distance
            figures["lpips"] = distance.detach()
        return loss, figures

    def render(self, gaussians: Gaussians, poses_BK44: Tensor, *, background: float | Tensor) -> Rendering:
        """Render the objects from cameras in the head's frame."""
        cameras_BK44 = opencv_to_opengl(poses_BK44)
        size = (self.size, self.size)
        return render(gaussians, cameras_BK44, self.K_33, size=size, background=background, backend=self.rasterizer)

    def comparison(self, gaussians: Gaussians, poses_BK44: Tensor, rgba_BKHW4: Tensor, *, background: float) -> Tensor:
        """Make an image with a row of true views and a row of renders for each object: (3, 2·B·H, K·W)."""
        truth_BKCHW, _ = sized(rgba_BKHW4, background, self.size)
        drawn_BKCHW = self.render(gaussians, poses_BK44, background=background).colors_BV3HW
        pairs = zip(truth_BKCHW, drawn_BKCHW, strict=True)
        rows = [torch.cat(list(views_KCHW), dim=2) for pair in pairs for views_KCHW in pair]
        return torch.cat(rows, dim=1).clamp(0, 1).float().cpu()


def sized(rgba_HW4: Tensor, background: float | Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return images over a background and their masks, resized by area means (bilinear if they become larger)."""
    images, masks = composite(rgba_HW4, background)
    if images.shape[-1] == size:
        return images, masks
    lead, mode = images.shape[:-3], "area" if images.shape[-1] > size else "bilinear"
    both = torch.cat([images, masks], dim=-3).flatten(0, -4)
    both = functional.interpolate(both, size=(size, size), mode=mode).unflatten(0, lead)
    return both[..., :3, :, :], both[..., 3:, :, :]


def draw_views(
    num_samples: int, *, num_views: int, num_inputs: int, num_outputs: int, even: bool, generator: torch.Generator
) -> Tensor:
    """Draw the indices (B, K) of views: first the head's inputs, then others.

    Args:
        even: input views are evenly spaced with a random start, as in sampling; if false, they are random.
    """
    device = generator.device
    order_BV = torch.rand(num_samples, num_views, generator=generator, device=device)
    if not even:
        return order_BV.topk(num_outputs, dim=1).indices
    start_B1 = torch.randint(num_views, (num_samples, 1), generator=generator, device=device)
    inputs_BI = (start_B1 + torch.tensor(evenly_spaced(num_views, num_inputs), device=device)) % num_views
    others_BK = order_BV.scatter(1, inputs_BI, -1.0).topk(num_outputs - num_inputs, dim=1).indices
    return torch.cat([inputs_BI, others_BK], dim=1)


def preview_views(num_views: int, num_inputs: int, *, num_shown: int = 6) -> tuple[list[int], list[int]]:
    """Return the input views of a preview, and some other views (or the inputs, if there are no others)."""
    inputs = evenly_spaced(num_views, num_inputs)
    unseen = [view for view in range(num_views) if view not in inputs]
    return inputs, unseen[:: max(1, len(unseen) // num_shown)][:num_shown] or inputs

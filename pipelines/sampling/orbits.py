"""What sampling gives: orbits, and what belongs to them.

Letters: B batch, V views, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.gaussians.scene import Gaussians
from pipelines.sampling.conditioner import OrbitInput


@dataclass(frozen=True, kw_only=True)
class Orbits:
    """What a call of the pipeline returns.

    Attributes:
        inputs: B sentences or pictures, as given.
        seeds: one per sample.
        views_BVCHW: (B, V, 3, H, W) float32 in [0, 1], on the CPU; sampled without 3D-aware sampling, or with it when
            only that was asked for.
        latents_BCVHW: (B, C, V, h, w) float32, scaled, on the CPU.
        c2w_V44: the cameras, see utils.cameras.
        fov_deg: field of view of the views.
        seconds: what the call took, by part: conditions, denoise (of that refine), decode, reconstruct.
        refined_views_BVCHW: the same samples with 3D-aware sampling, when both were asked for.
        refined_latents_BCVHW: their latents.
        gaussians: the objects, B scenes on the head's device in the world of `c2w_V44`, from the refined views if there
            are any; None without a head.
        gaussians_fov_deg: field of view with which they look like the views (the published head has its own).
    """

    inputs: list[OrbitInput]
    seeds: list[int]
    views_BVCHW: Tensor
    latents_BCVHW: Tensor
    c2w_V44: Tensor
    fov_deg: float
    seconds: dict[str, float]
    refined_views_BVCHW: Tensor | None = None
    refined_latents_BCVHW: Tensor | None = None
    gaussians: Gaussians | None = None
    gaussians_fov_deg: float | None = None

    @property
    def best_views_BVCHW(self) -> Tensor:
        """The refined views, or the plain ones where there are no others."""
        return self.views_BVCHW if self.refined_views_BVCHW is None else self.refined_views_BVCHW

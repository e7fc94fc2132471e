"""True views of a mesh, rendered in the light of the zoo, to measure what is reconstructed from them.

Letters: V views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.meshes.renderer import render_views
from datasets.meshes.scene import RenderMesh
from datasets.views.posed_views import PosedViews
from utils.cameras import intrinsics


def true_views(mesh: RenderMesh, c2w_V44: Tensor, *, fov_deg: float, size: int) -> PosedViews:
    """Render square views of a mesh, with exact masks.

    Args:
        mesh: the object, z up, in world units.
        c2w_V44: the cameras.
        fov_deg: field of view.
        size: height and width in pixels.
    """
    drawn = render_views(mesh, c2w_V44.numpy(), fov_deg=fov_deg, size=size, normal_depth=False)
    rgba_V4HW = torch.from_numpy(drawn.rgba_VHW4).float().movedim(-1, 1) / 255
    return PosedViews(
        colors_V3HW=rgba_V4HW[:, :3].contiguous(),
        masks_V1HW=rgba_V4HW[:, 3:].contiguous(),
        c2w_V44=c2w_V44,
        K_V33=intrinsics(fov_deg, size).repeat(len(c2w_V44), 1, 1),
        names=tuple(f"{number:03d}" for number in range(len(c2w_V44))),
    )

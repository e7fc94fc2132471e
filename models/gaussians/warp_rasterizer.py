"""Renders 3D Gaussians with gswarp, whose kernels NVIDIA Warp compiles at the first use without a CUDA compiler.

gswarp (Apache 2.0) follows the published rasteriser (arXiv:2308.04079). It draws one scene from one camera per call, on
CUDA devices, in float32. Differences from models.gaussians.splatting, which a test measures:

- A Gaussian ends at three standard deviations of its longest axis in the image, rounded up to tiles of 16 pixels. Drawn
  by `torch` with this rule, the scenes of the tests change by at most 0.007, and by 1.4e-5 in the mean; gradients
  change by 1.4e-3.
- Alphas that are capped at 0.99 have a gradient.
- The limit for the point of linearisation is the same on both sides of the axis, also where the principal point is not
  in the middle.

Letters: B scenes, V cameras of each, N Gaussians, H W pixels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from models.gaussians.harmonics import view_colors
from models.gaussians.scene import Gaussians

FAR = 100.0  # of the projection; gswarp does not use the depth that it gives
MIN_WARP = (1, 10)  # gswarp 1.1 asks for 1.8, but its kernels call a function that 1.9 does not have
UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # places of a covariance that gswarp takes


@functools.cache
def lack() -> str | None:
    """Why gswarp cannot render; None if it can."""
    try:
        import gswarp  # noqa: F401
        import warp
    except ImportError as err:
        return f"gswarp cannot be imported ({err}); install it with pip install gswarp"
    if tuple(int(number) for number in warp.__version__.split(".")[:2]) < MIN_WARP:
        needed = ".".join(map(str, MIN_WARP))
        return f"gswarp needs warp-lang {needed} or later, but {warp.__version__} is installed; update it"
    return None


def draw(gaussians: Gaussians, c2w_BV44: Tensor, K_33: Tensor, size: tuple[int, int], *, near: float) -> Tensor:
    """Blend Gaussians front to back without a background.

    Args:
        c2w_BV44: camera to world, OpenCV axes.
        K_33: intrinsics in pixels, (3, 3) or (V, 3, 3).
        size: height and width.
        near: closest depth, which gswarp fixes at 0.2.

    Returns:
        (B, V, 5, H, W): RGB and depth times their weights, then the sum of the weights (alpha).
    """
    from gswarp import GaussianRasterizationSettings, GaussianRasterizer

    B, V = c2w_BV44.shape[:2]
    c2w_BV44, K_V33 = c2w_BV44.float(), K_33.float().expand(V, 3, 3)
    view_BV44, projection_BV44 = row_matrices(c2w_BV44, K_V33, size, near=near)
    sides_V2 = half_sides(K_V33, size).tolist()  # one transfer instead of one for each camera
    covariances_BN33 = gaussians.covariances().float()
    covariances_BN6 = torch.stack([covariances_BN33[..., row, column] for row, column in UPPER], dim=-1)
    colors_BVN3 = gaussians.colors_BN3[:, None].expand(B, V, -1, 3)
    if gaussians.harmonics_BNK3 is not None:
        colors_BVN3 = view_colors(gaussians.colors_BN3, gaussians.harmonics_BNK3, gaussians.means_BN3, c2w_BV44)
    black_3 = torch.zeros(3, device=c2w_BV44.device)
    painted = []
    for scene in range(B):
        means_N3 = gaussians.means_BN3[scene].float().contiguous()
        opacities_N1, covariances_N6 = gaussians.opacities_BN1[scene].float(), covariances_BN6[scene].contiguous()
        for camera in range(V):
            settings = GaussianRasterizationSettings(
                image_height=size[0],
                image_width=size[1],
                tanfovx=sides_V2[camera][0],
                tanfovy=sides_V2[camera][1],
                bg=black_3,
                scale_modifier=1.0,
                viewmatrix=view_BV44[scene, camera].contiguous(),
                projmatrix=projection_BV44[scene, camera].contiguous(),
                sh_degree=0,
                campos=c2w_BV44[scene, camera, :3, 3].contiguous(),
                prefiltered=False,
                auto_tune_verbose=False,
            )
            color_3HW, _, more = GaussianRasterizer(settings)(
                means3D=means_N3,
                means2D=torch.zeros_like(means_N3),
                opacities=opacities_N1.contiguous(),
                colors_precomp=colors_BVN3[scene, camera].float().contiguous(),
                cov3D_precomp=covariances_N6,
            )
            painted.append(torch.cat([color_3HW, more.depth, more.alpha]))
    return torch.stack(painted).unflatten(0, (B, V))


def half_sides(K_V33: Tensor, size: tuple[int, int]) -> Tensor:
    """Tangents of half the fields of view over the width and the height: (V, 2)."""
    return torch.stack([size[1] / (2 * K_V33[:, 0, 0]), size[0] / (2 * K_V33[:, 1, 1])], dim=-1)


def row_matrices(c2w_BV44: Tensor, K_V33: Tensor, size: tuple[int, int], *, near: float) -> tuple[Tensor, Tensor]:
    """Return the matrices of the published rasteriser, for row vectors: to the camera, and to its image.

    The image spans [-1, 1]; in it, the middle of the first pixel is at -1 + 1 / size.
    """
    view_BV44 = torch.linalg.inv_ex(c2w_BV44)[0].mT
    height, width = size
    image_V44 = K_V33.new_zeros(len(K_V33), 4, 4)
    image_V44[:, 0, 0], image_V44[:, 1, 1] = 2 * K_V33[:, 0, 0] / width, 2 * K_V33[:, 1, 1] / height
    image_V44[:, 0, 2], image_V44[:, 1, 2] = 2 * K_V33[:, 0, 2] / width - 1, 2 * K_V33[:, 1, 2] / height - 1
    image_V44[:, 2, 2], image_V44[:, 2, 3], image_V44[:, 3, 2] = FAR / (FAR - near), -FAR * near / (FAR - near), 1.0
    # plain sums, because reduced precision (TF32) would move centres by pixels
    return view_BV44, (view_BV44[..., :, :, None] * image_V44.mT[:, None, :, :]).sum(-2)

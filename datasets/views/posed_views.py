"""Views of one object with known cameras, and the move of their scene to the ball that the project works in.

Letters: V views, H W pixels, N points, P corners of the outline of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.cameras import BALL_RADIUS
from utils.errors import DataError
from utils.images import over_background

# A scene stays as it is if all optical axes pass the origin within this share of the camera's distance, ...
AIM_TOLERANCE = 1e-3
# ... no mask shows more than the ball and two pixels, and the object is not smaller than this.
SLACK_PIXELS = 2.0
LEAST_RADIUS = 0.25
# Lines that are closer to parallel than this have no common point.
LEAST_PARALLAX_DEG = 2.0
NO_PARALLAX = (
    "the {num_views} views see the object along one line (within 2 degrees, or from opposite sides), which shows no "
    "depth; add views from other sides"
)


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The move of a scene to the ball about the origin: normalized = scale * (world - center).

    Attributes:
        scale: normalized units per world unit, positive.
        center_3: the middle of the object in the world, float64.
    """

    scale: float
    center_3: Tensor

    def to_world(self, points_N3: Tensor) -> Tensor:
        """Move points of the normalized scene, (..., 3), back to the world. Dtype and device stay."""
        return points_N3 / self.scale + self.center_3.to(points_N3)

    def from_world(self, points_N3: Tensor) -> Tensor:
        """Move points of the world, (..., 3), to the normalized scene. Dtype and device stay."""
        return (points_N3 - self.center_3.to(points_N3)) * self.scale

    @property
    def to_world_44(self) -> Tensor:
        """The similarity from the normalized scene to the world, float64, for column vectors."""
        matrix_44 = torch.eye(4, dtype=torch.float64)
        matrix_44[:3, :3] /= self.scale
        matrix_44[:3, 3] = self.center_3
        return matrix_44


@dataclass(frozen=True, kw_only=True)
class PosedViews:
    """Views of one object with known cameras.

    Attributes:
        colors_V3HW: RGB in [0, 1], straight (not multiplied by alpha) where a mask exists. float32.
        masks_V1HW: share of each pixel that shows the object, in [0, 1]. float32.
        c2w_V44: camera to world, OpenCV axes (utils.cameras), float32.
        K_V33: intrinsics in pixels, pixel centres at +0.5. float32.
        names: name of each view, for messages.
    """

    colors_V3HW: Tensor
    masks_V1HW: Tensor
    c2w_V44: Tensor
    K_V33: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        num_views, (height, width) = len(self.colors_V3HW), self.size
        assert self.colors_V3HW.shape == (num_views, 3, height, width), self.colors_V3HW.shape
        assert self.masks_V1HW.shape == (num_views, 1, height, width), self.masks_V1HW.shape
        assert self.c2w_V44.shape == (num_views, 4, 4), self.c2w_V44.shape
        assert self.K_V33.shape == (num_views, 3, 3), self.K_V33.shape
        assert len(self.names) == num_views, self.names

    def __len__(self) -> int:
        return len(self.colors_V3HW)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, the same for all views."""
        height, width = self.colors_V3HW.shape[-2:]
        return height, width

    def over(self, background: float | Tensor) -> Tensor:
        """Composite the views over a background: (V, 3, H, W).

        Args:
            background: grey, or RGB of shape (3,) or (V, 3), in [0, 1].
        """
        behind = torch.as_tensor(background, dtype=self.colors_V3HW.dtype, device=self.colors_V3HW.device)
        return over_background(self.colors_V3HW, self.masks_V1HW, behind[..., None, None])

    def only(self, keep_V: Tensor) -> PosedViews:
        """Choose views.

        Args:
            keep_V: a bool for each view, or the numbers of the views in the wanted order.
        """
        numbers = torch.arange(len(self))[torch.as_tensor(keep_V).cpu()]
        chosen = {
            field.name: getattr(self, field.name)[numbers.to(self.c2w_V44.device)]
            for field in fields(self)
            if field.name != "names"
        }
        return PosedViews(**chosen, names=tuple(self.names[number] for number in numbers.tolist()))

    def to(self, device: torch.device | str) -> PosedViews:
        """The same views on another device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "names"}
        return PosedViews(**moved, names=self.names)

    def normalized(self) -> tuple[PosedViews, Normalization]:
        """Move the scene so that the object fits the ball of radius `BALL_RADIUS` about the origin.

        The centre is the point that is closest to the axes of the cones around the masks. The radius is the largest
        distance of the centre to a ray through a mask, so the ball covers every mask. Directions do not change. A scene
        whose cameras look at the origin, with an object that fits the ball, stays as it is: scale 1, centre 0.

        Raises:
            DataError: the cameras have no parallax, or the masks are empty.
        """
        centers_V3, axes_V3 = self.c2w_V44[:, :3, 3].double().cpu(), self.c2w_V44[:, :3, 2].double().cpu()
        rays = [self._outline_rays(view) for view in range(len(self))]
        seen_V = torch.tensor([len(rays_P3) > 0 for rays_P3 in rays])
        if not seen_V.any():
            raise DataError("no view shows the object: all masks are empty; check the masks")
        origin_3 = torch.zeros(3, dtype=torch.float64)
        slack = SLACK_PIXELS / self.K_V33[:, 0, 0].double().cpu() * centers_V3.norm(dim=1)
        extents_V = _extents(origin_3, centers_V3, rays)
        aim_V = torch.linalg.cross(centers_V3, axes_V3, dim=1).norm(dim=1)
        if (
            bool((aim_V <= AIM_TOLERANCE * centers_V3.norm(dim=1)).all())
            and bool(((centers_V3 * axes_V3).sum(dim=1) < 0).all())
            and bool((extents_V <= BALL_RADIUS + slack).all())
            and float(extents_V.max()) >= LEAST_RADIUS
        ):
            return self, Normalization(scale=1.0, center_3=origin_3)
        cones_V3 = torch.stack([_cone_axis(rays_P3) for rays_P3 in rays if len(rays_P3)])
        center_3 = closest_point(centers_V3[seen_V], cones_V3)
        if center_3 is None:
            raise DataError(NO_PARALLAX.format(num_views=len(self)))
        scale = BALL_RADIUS / float(_extents(center_3, centers_V3, rays).max())
        c2w_V44 = self.c2w_V44.double().cpu()
        c2w_V44[:, :3, 3] = scale * (c2w_V44[:, :3, 3] - center_3)
        moved = replace(self, c2w_V44=c2w_V44.to(self.c2w_V44))
        return moved, Normalization(scale=scale, center_3=center_3)

    def object_directions(self) -> Tensor:
        """Unit directions in the world from the cameras to the middle of their masks, of which none may be empty.

        Returns:
            (V, 3) float64.
        """
        return torch.stack([_cone_axis(self._outline_rays(view)) for view in range(len(self))])

    def _outline_rays(self, view: int) -> Tensor:
        """Unit directions in the world through the corners of the convex outline of a mask: (P, 3), P may be 0."""
        mask_HW = self.masks_V1HW[view, 0].cpu().numpy()
        # Half of the strongest value, because edges are soft and glass is faint everywhere.
        rows, columns = np.nonzero(mask_HW > 0.5 * mask_HW.max())
        if not len(rows):
            return torch.zeros(0, 3, dtype=torch.float64)
        corners = np.concatenate([np.stack([columns + x, rows + y], axis=1) for x in (0, 1) for y in (0, 1)])
        outline_P2 = torch.from_numpy(cv2.convexHull(corners.astype(np.int32))[:, 0]).double()
        pixels_P3 = torch.cat([outline_P2, torch.ones(len(outline_P2), 1, dtype=torch.float64)], dim=1)
        camera_P3 = pixels_P3 @ torch.linalg.inv(self.K_V33[view].double().cpu()).T
        world_P3 = camera_P3 @ self.c2w_V44[view, :3, :3].double().cpu().T
        return world_P3 / world_P3.norm(dim=1, keepdim=True)


def closest_point(origins_V3: Tensor, directions_V3: Tensor) -> Tensor | None:
    """The point with the least sum of squared distances to lines; None if the lines are nearly parallel.

    Args:
        origins_V3: a point of each line, float64.
        directions_V3: unit vectors.
    """
    across_V33 = torch.eye(3, dtype=torch.float64) - directions_V3[:, :, None] * directions_V3[:, None, :]
    mean_33 = across_V33.mean(dim=0)
    # The smallest eigenvalue is the mean squared sine of the angles to the common direction.
    if float(torch.linalg.eigvalsh(mean_33)[0]) < np.sin(np.radians(LEAST_PARALLAX_DEG / 2)) ** 2:
        return None
    return torch.linalg.solve(mean_33, (across_V33 @ origins_V3[:, :, None]).mean(dim=0)[:, 0])


def _cone_axis(rays_P3: Tensor) -> Tensor:
    """Axis of a narrow cone around unit vectors.

    It is the middle of their box in the image plane of a camera that looks along the axis, so it is found by turns.
    """
    axis_3 = torch.nn.functional.normalize(rays_P3.mean(dim=0), dim=0)
    for _ in range(4):
        right_3 = torch.linalg.cross(axis_3, torch.eye(3, dtype=torch.float64)[axis_3.abs().argmin()])
        right_3 = torch.nn.functional.normalize(right_3, dim=0)
        plane_32 = torch.stack([right_3, torch.linalg.cross(axis_3, right_3)], dim=1)
        flat_P2 = rays_P3 @ plane_32 / (rays_P3 @ axis_3)[:, None]
        middle_2 = (flat_P2.amin(dim=0) + flat_P2.amax(dim=0)) / 2
        axis_3 = torch.nn.functional.normalize(axis_3 + plane_32 @ middle_2, dim=0)
    return axis_3


def _extents(center_3: Tensor, centers_V3: Tensor, rays: list[Tensor]) -> Tensor:
    """The largest distance of a point to the rays of each view: (V,); 0 for a view without rays."""
    return torch.stack(
        [
            torch.linalg.cross((center_3 - origin_3).expand_as(rays_P3), rays_P3, dim=1).norm(dim=1).max()
            if len(rays_P3)
            else torch.zeros((), dtype=torch.float64)
            for origin_3, rays_P3 in zip(centers_V3, rays, strict=True)
        ]
    )

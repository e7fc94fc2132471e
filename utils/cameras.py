"""Camera conventions. No other module converts between them.

Inside the project a camera is `c2w`, camera to world, with OpenCV axes: camera x right, y down, z forward;
the world's z is up; azimuth 0 lies on the world's +x axis and grows counter-clockwise seen from above.
Camera files of G-Objaverse use the same axes (x, y, z and origin are the four columns). Other conventions are
converted by a function of this module. Matrices multiply column vectors, unless a comment gives another order.

Letters: B batch, V views, H W pixels. Lengths are world units (an object fills the unit cube), angles degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# G-Objaverse: 1422.222 pixels of focal length per 1024 pixels of width.
DATA_FOV_DEG = 2.0 * math.degrees(math.atan(512.0 / 1422.222))
# The published Gaussian head was trained with this angle, although the data have another one.
LGM_FOV_DEG = 49.1
# An object that fills the unit cube lies within this distance of the origin: half of the cube's diagonal, rounded up.
BALL_RADIUS = 0.87


def orbit_cameras(
    *,
    num_views: int,
    elevation_deg: float,
    radius: float,
    azimuth_start_deg: float = 0.0,
    azimuth_span_deg: float = 360.0,
) -> Tensor:
    """Place cameras on a circle around the origin, looking at it.

    Args:
        num_views: V, at least 1.
        elevation_deg: height angle in degrees, in (-90, 90).
        radius: distance to the origin in world units, positive.
        azimuth_start_deg: azimuth of view 0.
        azimuth_span_deg: the views divide this angle evenly; its end is not a view, so that 360 is a full circle.

    Returns:
        c2w_V44: (V, 4, 4) float32, camera to world.

    Raises:
        ValueError: a value lies outside its range.

    Source: arXiv:2403.12010 (24-view orbit).
    """
    if num_views < 1:
        raise ValueError(f"num_views must be >= 1, got {num_views}")
    azimuth_deg_V = azimuth_start_deg + azimuth_span_deg * torch.arange(num_views, dtype=torch.float64) / num_views
    one_V = torch.ones_like(azimuth_deg_V)
    return cameras_at(azimuth_deg_V, elevation_deg * one_V, radius * one_V)


def cameras_at(azimuth_deg_V: Tensor, elevation_deg_V: Tensor, radius_V: Tensor) -> Tensor:
    """Cameras at given angles and distances, looking at the origin.

    Returns:
        c2w_V44: (V, 4, 4) float32.

    Raises:
        ValueError: an elevation outside (-90, 90) or a radius that is not positive.
    """
    if bool((elevation_deg_V.abs() >= 90).any()):
        raise ValueError(f"elevation_deg must lie in (-90, 90), got {elevation_deg_V.tolist()}")
    if bool((radius_V <= 0).any()):
        raise ValueError(f"radius must be positive, got {radius_V.tolist()}")
    azimuth_V, elevation_V = torch.deg2rad(azimuth_deg_V.double()), torch.deg2rad(elevation_deg_V.double())
    cos_a, sin_a, cos_e, sin_e = azimuth_V.cos(), azimuth_V.sin(), elevation_V.cos(), elevation_V.sin()
    backward_V3 = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], dim=-1)
    right_V3 = torch.stack([-sin_a, cos_a, torch.zeros_like(cos_a)], dim=-1)
    up_V3 = torch.stack([-sin_e * cos_a, -sin_e * sin_a, cos_e], dim=-1)
    c2w_V44 = torch.eye(4, dtype=torch.float64).repeat(len(azimuth_V), 1, 1)
    c2w_V44[:, :3, 0] = right_V3
    c2w_V44[:, :3, 1] = -up_V3
    c2w_V44[:, :3, 2] = -backward_V3
    c2w_V44[:, :3, 3] = backward_V3 * radius_V.double()[:, None]
    return c2w_V44.float()


def opencv_to_opengl(c2w_V44: Tensor) -> Tensor:
    """Flip camera y and z: OpenGL and Blender cameras have y up and look along -z. The function is its own inverse."""
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=c2w_V44.dtype, device=c2w_V44.device)
    return c2w_V44 * flip


# What the cameras' files of other programs hold: the axes, and whether the matrices lead to the world or from it.
CONVENTIONS = {
    "opencv": "OpenCV axes, camera to world",
    "opengl": "OpenGL axes, camera to world",
    "opencv_w2c": "OpenCV axes, world to camera",
    "opengl_w2c": "OpenGL axes, world to camera",
}


def from_convention(matrix_V44: Tensor, convention: str) -> Tensor:
    """Convert cameras of another program to c2w with OpenCV axes: (..., 4, 4), same dtype.

    Args:
        convention: a key of `CONVENTIONS`.
    """
    c2w_V44 = torch.linalg.inv(matrix_V44) if convention.endswith("_w2c") else matrix_V44
    return opencv_to_opengl(c2w_V44) if convention.startswith("opengl") else c2w_V44


def to_convention(c2w_V44: Tensor, convention: str) -> Tensor:
    """Convert c2w with OpenCV axes to the cameras of another program, the inverse of `from_convention`."""
    matrix_V44 = opencv_to_opengl(c2w_V44) if convention.startswith("opengl") else c2w_V44
    return torch.linalg.inv(matrix_V44) if convention.endswith("_w2c") else matrix_V44


def rotation_to_up(up_3: Tensor) -> Tensor:
    """The smallest rotation that turns a world in which `up_3` points up into one with z up: (3, 3) float64."""
    up_3 = up_3.double() / up_3.double().norm()
    z_3 = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if float(up_3 @ z_3) < -1 + 1e-12:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    x, y, z = torch.linalg.cross(up_3, z_3).tolist()
    cross_33 = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + cross_33 + cross_33 @ cross_33 / (1 + up_3 @ z_3)


def mean_up(c2w_V44: Tensor) -> Tensor:
    """The world's direction that most cameras hold up: (3,) float64, unit length.

    If no camera is tilted sideways, all of their x axes are at right angles to it, which also holds for views of one
    side from above. Otherwise it is the mean of the cameras' up vectors. Directions within a thousandth of an axis of
    the world are that axis.
    """
    rights_V3, ups_V3 = c2w_V44[:, :3, 0].double(), -c2w_V44[:, :3, 1].double()
    mean_3 = torch.nn.functional.normalize(ups_V3.mean(dim=0), dim=0)
    values_3, vectors_33 = torch.linalg.eigh(rights_V3.T @ rights_V3 / len(rights_V3))
    up_3 = mean_3
    if float(values_3[0]) < 1e-3 and float(values_3[1]) > 0.02:
        up_3 = vectors_33[:, 0] * (1 if float(vectors_33[:, 0] @ mean_3) >= 0 else -1)
    largest = int(up_3.abs().argmax())
    if float(up_3.abs()[largest]) > 1 - 5e-7:
        return torch.eye(3, dtype=torch.float64)[largest] * up_3[largest].sign() + 0.0  # no minus zeros
    return up_3


def camera_condition(c2w_V44: Tensor) -> Tensor:
    """Camera input of the UNet: the rows of the OpenGL camera-to-world matrix.

    Returns:
        camera_data_V16: (..., V, 16), same dtype.
    """
    return opencv_to_opengl(c2w_V44).flatten(-2)


def intrinsics(fov_deg: float, size: int) -> Tensor:
    """K of a square image: (3, 3) float32 in pixels, pixel centres at +0.5."""
    focal = 0.5 * size / math.tan(math.radians(fov_deg) / 2)
    return torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])


def fov_deg_of(K_33: Tensor, width: int) -> Tensor:
    """Horizontal field of view in degrees of images of this width, the inverse of `intrinsics`: (...)."""
    return 2 * torch.rad2deg(torch.atan(0.5 * width / K_33[..., 0, 0]))


def camera_distance(c2w_V44: Tensor) -> Tensor:
    """Distance of each camera centre to the origin: (..., V)."""
    return c2w_V44[..., :3, 3].norm(dim=-1)


def camera_elevations_deg(c2w_V44: Tensor) -> Tensor:
    """Height angle of each camera centre seen from the origin: (..., V) degrees in [-90, 90]."""
    centres_V3 = c2w_V44[..., :3, 3].double()
    return torch.rad2deg(torch.atan2(centres_V3[..., 2], centres_V3[..., :2].norm(dim=-1)))


def project_points(points_N3: Tensor, c2w_44: Tensor, K_33: Tensor) -> Tensor:
    """World points to pixels: (N, 2), x right and y down from the image's top left corner."""
    w2c_44 = torch.linalg.inv(c2w_44.double())
    camera_N3 = points_N3.double() @ w2c_44[:3, :3].T + w2c_44[:3, 3]
    pixels_N3 = camera_N3 @ K_33.double().T
    return (pixels_N3[:, :2] / pixels_N3[:, 2:]).float()


@dataclass(frozen=True, kw_only=True)
class HeadCameras:
    """Cameras in the frame of the Gaussian head (LGM): the first one is at (0, 0, distance).

    Attributes:
        poses_V44: camera to world with OpenGL axes, in the head's frame.
        cam_view_V44: world to camera (OpenCV axes), transposed: for row vectors.
        cam_view_proj_V44: cam_view times the projection, for row vectors.
        cam_pos_V3: the negative camera centre, as published.
    """

    poses_V44: Tensor
    cam_view_V44: Tensor
    cam_view_proj_V44: Tensor
    cam_pos_V3: Tensor


def head_cameras(
    c2w_V44: Tensor,
    *,
    fov_deg: float = LGM_FOV_DEG,
    znear: float = 0.5,
    zfar: float = 2.5,
    published_sampling_axes: bool = False,
) -> HeadCameras:
    """Move an orbit into the frame of the Gaussian head.

    Args:
        c2w_V44: (..., V, 4, 4) cameras; the first of each orbit defines the frame and the distance.
        fov_deg: vertical field of view of the square images.
        znear: near plane of the projection matrix.
        zfar: far plane.
        published_sampling_axes: build the poses from the OpenCV matrices, as published sampling does (training does
            not). All cameras except the first then look away from the object. Only for published numbers.

    Source: the published head's convention, recorded as reference cases.
    """
    axes_V44 = (c2w_V44 if published_sampling_axes else opencv_to_opengl(c2w_V44)).double()
    # `inv_ex`, because `inv` waits until the device reports success.
    poses_V44 = _anchor(c2w_V44) @ torch.linalg.inv_ex(axes_V44[..., :1, :, :])[0] @ axes_V44
    view_V44 = torch.linalg.inv_ex(opencv_to_opengl(poses_V44))[0].transpose(-1, -2)
    proj_44 = torch.zeros(4, 4, dtype=torch.float64, device=c2w_V44.device)
    proj_44[0, 0] = proj_44[1, 1] = 1.0 / math.tan(math.radians(fov_deg) / 2)
    proj_44[2, 2] = (zfar + znear) / (zfar - znear)
    proj_44[3, 2] = -(zfar * znear) / (zfar - znear)
    proj_44[2, 3] = 1.0
    return HeadCameras(
        poses_V44=poses_V44.float(),
        cam_view_V44=view_V44.float(),
        cam_view_proj_V44=(view_V44 @ proj_44).float(),
        cam_pos_V3=-poses_V44[..., :3, 3].float(),
    )


def head_to_world(c2w_V44: Tensor) -> Tensor:
    """Transform from the frame of the Gaussian head to the world: (..., 4, 4) float32, a rotation and a shift.

    Args:
        c2w_V44: (..., V, 4, 4), the cameras that `head_cameras` was given.
    """
    first_44 = opencv_to_opengl(c2w_V44[..., 0, :, :]).double()
    return (first_44 @ torch.linalg.inv_ex(_anchor(c2w_V44)[..., 0, :, :])[0]).float()


def _anchor(c2w_V44: Tensor) -> Tensor:
    """Pose of the first camera of each orbit in the frame of the head: (..., 1, 4, 4) float64."""
    anchor_44 = torch.eye(4, dtype=torch.float64, device=c2w_V44.device).repeat(*c2w_V44.shape[:-3], 1, 1, 1)
    anchor_44[..., 0, 2, 3] = camera_distance(c2w_V44[..., 0, :, :]).double()
    return anchor_44


def without_first_azimuth(c2w_V44: Tensor) -> Tensor:
    """Turn cameras about the vertical axis so that the first one of each orbit has azimuth 0: (..., V, 4, 4)."""
    x, y = c2w_V44[..., :1, 0, 3], c2w_V44[..., :1, 1, 3]
    flat = torch.hypot(x, y)
    above = flat < 1e-6 * camera_distance(c2w_V44[..., :1, :, :])  # a camera on the axis has no azimuth
    cos, sin = torch.where(above, 1.0, x / flat), torch.where(above, 0.0, y / flat)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, sin, zero, zero, -sin, cos, zero, zero, zero, zero, one, zero, zero, zero, zero, one]
    turn_144 = torch.stack(rows, dim=-1).unflatten(-1, (4, 4))
    # A sum instead of a matrix product, because training may reduce the precision of products.
    return (turn_144[..., :, :, None] * c2w_V44[..., None, :, :]).sum(-2)


def plucker_rays(poses_V44: Tensor, *, fov_deg: float, size: int | tuple[int, int]) -> Tensor:
    """Plücker coordinates of every pixel's ray.

    Args:
        poses_V44: camera to world with OpenGL axes.
        fov_deg: horizontal field of view.
        size: H and W in pixels, or one number for a square image.

    Returns:
        rays_V6HW: cross(origin, direction), then the unit direction.
    """
    height, width = (size, size) if isinstance(size, int) else size
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    place = {"dtype": poses_V44.dtype, "device": poses_V44.device}
    row, column = ((torch.arange(side, **place) + 0.5 - side / 2) / focal for side in (height, width))
    y_HW, x_HW = torch.meshgrid(row, column, indexing="ij")
    local_3HW = torch.stack([x_HW, -y_HW, -torch.ones_like(x_HW)])
    # A sum instead of a matrix product, because training may reduce the precision of products.
    direction_V3HW = (poses_V44[:, :3, :3, None, None] * local_3HW).sum(2)
    direction_V3HW = direction_V3HW / direction_V3HW.norm(dim=1, keepdim=True)
    origin_V3HW = poses_V44[:, :3, 3, None, None].expand_as(direction_V3HW)
    return torch.cat([torch.linalg.cross(origin_V3HW, direction_V3HW, dim=1), direction_V3HW], dim=1)


def sphere_directions(number: int, *, lowest_deg: float = -90.0) -> Tensor:
    """Unit vectors on a spiral of equal areas (a Fibonacci lattice), highest last: (D, 3) float64, z up.

    Args:
        number: D.
        lowest_deg: height angle below which there are none.
    """
    bottom = math.sin(math.radians(lowest_deg))
    share_D = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    z_D = bottom + share_D * (1 - bottom)
    angle_D = math.pi * (3 - math.sqrt(5)) * torch.arange(number, dtype=torch.float64)
    ring_D = (1 - z_D**2).sqrt()
    return torch.stack([ring_D * angle_D.cos(), ring_D * angle_D.sin(), z_D], dim=1)

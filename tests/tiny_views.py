"""Small views of a sphere, drawn exactly, and files of cameras in the formats of other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datasets.views.posed_views import PosedViews
from datasets.views.transforms_json import nerf_transforms
from utils.cameras import intrinsics, orbit_cameras
from utils.files import write_json
from utils.images import to_uint8

FOV_DEG = 39.6
SAMPLES = 4  # rays per pixel along each side


@cache
def sphere_views(
    *,
    num_views: int = 6,
    size: int = 24,
    radius: float = 0.5,
    center: tuple[float, float, float] = (0.0, 0.0, 0.0),
    distance: float = 2.0,
    c2w_V44: Tensor | None = None,
    K_33: Tensor | None = None,
    width: int | None = None,
) -> PosedViews:
    """Views of a sphere that is coloured by its normal, with soft edges; do not change them in place.

    Args:
        size: height in pixels, and width unless that is given.
        c2w_V44: cameras instead of an orbit.
        K_33: intrinsics instead of those of an orbit.
    """
    if c2w_V44 is None:
        c2w_V44 = orbit_cameras(num_views=num_views, elevation_deg=15.0, radius=distance)
    K_33 = intrinsics(FOV_DEG, size) if K_33 is None else K_33
    fine_y, fine_x = (
        (torch.arange(side * SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES for side in (size, width or size)
    )
    y_HW, x_HW = torch.meshgrid(fine_y, fine_x, indexing="ij")
    pixels_HW3 = torch.stack([x_HW, y_HW, torch.ones_like(x_HW)], dim=-1)
    colors, masks = [], []
    for c2w_44 in c2w_V44.double():
        rays_HW3 = pixels_HW3 @ torch.linalg.inv(K_33.double()).T @ c2w_44[:3, :3].T
        rays_HW3 = rays_HW3 / rays_HW3.norm(dim=-1, keepdim=True)
        from_center_3 = c2w_44[:3, 3] - torch.tensor(center, dtype=torch.float64)
        along_HW = rays_HW3 @ from_center_3
        root_HW = along_HW**2 - from_center_3 @ from_center_3 + radius**2
        near_HW = -along_HW - root_HW.clamp_min(0).sqrt()
        hit_HW = ((root_HW > 0) & (near_HW > 0)).double()
        normal_HW3 = (from_center_3 + near_HW[..., None] * rays_HW3) / radius
        rgb_HW3 = (0.5 + 0.4 * normal_HW3).clamp(0, 1) * hit_HW[..., None]
        mask_1HW = torch.nn.functional.avg_pool2d(hit_HW[None], SAMPLES)
        rgb_3HW = torch.nn.functional.avg_pool2d(rgb_HW3.permute(2, 0, 1), SAMPLES)
        colors.append(rgb_3HW / mask_1HW.clamp_min(1e-9))
        masks.append(mask_1HW)
    return PosedViews(
        colors_V3HW=torch.stack(colors).float(),
        masks_V1HW=torch.stack(masks).float(),
        c2w_V44=c2w_V44.float(),
        K_V33=K_33.float().expand(len(c2w_V44), 3, 3).clone(),
        names=tuple(f"view {number}" for number in range(len(c2w_V44))),
    )


def write_pictures(folder: Path, views: PosedViews, *, over: float | None = None) -> list[str]:
    """Write the pictures as views/NNN.png with alpha, or over a grey without; returns their names."""
    (folder / "views").mkdir(parents=True)
    rgba_VHW4 = to_uint8(torch.cat([views.colors_V3HW, views.masks_V1HW], dim=1))
    images = rgba_VHW4 if over is None else to_uint8(views.over(over))
    names = [f"views/{number:03d}.png" for number in range(len(views))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    return names


def write_transforms(folder: Path, views: PosedViews | None = None, *, over: float | None = None) -> Path:
    """Write a folder in our own format: an orbit of a sphere, or other views with its field of view."""
    views = views or sphere_views()
    write_pictures(folder, views, over=over)
    write_json(folder / "transforms.json", nerf_transforms(views.c2w_V44, FOV_DEG, views.size))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], *, file: str = "transforms.json") -> Path:
    """Change the JSON of a folder; it may then hold numbers that are not finite."""
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def picture(path: Path, width: int = 16, height: int = 16, mode: str = "RGBA") -> Path:
    """Write a picture of a red square on nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (width, height))
    image.paste((200, 40, 40, 255), (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    image.convert(mode).save(path)
    return path


def write_model(folder: Path, *, cameras: str = "1 PINHOLE 16 8 20 21 7.5 4.25\n", images: str | None = None) -> Path:
    """Write a COLMAP model of two cameras a quarter turn apart, in a world whose y axis points down."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    half = math.sqrt(0.5)
    lines = ["# comment", "1 1 0 0 0 0 0 3 1 a.png", "1.0 2.0 -1 3.0 4.0 7", f"2 {half} 0 {half} 0 0 0 3 1 b b.png", ""]
    (model / "cameras.txt").write_text("# comment\n" + cameras)
    (model / "images.txt").write_text(images or "\n".join(lines) + "\n")
    picture(folder / "images" / "a.png", 16, 8)
    picture(folder / "images" / "b b.png", 16, 8)
    return model

"""What each method of the table makes of the views of an object: something to render, and a mesh.

`hull` is the visual hull with flat Gaussians on its surface, the start of every fit; the methods of FITS follow; `head`
is the feed-forward Gaussian head.

Letters: V views, H W pixels, N points, F faces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.views.posed_views import Normalization, PosedViews
from models.gaussians.rendering import Rendering, render
from pipelines.assets.depth_maps import draw_depth_maps
from pipelines.assets.mesh import write_glb, write_surface
from pipelines.assets.surface import simplify
from pipelines.reconstruction.base import Reconstructor
from pipelines.reconstruction.fitting.hull import carve
from pipelines.reconstruction.fitting.loop import fit_object
from pipelines.reconstruction.fitting.storage import write_mesh
from utils.registry import FITS, Section
from utils.settings.assets import AssetOptions

HULL, HEAD = "hull", "head"


@dataclass(frozen=True, kw_only=True)
class Made:
    """The object that a method made of views.

    Attributes:
        draw: renders it from cameras in the world of the views: (c2w_V44, K_V33, size, background).
        write: writes its mesh, in the world of the views; raises DataError if there is no surface.
        disagreeing: indices of the views that the method names as wrong; None: it names none.
    """

    draw: Callable[[Tensor, Tensor, tuple[int, int], float], Rendering]
    write: Callable[[Path], dict[str, Any]]
    disagreeing: list[int] | None


def method_names(*, with_head: bool, fits: Sequence[str] | None = None) -> list[str]:
    """List the methods in the order of the table.

    Args:
        fits: those of FITS; None: all.
    """
    return [HULL, *(FITS.names() if fits is None else fits), *([HEAD] if with_head else [])]


def make_object(
    views: PosedViews, section: Section, *, hull_only: bool, seed: int, assets: AssetOptions, state: Path
) -> Made:
    """Fit an object to views, or stop at its hull.

    Args:
        views: the views, on the device of the fit.
        section: the method and its options; for the hull, those of `gs`.
        state: file for the state of an unfinished fit.

    Raises:
        DataError: the hull is empty, or the fit has values that are not finite.
    """
    views, move = views.normalized()
    if not hull_only:
        fitted = fit_object(section, views, seed=seed, state=state)
        model = fitted.model
    else:
        hull = carve(views, grid=section.options.hull_grid, tolerance=section.options.hull_tolerance)
        model = section.build(views=views, hull=hull)

    def inside(c2w_V44: Tensor, K_33: Tensor, size: tuple[int, int], background: float) -> Rendering:
        return model.render(c2w_V44, K_33, size=size, background=background)

    def draw(c2w_V44: Tensor, K_33: Tensor, size: tuple[int, int], background: float) -> Rendering:
        return inside(moved_cameras(c2w_V44, move).to(views.c2w_V44), K_33.to(views.c2w_V44), size, background)

    def write(path: Path) -> dict[str, Any]:
        if not hull_only:
            return write_mesh(path, fitted, inside, move=move, options=assets)
        options = {"num_views": assets.mesh_views, "size": assets.mesh_view_size, "lowest_deg": assets.mesh_lowest_deg}
        around = draw_depth_maps(inside, model.hull.low_3, model.hull.high_3, **options)
        surface = simplify(model.hull.surface(), num_faces=assets.faces)
        return write_surface(path, surface, around, assets, to_world_44=move.to_world_44.numpy())

    return Made(draw=draw, write=write, disagreeing=None if hull_only else fitted.disagreeing)


def moved_cameras(c2w_V44: Tensor, move: Normalization) -> Tensor:
    """Move cameras from the world to the frame of a fit."""
    c2w_V44 = c2w_V44.clone()
    c2w_V44[:, :3, 3] = move.from_world(c2w_V44[:, :3, 3])
    return c2w_V44


@torch.no_grad()
def make_with_head(
    head: Reconstructor, views: PosedViews, *, background: float, rasterizer: str, assets: AssetOptions
) -> Made:
    """Predict the object's Gaussians from some of the views.

    Args:
        background: grey value behind the views that the head knows.
    """
    gaussians = head.world_gaussians(views.over(background)[None], views.c2w_V44)

    def draw(c2w_V44: Tensor, K_33: Tensor, size: tuple[int, int], behind: float) -> Rendering:
        return render(gaussians, c2w_V44[None], K_33, size=size, background=behind, backend=rasterizer)

    def write(path: Path) -> dict[str, Any]:
        gaussians.check_values(name="the Gaussians")
        return write_glb(path, gaussians, assets, rasterizer=rasterizer)

    return Made(draw=draw, write=write, disagreeing=None)

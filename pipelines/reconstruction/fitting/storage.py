"""Write the result of a fit: the object's files, the model itself, and a sheet of views and renders.

Letters: V views, H W pixels, N points.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datasets.views.posed_views import Normalization
from models.gaussians.rendering import Rendering
from models.gaussians.scene import Gaussians
from pipelines.assets import MESH_FILE, TURNTABLE_FILE
from pipelines.assets.depth_maps import depth_maps_at, draw_depth_maps, with_opaque_depths
from pipelines.assets.files import made, write_assets
from pipelines.assets.mesh import write_surface
from pipelines.assets.surface import fuse, surface_of
from pipelines.assets.turntable import write_turntable
from pipelines.reconstruction.fitting import FIELD_FILE, SHEET_FILE
from pipelines.reconstruction.fitting.base import ObjectFit
from pipelines.reconstruction.fitting.hull import Hull
from pipelines.reconstruction.fitting.loop import FittedObject
from utils.cameras import camera_distance, fov_deg_of
from utils.errors import DataError, first_line
from utils.files import atomic_path
from utils.images import contact_sheet, save_png
from utils.registry import FITS, Section
from utils.settings.assets import AssetOptions

SHEET_COLUMNS = 12
# Fields are slower to render than Gaussians. Their renders only colour what no view sees, and a video is small.
FIELD_VIEWS, FIELD_VIEW_SIZE, FIELD_FRAMES = 16, 128, 24
SMALLEST_VIDEO = 16  # pixels
FRAME_PIXELS = 3  # red frame around a view that disagrees with the others
RED = (0.85, 0.1, 0.1)


def write_fit(
    folder: Path, fitted: FittedObject, section: Section, *, move: Normalization, options: AssetOptions
) -> dict[str, dict[str, Any]]:
    """Write the files of a fitted object.

    Args:
        folder: output folder, which exists.
        section: the method and its options.
        move: from the frame of the fit to the world of the views.
        options: which files to write, and how.

    Returns:
        Facts about each file, see `pipelines.assets.files.write_assets`.

    Raises:
        WriteError: a file cannot be written, for example because the disk is full.
    """
    model, views = fitted.model, fitted.views
    device = views.c2w_V44.device
    # the angle over the shorter side, so that the object fits the square frames
    fov_deg = float(fov_deg_of(views.K_V33[0], min(views.size)))
    facts: dict[str, dict[str, Any]] = {}
    gaussians = model.gaussians()
    if gaussians is not None:
        c2w_44 = views.c2w_V44[0].clone()
        c2w_44[:3, 3] = move.to_world(c2w_44[:3, 3])
        facts |= write_assets(
            folder,
            in_world(gaussians, move).scene(0),
            options=dataclasses.replace(options, glb=False, turntable=False),
            c2w_44=c2w_44,
            fov_deg=fov_deg,
            title=folder.name,
            rasterizer="auto",
        )
    else:
        facts[FIELD_FILE] = made(folder / FIELD_FILE, lambda path: write_field(path, model, section, move))
        options = dataclasses.replace(
            options,
            mesh_views=min(options.mesh_views, FIELD_VIEWS) if model.has_volume else options.mesh_views,
            mesh_view_size=min(options.mesh_view_size, FIELD_VIEW_SIZE),
            turntable_frames=min(options.turntable_frames, FIELD_FRAMES),
            turntable_size=min(options.turntable_size, max(SMALLEST_VIDEO, 2 * (min(views.size) // 2))),
        )

    def draw(c2w_V44: Tensor, K_33: Tensor, size: tuple[int, int], background: float) -> Rendering:
        return model.render(c2w_V44, K_33, size=size, background=background)

    def mesh(path: Path) -> dict[str, Any]:
        return write_mesh(path, fitted, draw, move=move, options=options)

    def turntable(path: Path) -> dict[str, Any]:
        distance = float(camera_distance(views.c2w_V44).mean())
        return write_turntable(path, draw, options, distance=distance, fov_deg=fov_deg, device=device)

    for name, wanted, make in ((MESH_FILE, options.glb, mesh), (TURNTABLE_FILE, options.turntable, turntable)):
        if wanted:
            facts[name] = made(folder / name, make)
    save_png(folder / SHEET_FILE, sheet(fitted))
    return facts


def write_mesh(
    path: Path, fitted: FittedObject, draw: Any, *, move: Normalization, options: AssetOptions
) -> dict[str, Any]:
    """Write the mesh of a fitted object; its texture comes from the views that agree with the others.

    Raises:
        DataError: there is no surface.
    """
    model, views = fitted.model, fitted.views
    inside = (model.hull.distance_XYZ < 0).nonzero()
    low_3 = model.hull.low_3 + (inside.amin(dim=0) - 1) * model.hull.voxel
    high_3 = model.hull.low_3 + (inside.amax(dim=0) + 1) * model.hull.voxel
    around = draw_depth_maps(
        draw,
        low_3,
        high_3,
        num_views=options.mesh_views,
        size=options.mesh_view_size,
        lowest_deg=options.mesh_lowest_deg,
    )
    gaussians = model.gaussians()
    if gaussians is not None:
        around = with_opaque_depths(around, gaussians)
    volume = model.volume(grid=options.grid)
    surface = surface_of(volume or fuse(around, grid=options.grid), num_faces=options.faces)
    agreeing = torch.ones(len(views), dtype=torch.bool)
    agreeing[fitted.disagreeing] = False
    trusted = views.only(agreeing)
    pictures = depth_maps_at(draw, trusted.c2w_V44, trusted.K_V33, trusted.size, low_3, high_3)
    pictures = dataclasses.replace(
        pictures,
        colors_V3HW=trusted.colors_V3HW,
        alphas_V1HW=torch.minimum(trusted.masks_V1HW, pictures.alphas_V1HW),
    )
    return write_surface(path, surface, around, options, pictures=pictures, to_world_44=move.to_world_44.numpy())


def in_world(gaussians: Gaussians, move: Normalization) -> Gaussians:
    """Move Gaussians from the frame of a fit to the world of its views."""
    return dataclasses.replace(
        gaussians, means_BN3=move.to_world(gaussians.means_BN3), scales_BN3=gaussians.scales_BN3 / move.scale
    )


def sheet(fitted: FittedObject) -> Tensor:
    """Make a sheet: rows of views, and below each its render. Views that disagree with the others have a red frame."""
    true_V3HW = fitted.views.over(1.0).cpu().clone()
    for view in fitted.disagreeing:
        for side in (
            (slice(None), slice(0, FRAME_PIXELS)),
            (slice(None), slice(-FRAME_PIXELS, None)),
            (slice(0, FRAME_PIXELS), slice(None)),
            (slice(-FRAME_PIXELS, None), slice(None)),
        ):
            true_V3HW[(view, slice(None), *side)] = torch.tensor(RED)[:, None, None]
    renders_V3HW = fitted.renders_V3HW.cpu()
    columns = min(SHEET_COLUMNS, len(true_V3HW))
    rows = []
    for true, drawn in zip(true_V3HW.split(columns), renders_V3HW.split(columns), strict=True):
        missing = torch.ones(columns - len(true), *true.shape[1:])
        rows += [true, missing, drawn, missing]
    return contact_sheet(torch.cat(rows), columns=columns)


def write_field(path: Path, model: ObjectFit, section: Section, move: Normalization) -> dict[str, Any]:
    """Write a fitted model, so that `read_field` can render it again."""
    values = {f"model.{name}": value for name, value in model.state_dict().items()}
    values |= {"hull.distance_XYZ": model.hull.distance_XYZ, "hull.low_3": model.hull.low_3}
    facts = {
        "section": json.dumps({**dataclasses.asdict(section.options), "type": section.type}),
        "voxel": repr(model.hull.voxel),
        "scale": repr(move.scale),
        "center": json.dumps(move.center_3.tolist()),
    }
    with atomic_path(path) as part:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in values.items()}, part, facts)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def read_field(path: Path, *, device: torch.device | str = "cpu") -> tuple[ObjectFit, Normalization]:
    """Read a model that `write_field` wrote, and the move from its frame to the world.

    Raises:
        DataError: the file is missing, or is not a field of this project.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}
        section = FITS.section(json.loads(facts["section"]), where=str(path))
        hull = Hull(distance_XYZ=values["hull.distance_XYZ"], low_3=values["hull.low_3"], voxel=float(facts["voxel"]))
        model = section.build(views=None, hull=hull).to(device)
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in values.items() if name.startswith("model.")}
        )
        move = Normalization(
            scale=float(facts["scale"]), center_3=torch.tensor(json.loads(facts["center"]), dtype=torch.float64)
        )
    except FileNotFoundError as err:
        raise DataError(f"{path}: no such file; name a {FIELD_FILE} that tools/reconstruct.py wrote") from err
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as err:
        raise DataError(f"{path}: not a field of this project ({first_line(err)}); write it again") from err
    return model.eval(), move

"""Results that a visitor sees, and the pictures and archives that are made of them.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import base64
import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.files import atomic_path
from utils.images import to_uint8

MESH_PAGE = Path(__file__).parent / "mesh.html"
STRIP_QUALITY = 90  # of WebP; the .zip has the views without loss


@dataclass(frozen=True, kw_only=True)
class Strip:
    """All views of an orbit in one picture, from which the page shows one at a time without asking the server.

    Attributes:
        path: the picture.
        columns, rows: of its grid, in reading order.
        azimuths_deg: of the V views, modulo 360.
        size: width and height of a view.
    """

    path: Path
    columns: int
    rows: int
    azimuths_deg: tuple[float, ...]
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished orbit or fit.

    Attributes:
        number: of the result in its visit.
        title: as the visitor wrote it; it must be escaped before it is shown.
        folder: everything of this result is in it.
        strip: the views; None for a fit.
        sheet: a picture of all views, or of views and renders.
        viewer: the page of the Gaussians, if there are any.
        mesh: a page that shows the mesh, if there is one.
        video: the orbit, or a turntable.
        downloads: the files that are offered.
        facts: names and values, for a table.
        command: the line that repeats the result.
        notes: what a visitor should know.
    """

    number: int
    title: str
    folder: Path
    strip: Strip | None
    sheet: Path | None
    viewer: Path | None
    mesh: Path | None
    video: Path | None
    downloads: tuple[Path, ...]
    facts: tuple[tuple[str, str], ...]
    command: str
    notes: tuple[str, ...] = ()


def write_strip(path: Path, views_VCHW: Tensor, c2w_V44: Tensor) -> Strip:
    """Write the views of an orbit as one picture.

    Args:
        views_VCHW: in [0, 1].
        c2w_V44: their cameras.
    """
    num_views, _, height, width = views_VCHW.shape
    columns = math.ceil(math.sqrt(num_views))
    rows = -(-num_views // columns)
    pixels = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for view, image_HW3 in enumerate(to_uint8(views_VCHW)):
        top, left = view // columns * height, view % columns * width
        pixels[top : top + height, left : left + width] = image_HW3
    with atomic_path(path) as part:
        Image.fromarray(pixels).save(part, format="WEBP", quality=STRIP_QUALITY)
    azimuths_V = torch.rad2deg(torch.atan2(c2w_V44[:, 1, 3], c2w_V44[:, 0, 3])) % 360
    return Strip(
        path=path,
        columns=columns,
        rows=rows,
        azimuths_deg=tuple(round(float(azimuth), 2) for azimuth in azimuths_V),
        size=(width, height),
    )


def data_url(image_CHW: Tensor, *, quality: int = 80) -> str:
    """Return a picture as the text of a page: (3, H, W) in [0, 1]."""
    content = io.BytesIO()
    Image.fromarray(to_uint8(image_CHW)).save(content, format="WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def write_mesh_page(path: Path, mesh: Path) -> Path | None:
    """Write a page that shows a mesh of ours and needs nothing else; None if there is no mesh.

    Gradio's own viewer of meshes often stays empty (6.31: an update while it loads ends its loading).

    Args:
        mesh: a .glb of pipelines.assets.mesh.
    """
    if not mesh.is_file():
        return None
    page = MESH_PAGE.read_text(encoding="utf-8").replace("__GLB__", base64.b64encode(mesh.read_bytes()).decode("ascii"))
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def write_zip(path: Path, folder: Path, names: list[str]) -> None:
    """Write files of a folder into an archive, whole or not at all; pictures are already compressed."""
    with atomic_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.write(folder / name, name)

"""A web page that shows Gaussians: one file, which a browser can open from disk without a network."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from pathlib import Path

from torch import Tensor

from models.gaussians.files import splat_bytes
from models.gaussians.scene import Gaussians
from utils.cameras import camera_distance
from utils.files import atomic_path

TEMPLATE = Path(__file__).with_suffix(".html")


def write_viewer(
    path: Path, gaussians: Gaussians, *, c2w_44: Tensor, fov_deg: float, background: float, title: str
) -> None:
    """Write one scene as a page, completely or not at all.

    The page's address can set another first view: `viewer.html#azimuth=40&elevation=10&distance=1.5`, also
    `background=0` and `panel=0`. If azimuth, elevation or distance in the address change later, the view turns.

    Args:
        c2w_44: camera of the first view, which looks at the origin.
        fov_deg: field of view over the shorter side of the window.
        background: grey value in [0, 1].
        title: title of the page.

    Raises:
        DataError: a value is invalid, or no Gaussian is visible.
    """
    x, y, z = c2w_44[:3, 3].tolist()
    scene = {
        "azimuth_deg": math.degrees(math.atan2(y, x)),
        "elevation_deg": math.degrees(math.atan2(z, math.hypot(x, y))),
        "distance": float(camera_distance(c2w_44)),
        "fov_deg": fov_deg,
        "background": background,
    }
    filled = {
        "__TITLE__": html.escape(title.encode("utf-8", "replace").decode("utf-8")),
        "__SCENE__": json.dumps(scene),
        "__SPLATS__": base64.b64encode(splat_bytes(gaussians)).decode("ascii"),
    }
    # all at once: a title may contain the name of another place
    page = re.sub("|".join(filled), lambda match: filled[match[0]], TEMPLATE.read_text(encoding="utf-8"))
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")

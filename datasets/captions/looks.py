"""What colours an object has, and where: from renders without light, so that shading does not matter.

Letters: V views, P pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datasets.captions.color_names import NAMES, name_indices, oklab
from datasets.meshes.renderer import render_views
from datasets.meshes.scene import RenderMesh, srgb_to_linear
from utils.cameras import DATA_FOV_DEG, orbit_cameras

NUM_VIEWS, SIZE, ELEVATION_DEG, DISTANCE = 6, 80, 20.0, 2.0
ZONE = 0.32  # fraction of the height that is its top, and its bottom
CLEAR = 0.55  # fraction of the pixels that must have a colour so that it is the colour of a part
ELSEWHERE = 0.12  # ... and that may have it elsewhere
PLAIN = ("black", "white", "grey", "beige", "brown")
SECOND, DETAIL, SINGLE, MANY = 0.25, 0.08, 0.72, 4


@dataclass(frozen=True, kw_only=True)
class Look:
    """The colours of an object.

    colors: the names of its main colours, the most frequent first: one, two, or more if none prevails.
    detail: a colour that a small part has somewhere; "" for none.
    top, bottom: the colour of its upper or lower end if it differs; "" otherwise.
    shade: `light` or `dark` if the first colour is; "" otherwise.
    shares: the fraction of every colour that has at least 2 %.
    """

    colors: tuple[str, ...]
    detail: str = ""
    top: str = ""
    bottom: str = ""
    shade: str = ""
    shares: dict[str, float]


def look_of(mesh: RenderMesh) -> Look | None:
    """Look at a normalised mesh from all sides; None if nothing of it is seen."""
    unlit = replace(mesh, lit_F=np.zeros(len(mesh.points_F33), dtype=bool))
    c2w_V44 = orbit_cameras(num_views=NUM_VIEWS, elevation_deg=ELEVATION_DEG, radius=DISTANCE).numpy()
    views = render_views(unlit, c2w_V44, fov_deg=DATA_FOV_DEG, size=SIZE, samples=2)
    seen = views.rgba_VHW4[..., 3] > 127
    if not seen.any():
        return None
    lab_P3 = oklab(srgb_to_linear(views.rgba_VHW4[seen][:, :3] / 255.0))
    return describe_colors(lab_P3, _heights(views.depth_VHW, c2w_V44)[seen])


def _heights(depth_VHW: np.ndarray, c2w_V44: np.ndarray) -> np.ndarray:
    """World z of what each pixel shows."""
    focal = SIZE / 2 / np.tan(np.radians(DATA_FOV_DEG) / 2)
    place = (np.arange(SIZE) + 0.5 - SIZE / 2) / focal
    right, down, forward, origin = (c2w_V44[:, 2, k][:, None, None] for k in range(4))
    return origin + depth_VHW * (right * place[None, None] + down * place[None, :, None] + forward)


def describe_colors(lab_P3: np.ndarray, height_P: np.ndarray) -> Look:
    """Name the colours of pixels.

    Args:
        lab_P3: OKLab.
        height_P: height of each pixel on the object, in any unit.
    """
    index_P = name_indices(lab_P3)
    shares = _shares(index_P)
    order = [NAMES[index] for index in np.argsort(-shares, kind="stable")]
    share = dict(zip(NAMES, shares.tolist(), strict=True))
    low, high = float(height_P.min()), float(height_P.max())
    level_P = (height_P - low) / max(high - low, 1e-9)
    top = _zone_color(index_P, level_P > 1 - ZONE, main=order[0])
    bottom = _zone_color(index_P, level_P < ZONE, main=order[0])
    others = [name for name in order[1:] if name not in (top, bottom)]
    colors = order[:1]
    if share[order[0]] < SINGLE:
        colors += [name for name in others if share[name] >= SECOND]
    several = [name for name in order if share[name] >= 0.1]
    if share[order[0]] < 0.45 and len(several) >= MANY and sum(name not in PLAIN for name in several) >= 3:
        colors = several
    rest = [name for name in others if name not in colors and share[name] >= DETAIL]
    lightness = float(np.median(lab_P3[index_P == NAMES.index(order[0]), 0]))
    shade = "dark" if lightness < 0.42 else "light" if lightness > 0.8 else ""
    fixed = ("black", "white", "beige", "gold", "yellow", "brown", "pink", "orange")
    return Look(
        colors=tuple(colors),
        detail=rest[0] if rest and not top and not bottom and len(colors) < 3 else "",
        top=top if len(colors) < 3 else "",
        bottom=bottom if len(colors) < 3 else "",
        shade="" if order[0] in fixed else shade,
        shares={name: round(share[name], 3) for name in order if share[name] >= 0.02},
    )


def _shares(index_P: np.ndarray) -> np.ndarray:
    return np.bincount(index_P, minlength=len(NAMES)) / max(len(index_P), 1)


def _zone_color(index_P: np.ndarray, inside_P: np.ndarray, *, main: str) -> str:
    """The colour of a zone that has clearly another one than the rest; "" for none."""
    if not 0.04 < inside_P.mean() < 0.6:
        return ""
    here, elsewhere = _shares(index_P[inside_P]), _shares(index_P[~inside_P])
    index = int(here.argmax())
    clear = here[index] >= CLEAR and elsewhere[index] <= ELSEWHERE
    return NAMES[index] if clear and NAMES[index] != main else ""

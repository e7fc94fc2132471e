"""Makes one file of the collection: reads an object, checks that it is one, and describes what identifies it.

Letters: F faces, P points at which a face is looked at, O octants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.meshes.collecting.glb import write_glb
from datasets.meshes.renderer import sample_texture
from datasets.meshes.scene import EmptyMeshError, RenderMesh, linear_to_srgb, normalise
from utils.errors import first_line

RULES = 1  # raised when objects that were made before have to be made again
THINNEST = 0.02  # of the longest side
LEAST_OPACITY = 0.1
GRID = 512  # positions that are closer than a step of this grid count as the same
SAME_LOOK = 8 / 255
VAL_SHARE = 0.03
# Corners' weights of four points of a face: its centre, and one towards each corner.
POINTS_P3 = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / [[3], [6], [6], [6]]


@dataclass(frozen=True)
class Entry:
    """An object as its source lists it.

    Attributes:
        name: of the file, without suffix; no other object of the collection has it.
        title: what the source calls it.
        category: of the source, "" for none.
        caption: a noun phrase.
        licence: SPDX identifier.
        author: who made it, as far as it is known.
        origin: the file, for messages.
        read: returns the mesh, z up, and notes on what is ignored or missing; DataError if it cannot be read.
    """

    name: str
    title: str
    category: str
    caption: str
    licence: str
    author: str
    origin: str
    read: Callable[[], tuple[RenderMesh, list[str]]]

    def described(self) -> dict[str, str]:
        """What the list of the collection says about it before it is read."""
        keys = ("name", "title", "category", "caption", "licence", "author")
        return {key: getattr(self, key) for key in keys}


def make_object(origin: str, entry: Entry, folder: Path, *, max_texture: int) -> tuple[dict[str, Any], str]:
    """Read an object and write `folder/<name>.glb`: z or y up as the source, longest side 1, centred.

    Returns:
        Its record, and one line about what is ignored or missing ("" if nothing). The record of what is no object has
        the reason under `left_out`, and no file is written.

    Raises:
        DataError: it cannot be read.
        WriteError: the disk is full.
    """
    record: dict[str, Any] = entry.described()
    try:
        mesh, notes = entry.read()
        mesh = normalise(mesh)
    except EmptyMeshError as err:
        return record | {"left_out": "empty", "reason": first_line(err)}, ""
    note = f"{origin}: {'; '.join(notes)}" if notes else ""
    thickness, (opacity, look_O3) = _thickness(mesh), _look(mesh)
    if thickness < THINNEST:
        return record | {"left_out": "thin", "reason": f"thickness {thickness:.4f} of the longest side"}, note
    if opacity < LEAST_OPACITY:
        return record | {"left_out": "transparent", "reason": f"opacity {opacity:.3f}"}, note
    write_glb(folder / f"{entry.name}.glb", mesh, max_texture=max_texture)
    cut_out = mesh.cutoff_F is not None and bool((mesh.cutoff_F > 0).any())
    return record | {
        "faces": len(mesh.points_F33),
        "textures": len(mesh.textures),
        "cut_out": cut_out,
        "group": _geometry(mesh),
        "look": np.round(look_O3, 4).ravel().tolist(),
    }, note


def _thickness(mesh: RenderMesh) -> float:
    """The smallest extent, along an axis of the file or of the object itself; the longest side is 1."""
    points_N3 = np.unique(mesh.points_F33.reshape(-1, 3), axis=0).astype(np.float64)
    axes_33 = np.linalg.eigh(np.cov(points_N3.T))[1]
    return float(min(np.ptp(points_N3, axis=0).min(), np.ptp(points_N3 @ axes_33, axis=0).min()))


def _geometry(mesh: RenderMesh) -> str:
    """Ten digits that are the same for the same shape in other colours, or with its faces in another order."""
    grid = np.round(mesh.points_F33.reshape(-1, 3) * GRID).astype(np.int16)
    return hashlib.sha256(np.unique(grid, axis=0).tobytes()).hexdigest()[:10]


def _look(mesh: RenderMesh) -> tuple[float, np.ndarray]:
    """The mean opacity of the surface, and the mean sRGB colour (O, 3) of each of its eight octants."""
    corners_F33 = mesh.points_F33
    area_F = np.linalg.norm(
        np.cross(corners_F33[:, 1] - corners_F33[:, 0], corners_F33[:, 2] - corners_F33[:, 0]), axis=1
    )
    colors_FP3 = np.einsum("pk,fkc->fpc", POINTS_P3, mesh.colors_F33)
    alpha_FP = np.ones(colors_FP3.shape[:2])
    if mesh.opacities_F3 is not None:
        alpha_FP = np.einsum("pk,fk->fp", POINTS_P3, mesh.opacities_F3)
    for number, texture in enumerate(mesh.textures):
        chosen_F = mesh.texture_F == number if mesh.texture_F is not None else np.zeros(len(area_F), bool)
        if not chosen_F.any():
            continue
        uvs_S2 = np.einsum("pk,fkc->fpc", POINTS_P3, mesh.uvs_F32[chosen_F]).reshape(-1, 2)
        texels_FPC = sample_texture(texture.pixels_HWC, uvs_S2, wrap=texture.wrap).reshape(
            -1, len(POINTS_P3), 3 + (texture.pixels_HWC.shape[2] == 4)
        )
        colors_FP3[chosen_F] *= texels_FPC[..., :3]
        if texels_FPC.shape[2] == 4:
            alpha_FP[chosen_F] *= texels_FPC[..., 3]
    weights_FP = np.maximum(area_F, 1e-12)[:, None] * alpha_FP
    octant_FP = (np.einsum("pk,fkc->fpc", POINTS_P3, corners_F33) > 0) @ np.array([4, 2, 1])
    totals_O = np.bincount(octant_FP.ravel(), weights=weights_FP.ravel(), minlength=8)
    sums_O3 = np.stack(
        [
            np.bincount(octant_FP.ravel(), weights=(weights_FP * colors_FP3[..., k]).ravel(), minlength=8)
            for k in range(3)
        ],
        axis=1,
    )
    opacity = float(weights_FP.sum() / (np.maximum(area_F, 1e-12).sum() * len(POINTS_P3)))
    return opacity, linear_to_srgb(sums_O3 / np.maximum(totals_O, 1e-12)[:, None])


def without_duplicates(
    records: Iterable[dict[str, Any]], *, variants: int
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Go through records in order and compare them with those before.

    Args:
        variants: how many objects of one geometry in different colours are kept.

    Yields:
        (record, None), or (record, the name of an object before that makes it superfluous).
    """
    kept: dict[str, list[tuple[str, np.ndarray]]] = {}
    for record in records:
        look = np.array(record["look"])
        same = kept.setdefault(record["group"], [])
        before = next((name for name, other in same if np.abs(other - look).max() < SAME_LOOK), None)
        if before is None and len(same) >= variants:
            before = same[0][0]
        if before is None:
            same.append((record["name"], look))
        yield record, before


def split_of(group: str) -> str:
    """`val` for about 3 % of the geometries, else `train`: copies of one geometry are on one side."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") / 2**32
    return "val" if share < VAL_SHARE else "train"

"""Reads the objects of mods of Luanti (Minetest): meshes in .obj files, whose textures are named in Lua.

A definition has `mesh = "x.obj"` and, after it, `tiles = {...}`: a picture for each material of the mesh, in the order
in which the mesh uses them. A picture may be multiplied with a colour. Source: https://api.luanti.org/nodes/.

Letters: F faces, N vertices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from datasets.meshes.collecting.captions import caption_of_file
from datasets.meshes.collecting.objects import Entry
from datasets.meshes.collecting.readers import Terms, named
from datasets.meshes.companions import Companions
from datasets.meshes.materials import Material, painted
from datasets.meshes.scene import Y_UP_TO_Z_UP, EmptyMeshError, RenderMesh, Texture, join, srgb_to_linear, turned
from utils.errors import DataError, first_line

CUTOFF = 0.5
REACH = 600  # characters of a definition in which its tiles follow its mesh
MESH = re.compile(r'mesh\s*=\s*"([\w.]+\.obj)"')
TILES = re.compile(r"tiles\s*=\s*\{")
TILE = re.compile(r'\{\s*name\s*=\s*"([^"]+)"([^{}]*)\}|"([^"]+)"')
COLOR = re.compile(r"color\s*=\s*([\w.]+)")
CONSTANT = re.compile(r"(?m)^\s*(?:\w+\.)?(color_\w+)\s*=\s*(0x[0-9a-fA-F]{6,8})")
NO_OBJECTS = re.compile(
    r"cube|slope|_corner|window|wall_japanese|banister|trapdoor|door_|_pole|fence|paper|rug|_b$|calendar|chains"
    r"|grandfather|fishtank|plasma|bathroom_set|book_open|chimney|dvd|large_open|can_green|lavalamp"
)


@dataclass(frozen=True)
class Tile:
    """A picture of a material and the colour, linear RGB, that it is multiplied with."""

    path: Path
    color: tuple[float, float, float]


def read_parts(text: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read a .obj file: for each material, in the order of their first use, its faces.

    Returns:
        Pairs of corners (F, 3, 3) and texture coordinates (F, 3, 2).

    Raises:
        DataError: a line cannot be read, or a face names a vertex that does not exist.
    """
    points: list[list[float]] = []
    uvs: list[list[float]] = []
    faces: dict[str, list[list[tuple[int, int]]]] = {}
    material = ""
    try:
        for line in text.splitlines():
            word, *rest = line.split() or [""]
            if word == "v":
                points.append([float(value) for value in rest[:3]])
            elif word == "vt":
                uvs.append([float(value) for value in rest[:2]])
            elif word == "usemtl":
                material = " ".join(rest)
            elif word == "f":
                corners = [[*part.split("/"), ""][:2] for part in rest]
                ring = [(int(v), int(t or 0)) for v, t in corners]
                faces.setdefault(material, []).extend([ring[0], *pair] for pair in pairwise(ring[1:]))
        found = []
        points_N3, uvs_N2 = np.array(points).reshape(-1, 3), np.array([[0.0, 0.0], *uvs])
        for triangles in faces.values():
            index_F32 = np.array(triangles, np.int64)
            if index_F32[..., 0].min() < 1 or index_F32.min() < 0:
                raise DataError("a face counts its vertices from the end, which is not read here")
            found.append((points_N3[index_F32[..., 0] - 1], uvs_N2[index_F32[..., 1]]))
    except (ValueError, IndexError) as err:
        raise DataError(f"is no .obj file that can be read ({first_line(err)})") from err
    return found


def read_object(path: Path, tiles: tuple[Tile, ...], root: Path) -> tuple[RenderMesh, list[str]]:
    """Read a mesh with its tiles; materials after the last tile have the last one.

    Returns:
        The mesh, z up, and notes on what is missing.

    Raises:
        DataError: the file is broken.
        EmptyMeshError: it has no faces that can be seen.
    """
    files, meshes = Companions(path, root), []
    try:
        parts = read_parts(path.read_text(encoding="utf-8", errors="replace"))
    except DataError as err:
        raise DataError(f"{path}: {err}") from err
    for number, (points_F33, uvs_F32) in enumerate(parts):
        tile = tiles[min(number, len(tiles) - 1)]
        pixels_HWC = files.picture(tile.path.name, content=tile.path.read_bytes())
        texture = None if pixels_HWC is None else Texture(pixels_HWC=pixels_HWC)
        normals_F3 = np.cross(points_F33[:, 1] - points_F33[:, 0], points_F33[:, 2] - points_F33[:, 0])
        normals_F3 /= np.maximum(np.linalg.norm(normals_F3, axis=1, keepdims=True), 1e-12)
        material = Material(color=tile.color, texture=texture, cutoff=CUTOFF)
        mesh = painted(points_F33, np.repeat(normals_F3[:, None], 3, axis=1), material, uvs_F32=uvs_F32)
        meshes += [] if mesh is None else [mesh]
    if not meshes:
        raise EmptyMeshError(f"{path}: has no faces that can be seen")
    return turned(join(meshes), Y_UP_TO_Z_UP), files.notes


def definitions(text: str, colors: dict[str, str]) -> dict[str, list[tuple[str, tuple[float, float, float]]]]:
    """The tiles of each mesh that a Lua file names: picture and colour; the first definition of a mesh counts."""
    found: dict[str, list[tuple[str, tuple[float, float, float]]]] = {}
    for mesh in MESH.finditer(text):
        after = text[mesh.end() : mesh.end() + REACH]
        tiles = TILES.search(after)
        if tiles is None or MESH.search(after[: tiles.start()]) or mesh[1] in found:
            continue
        rows = []
        for tile in TILE.finditer(_inside(after[tiles.end() :])):
            color = COLOR.search(tile[2] or "")
            value = colors.get(color[1].split(".")[-1], color[1]) if color else "0xffffff"
            rows.append((tile[1] or tile[3], _rgb(value)))
        found[mesh[1]] = rows
    return found


def _inside(text: str) -> str:
    """The text up to the brace that closes what is open at its beginning."""
    depth = 1
    for at, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[:at]
    return ""


def _rgb(value: str) -> tuple[float, float, float]:
    """A colour such as 0xffa0a0a0 as linear RGB; white for an expression."""
    digits = value[2:][-6:] if re.fullmatch(r"0x[0-9a-fA-F]{6,8}", value) else "ffffff"
    red, green, blue = srgb_to_linear(np.array([int(digits[k : k + 2], 16) for k in (0, 2, 4)]) / 255).tolist()
    return red, green, blue


def nodes(root: Path, work: Path, terms: Terms) -> list[Entry]:
    """List the meshes below a folder whose tiles are all there."""
    pictures = {path.name: path for path in sorted(root.rglob("*.png"))}
    meshes = {path.name: path for path in sorted(root.rglob("*.obj"))}
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in sorted(root.rglob("*.lua"))}
    colors = {name: value for text in texts.values() for name, value in CONSTANT.findall(text)}
    found: dict[str, Entry] = {}
    for lua, text in texts.items():
        for mesh, rows in definitions(text, colors).items():
            title = Path(mesh).stem
            known = rows and mesh in meshes and all(name in pictures for name, _ in rows)
            if not known or mesh in found or NO_OBJECTS.search(title):
                continue
            tiles = tuple(Tile(pictures[name], color) for name, color in rows)
            caption = caption_of_file(
                title, drop=frozenset("homedecor forniture lrfurn set basic vessels green inbox large small".split())
            )
            read = partial(read_object, meshes[mesh], tiles, root)
            place = str(meshes[mesh])
            found[mesh] = Entry(title, title, lua.parent.name, caption, terms.licence, terms.author, place, read)
    return named(list(found.values()), terms.prefix)

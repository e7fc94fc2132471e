"""Reads the free models of UFO: Alien Invasion: things, plants, aliens and weapons, in the MD2 format of Quake II.

The first frame is drawn. Most models of the game are under the GPL; those that are not are found by Debian's copyright
file, which names the licence of every file.
Source: the description of MD2, http://tfc.duke.free.fr/coding/md2-specs-en.html.

Letters: F faces, N vertices.
"""

from __future__ import annotations

import re
import struct
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.meshes.collecting.captions import caption_of_file
from datasets.meshes.collecting.debian_copyright import Paragraph, read_copyright, terms_of
from datasets.meshes.collecting.objects import Entry
from datasets.meshes.collecting.readers import Terms, named, unpack
from datasets.meshes.companions import Companions
from datasets.meshes.materials import Material, painted
from datasets.meshes.scene import EmptyMeshError, RenderMesh, Texture
from utils.errors import DataError, first_line

HEADER = struct.Struct("<4s16i")
VERSION = 8
NAME_BYTES = 64
CUTOFF = 0.5
SUFFIXES = (".png", ".jpg", ".tga")
# Parts of objects that are in several files, and what is flat.
NO_OBJECTS = re.compile(
    r"head|weapon$|rack|curtain|emergencyexit|grass|wheat|trunk|leaf$|leaves|branch|pino\d|tree2_a|gravel|door|light1"
    r"|watertower[12]|palm1$|arch$|fireext2|radiator|ammo|clip|plants_0|container_body"
)
NOUNS = {
    "pbw": "particle beam cannon", "shiva": "rotary cannon", "sparrowhawk": "missile", "bloodspider": "spider robot",
    "body01": "spider robot", "alientank": "alien tank", "barrel_fuel": "fuel barrel", "minicrane": "small crane",
    "barrel_plastic": "plastic barrel", "bench_l": "long bench", "bench_s": "bench", "parkbench": "park bench",
    "parktable": "park table", "watertower": "water tower", "container_short": "open shipping container",
    "container_short_closed": "shipping container", "coffeemaker": "coffee maker", "desklamp": "desk lamp",
    "fireext": "fire extinguisher", "flowerpot2": "flower pot", "palm2": "palm tree", "palm_v1": "palm tree",
    "palm_v2": "palm tree", "palm_v3": "palm tree", "palm2_1": "palm tree", "plant_v1": "plant", "tree2_b": "tree",
    "tropic01": "tropical plant", "tropic02": "tropical plant", "tropic03": "tropical plant",
    "binocs": "pair of binoculars",
    "tropical2": "tropical plant", "tropical3": "tropical plant", "irgoggles": "pair of goggles",
    "stungren": "grenade",
    "needler": "needle gun", "needlerheavy": "heavy needle gun", "vhs": "scanner", "xaw95": "rifle",
    "stunrod": "stun rod",
    "shotgunmicro": "short shotgun", "fern2_lrg": "large fern", "electrolaser": "laser gun",
    "machinegun": "machine gun",
    "camera1": "security camera", "light": "street lamp", "bush01": "bush", "bed1": "bed",
}  # fmt: skip


@dataclass(frozen=True)
class Md2:
    """The first frame of a model, z up; uvs have their origin at the upper left."""

    points_N3: np.ndarray
    faces_F3: np.ndarray
    uvs_F32: np.ndarray
    skin: str


def read_md2(content: bytes) -> Md2:
    """Read an MD2 file.

    Raises:
        DataError: it is not an MD2 file, has another version, or is truncated.
    """
    if content[:4] != b"IDP2" or len(content) < HEADER.size:
        raise DataError("is not an MD2 file; download it again")
    header = HEADER.unpack_from(content)
    version, width, height = header[1:4]
    num_skins, num_points, num_uvs, num_faces = header[5:9]
    at_skins, at_uvs, at_faces, at_frames = header[11:15]
    if version != VERSION:
        raise DataError(f"is MD2 version {version}, but {VERSION} is read; convert it")
    try:
        scale_3, shift_3 = np.frombuffer(content, "<f4", 6, at_frames).astype(np.float64).reshape(2, 3)
        packed_N4 = np.frombuffer(content, "u1", 4 * num_points, at_frames + 24 + 16).reshape(-1, 4)
        uvs_N2 = np.frombuffer(content, "<i2", 2 * num_uvs, at_uvs).reshape(-1, 2) / [max(width, 1), max(height, 1)]
        corners_F23 = np.frombuffer(content, "<u2", 6 * num_faces, at_faces).reshape(-1, 2, 3).astype(np.int64)
        skin = struct.unpack_from(f"<{NAME_BYTES}s", content, at_skins)[0] if num_skins else b""
    except (struct.error, ValueError) as err:
        raise DataError(f"is truncated ({first_line(err)}); download it again") from err
    if num_faces and (corners_F23[:, 0].max() >= num_points or corners_F23[:, 1].max() >= num_uvs):
        raise DataError("a face refers to a vertex that does not exist; download it again")
    corners_F23 = corners_F23[:, :, ::-1]  # clockwise as Quake has it
    return Md2(
        points_N3=packed_N4[:, :3] * scale_3 + shift_3,
        faces_F3=corners_F23[:, 0],
        uvs_F32=uvs_N2[corners_F23[:, 1]],
        skin=skin.split(b"\0")[0].decode("latin-1"),
    )


def skin_of(path: Path, name: str) -> Path | None:
    """The picture of a model; a name that begins with a dot lies beside the model."""
    stem = name.removeprefix(".") or path.stem
    places = (path.with_name(f"{stem}{suffix}") for suffix in SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def read_model(path: Path, root: Path) -> tuple[RenderMesh, list[str]]:
    """Read a model with its skin.

    Returns:
        The mesh, z up, and notes on what is missing.

    Raises:
        DataError: the file is broken.
        EmptyMeshError: it has no faces that can be seen.
    """
    files = Companions(path, root)
    try:
        md2 = read_md2(path.read_bytes())
    except DataError as err:
        raise DataError(f"{path}: {err}") from err
    skin = skin_of(path, md2.skin)
    pixels_HWC = files.picture(md2.skin, content=None if skin is None else skin.read_bytes())
    texture = None if pixels_HWC is None else Texture(pixels_HWC=pixels_HWC)
    points_F33 = md2.points_N3[md2.faces_F3]
    normals_F3 = np.cross(points_F33[:, 1] - points_F33[:, 0], points_F33[:, 2] - points_F33[:, 0])
    normals_F3 /= np.maximum(np.linalg.norm(normals_F3, axis=1, keepdims=True), 1e-12)
    material = Material(color=(1.0, 1.0, 1.0), texture=texture, cutoff=CUTOFF)
    uvs_F32 = md2.uvs_F32 * [1, -1] + [0, 1]
    mesh = painted(points_F33, np.repeat(normals_F3[:, None], 3, axis=1), material, uvs_F32=uvs_F32)
    if mesh is None or not len(mesh.points_F33):
        raise EmptyMeshError(f"{path}: has no faces that can be seen")
    return mesh, files.notes


def models(root: Path, work: Path, terms: Terms) -> list[Entry]:
    """List the models that are objects and free, and unpack the archive to `work`.

    Raises:
        DataError: there is no archive or no copyright file below `root`, or the archive is broken.
    """
    archives, pages = sorted(root.rglob("0models.pk3")), sorted(root.rglob("doc/ufoai-data/copyright"))
    if not archives or not pages:
        raise DataError(f"{root}: contains no 0models.pk3 or no copyright file; name the package's folder")
    try:
        with zipfile.ZipFile(archives[0]) as archive:
            unpack(archive, work, want=r"\.(md2|png|jpe?g|tga)$")
    except (zipfile.BadZipFile, OSError, EOFError) as err:
        raise DataError(f"{archives[0]}: is not a zip file ({first_line(err)}); download it again") from err
    paragraphs = read_copyright(pages[0].read_text(encoding="utf-8"))
    found = []
    for path in sorted(work.rglob("*.md2")):
        known = None if NO_OBJECTS.search(path.stem) else _terms(path, work, paragraphs)
        if known is not None:
            name = path.relative_to(work / "models").with_suffix("").as_posix()
            caption = caption_of_file(NOUNS.get(path.stem, path.stem))
            read = partial(read_model, path, work)
            found.append(Entry(name, path.stem, path.parent.name, caption, *known, str(path), read))
    return named(found, terms.prefix)


def _terms(path: Path, work: Path, paragraphs: list[Paragraph]) -> tuple[str, str] | None:
    """Licence and authors of a model and its skin; None if one of them is not free, or cannot be read."""
    try:
        skin = skin_of(path, read_md2(path.read_bytes()).skin)
    except DataError:
        return None
    files = [path] if skin is None else [path, skin]
    known = terms_of(paragraphs, [f"base/{file.relative_to(work).as_posix()}" for file in files])
    return None if known is None else (known[0], ", ".join(known[1]) or "UFO: Alien Invasion team")

"""Reads the models of 0 A.D.: actors (XML) name meshes (PMD), textures (DDS) and the props that are attached to them.

The actor that is drawn has, in each group, the variant of highest frequency. Ambient occlusion, normal and gloss maps
are not used; props at moving bones are left out. Source: the descriptions of actors and of the PMD format in the manual
of the engine, https://trac.wildfiregames.com/wiki/PMD_Format.

Letters: F faces, N vertices.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from datasets.meshes.collecting.actor_captions import caption_of_actor
from datasets.meshes.collecting.objects import Entry
from datasets.meshes.collecting.readers import Terms, named
from datasets.meshes.companions import decode_picture
from datasets.meshes.materials import Material, painted
from datasets.meshes.scene import EmptyMeshError, RenderMesh, Texture, join, srgb_to_linear
from utils.errors import DataError, first_line

# Folders of actors that are objects, and what a name lacks to be a noun there.
CATEGORIES = {
    "structures": "", "fauna": "", "flora/trees": "tree", "flora/bushes": "bush", "flora": "", "fungi": "mushroom",
    "geology": "", "props/special/eyecandy": "",
}  # fmt: skip
NO_OBJECTS = re.compile(
    r"decal|foundation|scaffold|destruct|rubble|ruin|debris|garrison|flag|banner|smoke|fire|test|temp|fndn|selection|"
    r"waterfall|particle|shadow|dirt|grass_|_grass|field|door|ladder|reflect|foam|fog|puddle|dummy|"
    r"branches|leaves|sapling|_top|trunk|_base$|blocker|plane|_props?$|_structs?$|needles|patch|^deci|^water|_water|"
    r"^snow|^highland|forest_floor|plot|^sp_|^sb_|woodbit|delimitator|runway"
)
# What is attached only sometimes, or is no surface.
NO_PROPS = re.compile(r"garrison|decal|smoke|fire|particle|foundation|scaffold")
# In some materials the engine paints transparent parts in the player's colour. Here the name chooses this colour.
PLAYERS = ((10, 10, 190), (150, 20, 20), (50, 165, 5), (230, 205, 40), (50, 170, 170), (160, 80, 200), (220, 115, 16))
CUTOFF = 0.5
MAX_DEPTH = 4
NO_BONE = 0xFF
# Rows are the new axes, z up with the front along +x; the engine's are left-handed, y up, and animals and buildings
# face -z.
FROM_ENGINE = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]], dtype=np.float64)


@dataclass(frozen=True)
class PropPoint:
    """Where a prop is attached: `matrix_44` in the mesh's own axes; `moves` if it hangs on a bone."""

    matrix_44: np.ndarray
    moves: bool


@dataclass(frozen=True)
class Pmd:
    """A mesh of the engine, in its own axes; uvs_N2 is the first set."""

    points_N3: np.ndarray
    normals_N3: np.ndarray
    uvs_N2: np.ndarray
    faces_F3: np.ndarray
    props: dict[str, PropPoint]


def read_pmd(content: bytes) -> Pmd:
    """Read a PMD file.

    Raises:
        DataError: it is not a PMD file, has another version, or is truncated.
    """
    if content[:4] != b"PSMD" or len(content) < 16:
        raise DataError("is not a PMD file; download it again")
    version, _, num_vertices = struct.unpack_from("<III", content, 4)
    if not 3 <= version <= 4:
        raise DataError(f"is PMD version {version}, but 3 and 4 are read; take another release")
    try:
        offset, num_uvs = 16, 1
        if version >= 4:
            num_uvs, offset = struct.unpack_from("<I", content, 16)[0], 20
        # position, normal, sets of coordinates, four bones and their weights
        vertex = np.dtype([("data", "<f4", 6 + 2 * num_uvs), ("bones", "u1", 4), ("weights", "<f4", 4)])
        data = np.frombuffer(content, vertex, num_vertices, offset)["data"].astype(np.float64)
        offset += vertex.itemsize * num_vertices
        num_faces = struct.unpack_from("<I", content, offset)[0]
        faces_F3 = np.frombuffer(content, "<u2", 3 * num_faces, offset + 4).reshape(-1, 3).astype(np.int64)
        offset += 4 + 6 * num_faces
        num_bones = struct.unpack_from("<I", content, offset)[0]
        props = _prop_points(content, offset + 4 + 28 * num_bones)
    except (struct.error, ValueError, UnicodeDecodeError) as err:
        raise DataError(f"is truncated ({first_line(err)}); download it again") from err
    if num_faces and faces_F3.max() >= num_vertices:
        raise DataError("a face refers to a vertex that does not exist; download it again")
    uvs_N2 = data[:, 6:8] if num_uvs else np.zeros((num_vertices, 2))
    return Pmd(data[:, :3], data[:, 3:6], uvs_N2, faces_F3, props)


def _prop_points(content: bytes, offset: int) -> dict[str, PropPoint]:
    (number,) = struct.unpack_from("<I", content, offset)
    offset += 4
    found = {}
    for _ in range(number):
        (length,) = struct.unpack_from("<I", content, offset)
        name = content[offset + 4 : offset + 4 + length].decode("ascii")
        *values, bone = struct.unpack_from("<7fB", content, offset + 4 + length)
        offset += 4 + length + 29
        matrix_44 = np.eye(4)
        matrix_44[:3, 3], matrix_44[:3, :3] = values[:3], _rotation(*values[3:])
        found[name] = PropPoint(matrix_44, bone != NO_BONE)
    return found


def _rotation(x: float, y: float, z: float, w: float) -> np.ndarray:
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


class Mod:
    """The files of the game: a folder, or public.zip, which is read without unpacking it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = None if path.is_dir() else zipfile.ZipFile(path)
        if self._archive is not None:
            self.names = set(self._archive.namelist())
        else:
            self.names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}

    def read(self, name: str) -> bytes | None:
        """The content of a file, or of the form into which a release converts it; None if there is neither."""
        for stored in (f"{name}.cached.pmd", f"{name}.cached.dds", name):
            if stored in self.names:
                return (self.path / stored).read_bytes() if self._archive is None else self._archive.read(stored)
        return None


def open_mod(path: Path) -> Mod:
    """A mod, opened once per process: processes that share an open file would read from each other's places."""
    return _open_mod(path, os.getpid())


@cache
def _open_mod(path: Path, pid: int) -> Mod:
    return Mod(path)


@dataclass
class Look:
    """What the chosen variants of an actor say; a later group replaces what an earlier one says."""

    mesh: str = ""
    texture: str = ""
    color: tuple[int, ...] = (255, 255, 255)
    material: str = ""
    props: dict[str, list[str]] = field(default_factory=dict)

    def take(self, variant: ElementTree.Element, mod: Mod, depth: int = 0) -> None:
        """Add what a variant says, after what the file says that it is based on."""
        base = variant.get("file")
        content = mod.read(f"art/variants/{base}") if base and depth < MAX_DEPTH else None
        if content is not None:
            self.take(_parsed(content), mod, depth + 1)
        self.mesh = (variant.findtext("mesh") or self.mesh).strip()
        for texture in variant.iterfind("textures/texture"):
            if texture.get("name") == "baseTex":
                self.texture = texture.get("file", "").strip()
        if color := variant.findtext("color"):
            self.color = tuple(int(value) for value in color.split()[:3])
        given: dict[str, list[str]] = {}
        for prop in variant.iterfind("props/prop"):
            given.setdefault(prop.get("attachpoint", "root"), []).append(prop.get("actor", ""))
        self.props |= given


def read_actor(mod: Mod, actor: str) -> Look:
    """Read an actor with, in each group, the variant of highest frequency.

    Raises:
        DataError: it is missing or not XML.
    """
    content = mod.read(f"art/actors/{actor}")
    if content is None:
        raise DataError(f"actor {actor} is not found")
    root = _parsed(content)
    if root.tag == "qualitylevels":
        best = root.findall("actor")[-1:]
        if best and best[0].get("file"):
            return read_actor(mod, best[0].get("file", ""))
        inline = root.find("inline")
        root = root if inline is None else inline
    look = Look(material=(root.findtext("material") or "").strip())
    for group in root.iterfind("group"):
        variants = group.findall("variant")
        if variants:
            look.take(max(variants, key=lambda variant: int(variant.get("frequency", 0))), mod)
    return look


def _parsed(content: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as err:
        raise DataError(f"is not XML ({first_line(err)})") from err


def read_object(path: Path, actor: str) -> tuple[RenderMesh, list[str]]:
    """Read an actor with what is attached to it.

    Returns:
        The mesh, z up, and notes on what is missing.

    Raises:
        DataError: a file of it is broken.
        EmptyMeshError: it has no mesh, such as an actor that is only a decal.
    """
    player = PLAYERS[hashlib.sha256(actor.encode()).digest()[0] % len(PLAYERS)]
    builder = _Builder(open_mod(path), player)
    try:
        builder.add(actor, np.eye(4))
    except DataError as err:
        raise DataError(f"{path}: {actor}: {err}") from err
    if not builder.parts:
        raise EmptyMeshError(f"{path}: {actor}: has no mesh")
    return join(builder.parts), builder.notes


class _Builder:
    """Puts the parts of an actor together."""

    def __init__(self, mod: Mod, player: tuple[int, int, int]) -> None:
        self.mod, self.player = mod, player
        self.parts: list[RenderMesh] = []
        self.notes: list[str] = []
        self._textures: dict[tuple[str, tuple[int, ...] | None], Texture | None] = {}

    def add(self, actor: str, matrix_44: np.ndarray, depth: int = 0) -> None:
        """Add an actor and its props at a place, in the engine's axes."""
        look = read_actor(self.mod, actor)
        points: dict[str, PropPoint] = {}
        if look.mesh:
            content = self.mod.read(f"art/meshes/{look.mesh}")
            if content is None:
                self.notes.append(f"mesh {look.mesh} is not found")
            else:
                pmd = read_pmd(content)
                points = pmd.props
                self._paint(pmd, look, matrix_44)
        for name, actors in look.props.items():
            point = points.get(name)
            if depth >= MAX_DEPTH or (name != "root" and (point is None or point.moves)):
                continue
            place_44 = matrix_44 if name == "root" else matrix_44 @ point.matrix_44
            for prop in actors:
                if prop and not NO_PROPS.search(prop):
                    try:
                        self.add(prop, place_44, depth + 1)
                    except DataError as err:
                        self.notes.append(f"prop {prop}: {err}")

    def _paint(self, pmd: Pmd, look: Look, matrix_44: np.ndarray) -> None:
        points_N3 = (pmd.points_N3 @ matrix_44[:3, :3].T + matrix_44[:3, 3]) @ FROM_ENGINE.T
        normals_N3 = pmd.normals_N3 @ matrix_44[:3, :3].T @ FROM_ENGINE.T
        faces_F3 = pmd.faces_F3  # clockwise in left-handed axes, so counter-clockwise in ours
        described = (self.mod.read(f"art/materials/{look.material}") or b"") if look.material else b""
        color = (
            self.player if b"USE_PLAYERCOLOR" in described else look.color if b"USE_OBJECTCOLOR" in described else None
        )
        texture = self._texture(look.texture, color)
        clear = b"USE_TRANSPARENT" in described or b"alpha_blending" in described
        material = Material(color=(1.0, 1.0, 1.0), texture=texture, cutoff=CUTOFF if clear else None)
        if texture is None:
            material = Material(color=tuple(srgb_to_linear(np.array(look.color) / 255).tolist()))
        part = painted(points_N3[faces_F3], normals_N3[faces_F3], material, uvs_F32=pmd.uvs_N2[faces_F3])
        if part is not None and len(faces_F3):
            self.parts.append(part)

    def _texture(self, name: str, color: tuple[int, ...] | None) -> Texture | None:
        """A texture; with a colour, its alpha says how much of the texture covers that colour."""
        if (name, color) in self._textures:
            return self._textures[name, color]
        content = self.mod.read(f"art/textures/skins/{name}") if name else None
        texture = None
        if content is None:
            self.notes += [f"texture {name} is not found"] if name else []
        else:
            try:
                pixels_HWC = decode_picture(content)
            except DataError as err:
                self.notes.append(f"texture {name} {err}")
            else:
                if color is not None and pixels_HWC.shape[2] == 4:
                    alpha_HW1 = pixels_HWC[..., 3:].astype(np.float32) / 255
                    mixed = pixels_HWC[..., :3] * alpha_HW1 + np.array(color, np.float32) * (1 - alpha_HW1)
                    pixels_HWC = np.round(mixed).astype(np.uint8)
                texture = Texture(pixels_HWC=pixels_HWC)
        self._textures[name, color] = texture
        return texture


def actors(root: Path, work: Path, terms: Terms) -> list[Entry]:
    """List the actors of 0 A.D. that are objects: buildings, animals, plants, rocks and things.

    Raises:
        DataError: there is no public.zip and no folder art/actors below `root`.
    """
    found = sorted(root.rglob("public.zip")) or sorted(path.parents[1] for path in root.rglob("art/actors"))
    if not found:
        raise DataError(f"{root}: contains neither public.zip nor a folder art/actors; name the game's folder")
    try:
        mod = open_mod(found[0])
    except (zipfile.BadZipFile, OSError) as err:
        raise DataError(f"{found[0]}: is not a zip file ({first_line(err)}); download it again") from err
    entries = []
    for name in sorted(mod.names):
        actor = name.removeprefix("art/actors/")
        if not (name.startswith("art/actors/") and name.endswith(".xml")) or NO_OBJECTS.search(Path(actor).stem):
            continue
        category = next((c for c in CATEGORIES if actor.startswith(f"{c}/")), None)
        caption = "" if category is None else caption_of_actor(actor, noun=CATEGORIES[category])
        if not caption:
            continue
        title, origin = actor.removesuffix(".xml"), f"{found[0]}: {actor}"
        read = partial(read_object, found[0], actor)
        entries.append(Entry(title, title, category, caption, terms.licence, terms.author, origin, read))
    return named(entries, terms.prefix)

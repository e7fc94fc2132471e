"""Reads the models of MegaGlest: units, resources and the things of its landscapes, in the G3D format.

A unit is drawn as it stands, in the first frame of its animation. Where a part shows the player's colour, the alpha of
its texture says how much of the texture covers that colour. Source: the description of G3D, version 4, in the manual of
the game, https://forum.megaglest.org/index.php?topic=713.0.

Letters: F faces, N vertices.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.meshes.collecting.captions import caption_of_file
from datasets.meshes.collecting.objects import Entry
from datasets.meshes.collecting.pyrogenesis import PLAYERS
from datasets.meshes.collecting.readers import Terms, named
from datasets.meshes.companions import Companions
from datasets.meshes.materials import Material, painted
from datasets.meshes.scene import Y_UP_TO_Z_UP, EmptyMeshError, RenderMesh, Texture, join, turned
from utils.errors import DataError, first_line

HEADER = struct.Struct("<3sBHB")
MESH = struct.Struct("<64sIII3f3fffII")
NAME_BYTES = 64
CUSTOM_COLOR = 1  # a bit of the properties of a mesh
CUTOFF = 0.5
# Units that look the same among all peoples.
COMMON = frozenset("cow sheep chicken bull ibis scarab snake wild_sow pig elephant reed beehive campfire golem".split())
# A name that ends so is a unit or a building as it stands; the other models of a unit are its movements.
STANDS = re.compile(r"_(standing|stand|idle|stop|stopped|normal|model)$")
MOVES = re.compile(
    r"walk|attack|dy?ing|_die|dead|death|destr|con(s?)truction|build|mining|harv|heal|produc|morph|load|fly_|shoot|throw|"
    r"summon|arrow|projectile|particle|fire_?ball|stop_|_hit|cast|run|jump|eat|spell|charg|hold|repair|upgrad|effect"
)
NO_OBJECTS = re.compile(
    r"^(none|riverside|impaled|hanged|bodypart|menu|intro|main|nettles|br\d|hell\d)|grass|water|flower|reed"
)
# Names of units and models that are not English, or do not say what the object is.
NOUNS = {
    "baum2big": "large tree", "sarg holz": "wooden coffin", "sarg stein": "stone coffin", "atheleas": "plant",
    "palm deada": "dead palm tree", "palm deadb": "dead palm tree", "palm deadc": "dead palm tree",
    "kaktus deadtree": "dead tree", "swordman": "swordsman", "berserk": "berserker", "battleaxe": "axe fighter",
    "axe indian": "axe fighter", "cavalry": "horseman", "birke mush": "birch tree with mushrooms",
    "birke branch": "birch tree",
    "calendar": "stone calendar", "mallorn": "tall tree", "burned": "burned tree", "gold": "pile of gold",
    "anubis": "Anubis", "tanne": "fir tree", "birke": "birch tree", "baum": "tree", "farn": "fern",
    "kaktusbusch": "cactus",
    "kaktus": "cactus", "sarg": "coffin", "grab": "grave", "vulcano": "volcano", "cactoe": "cactus",
    "deathtree": "dead tree", "deadtree": "dead tree", "deadpine": "dead pine tree", "deadfern": "dead fern",
    "pine": "pine tree", "cypress": "cypress tree", "palm": "palm tree", "bigrock": "rock", "phoenix": "palm tree",
    "joshuatree": "Joshua tree", "stone": "rock", "ferntree": "fern tree", "bushtree": "bush", "bigfern": "fern",
    "bushstone": "bush", "skullbone": "skull", "crosses": "group of crosses",
    "cross": "stone cross", "stump": "tree stump", "thrall": "Norse worker", "slave": "slave", "hell": "rock",
    "initiate": "young mage", "technician": "technician", "daemon": "demon", "mead bar": "mead house",
    "wicker behemoth": "wicker giant", "ghost armor": "suit of armour", "air pyramid": "flying pyramid",
    "round tent": "round tent", "big tent": "large tent", "main teepee": "teepee", "bull": "bull",
    "cudgel lady": "woman with a cudgel", "fakir": "fakir", "wild sow": "wild boar", "thor": "Norse god",
}  # fmt: skip
FACTIONS = {
    "egypt": "Egyptian", "indian": "American Indian", "norsemen": "Norse", "persian": "Persian", "romans": "Roman",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A mesh of a file: its first frame, y up."""

    points_N3: np.ndarray
    normals_N3: np.ndarray
    uvs_N2: np.ndarray | None
    faces_F3: np.ndarray
    color: tuple[float, float, float]
    opacity: float
    shows_player: bool
    texture: str


def read_g3d(content: bytes) -> list[Part]:
    """Read a G3D file.

    Raises:
        DataError: it is not a G3D file, has another version, or is truncated.
    """
    if content[:3] != b"G3D" or len(content) < HEADER.size:
        raise DataError("is not a G3D file; download it again")
    _, version, num_meshes, _ = HEADER.unpack_from(content)
    if version != 4:
        raise DataError(f"is G3D version {version}, but 4 is read; convert it")
    offset, parts = HEADER.size, []
    try:
        for _ in range(num_meshes):
            part, offset = _part(content, offset)
            parts.append(part)
    except (struct.error, ValueError) as err:
        raise DataError(f"is truncated ({first_line(err)}); download it again") from err
    return parts


def _part(content: bytes, offset: int) -> tuple[Part, int]:
    """The mesh at `offset`, and where the next one begins."""
    _, frames, num_vertices, num_indices, *floats, properties, textures = MESH.unpack_from(content, offset)
    color, opacity = tuple(floats[:3]), floats[7]
    offset += MESH.size
    names = []
    for _ in range(textures.bit_count()):
        (name,) = struct.unpack_from(f"{NAME_BYTES}s", content, offset)
        names.append(name.split(b"\0")[0].decode("latin-1"))
        offset += NAME_BYTES
    frame = 3 * num_vertices

    def floats_at(at: int, count: int, width: int) -> np.ndarray:
        return np.frombuffer(content, "<f4", count, at).reshape(-1, width).astype(np.float64)

    points_N3 = floats_at(offset, frame, 3)
    normals_N3 = floats_at(offset + 4 * frame * frames, frame, 3)
    offset += 8 * frame * frames
    uvs_N2 = None
    if textures:
        uvs_N2 = floats_at(offset, 2 * num_vertices, 2)
        offset += 8 * num_vertices
    faces_F3 = np.frombuffer(content, "<u4", num_indices, offset).reshape(-1, 3).astype(np.int64)
    if num_indices and faces_F3.max() >= num_vertices:
        raise DataError("a face refers to a vertex that does not exist; download it again")
    texture = names[0] if textures & 1 else ""  # the first bit is the colour
    shows_player = bool(properties & CUSTOM_COLOR)
    part = Part(points_N3, normals_N3, uvs_N2, faces_F3, color, opacity, shows_player, texture)
    return part, offset + 4 * num_indices


def read_model(path: Path, root: Path, is_unit: bool) -> tuple[RenderMesh, list[str]]:
    """Read a model with its textures; only units belong to a player, in whose colour the engine paints parts of them.

    Returns:
        The mesh, z up, and notes on what is missing.

    Raises:
        DataError: the file is broken.
        EmptyMeshError: it has no faces.
    """
    files = Companions(path, root)
    player = PLAYERS[hashlib.sha256(path.stem.encode()).digest()[0] % len(PLAYERS)] if is_unit else None
    try:
        parts = read_g3d(path.read_bytes())
    except DataError as err:
        raise DataError(f"{path}: {err}") from err
    found = [mesh for part in parts if len(part.faces_F3) and (mesh := _painted(part, files, player)) is not None]
    if not found:
        raise EmptyMeshError(f"{path}: has no faces that can be seen")
    return turned(join(found), Y_UP_TO_Z_UP), files.notes


def _painted(part: Part, files: Companions, player: tuple[int, int, int] | None) -> RenderMesh | None:
    pixels_HWC = files.picture(part.texture) if part.texture else None
    if pixels_HWC is not None and player is not None and part.shows_player and pixels_HWC.shape[2] == 4:
        alpha_HW1 = pixels_HWC[..., 3:].astype(np.float32) / 255
        mixed = pixels_HWC[..., :3] * alpha_HW1 + np.array(player, np.float32) * (1 - alpha_HW1)
        pixels_HWC = np.round(mixed).astype(np.uint8)
    texture = None if pixels_HWC is None else Texture(pixels_HWC=pixels_HWC)
    color = (1.0, 1.0, 1.0) if texture is not None else part.color
    cutoff = 0.0 if part.opacity < 1 else CUTOFF
    material = Material(color=color, opacity=part.opacity, cutoff=cutoff, texture=texture)
    uvs_F32 = None if part.uvs_N2 is None else part.uvs_N2[part.faces_F3]
    if uvs_F32 is not None and not np.isfinite(uvs_F32).all():
        files.note("texture coordinates that are not finite count as 0")
        uvs_F32 = np.nan_to_num(uvs_F32, nan=0.0, posinf=0.0, neginf=0.0)
    return painted(part.points_N3[part.faces_F3], part.normals_N3[part.faces_F3], material, uvs_F32=uvs_F32)


def models(root: Path, work: Path, terms: Terms) -> list[Entry]:
    """List the models that are objects: one of each unit, and the things of the landscapes.

    Raises:
        DataError: there is no folder techs or tilesets below `root`.
    """
    games = sorted(path.parent for path in root.rglob("tilesets") if path.is_dir())
    if not games:
        raise DataError(f"{root}: contains no folder tilesets; name the game's folder")
    found = []
    for game in games:
        for folder in sorted(game.glob("techs/*/factions/*/units/*/models")):
            path = _standing(folder)
            if path is None:
                continue
            faction = folder.parents[2].name
            unit = folder.parent.name
            caption = _caption(unit, "" if unit in COMMON else FACTIONS.get(faction, ""))
            found.append(_entry(path, game, f"{faction} {unit}", faction, caption, terms, is_unit=True))
        things = [*game.glob("techs/*/resources/*/models/*.g3d"), *game.glob("tilesets/**/*.g3d")]
        for path in sorted(things):
            place = path.relative_to(game).parts[1]
            if not NO_OBJECTS.search(path.stem):
                found.append(
                    _entry(path, game, f"{place} {path.stem}", place, _caption(path.stem, ""), terms, is_unit=False)
                )
    return named([entry for entry in found if entry.caption], terms.prefix)


def _entry(path: Path, game: Path, title: str, category: str, caption: str, terms: Terms, *, is_unit: bool) -> Entry:
    read = partial(read_model, path, game, is_unit)
    return Entry(title, title, category, caption, terms.licence, terms.author, str(path), read)


def _standing(folder: Path) -> Path | None:
    """The model of a unit that neither moves nor is being built; None if there is none."""
    paths = sorted(folder.glob("*.g3d"))
    stands = [path for path in paths if STANDS.search(path.stem)]
    still = [path for path in paths if not MOVES.search(path.stem)]
    return next(iter(stands + still), None)


def _caption(name: str, people: str) -> str:
    """A noun phrase of the name of a model or a unit."""
    words = re.sub(r"(?<!baum)[\d_]+[a-z]?$", "", name).replace("_", " ").strip()
    noun = words
    for known in sorted(NOUNS, key=len, reverse=True):
        noun = re.sub(rf"\b{known}\b", NOUNS[known], noun)
        if noun != words:
            break
    noun = re.sub(r"^(.*) (small|big)$", r"\2 \1", re.sub(r"(?<=[a-z])big$", " big", noun)).replace("big ", "large ", 1)
    return caption_of_file(f"{people} {noun}".strip())

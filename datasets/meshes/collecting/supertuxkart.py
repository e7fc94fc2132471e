"""Reads the models of SuperTuxKart: karts, the objects of its library, and the things along its tracks, in SPM files.

Of an object in several levels of detail the finest one is taken; skinned models are in their rest pose. Licence and
authors of an object are those of its mesh and of all its textures, as Debian's copyright file names them. Source: the
reader and writer of the game, https://github.com/supertuxkart/stk-blender (io_scene_spm).

Letters: F faces, N vertices.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from datasets.meshes.collecting.captions import caption_of_file
from datasets.meshes.collecting.debian_copyright import Paragraph, read_copyright, terms_of
from datasets.meshes.collecting.objects import Entry
from datasets.meshes.collecting.readers import Terms, named
from datasets.meshes.companions import Companions
from datasets.meshes.materials import Material, painted
from datasets.meshes.scene import EmptyMeshError, RenderMesh, Texture, join, srgb_to_linear
from utils.errors import DataError, first_line

HEADER_BYTES = 28  # two letters, version and kind, what vertices have, and the bounding box
VERSION = 1
NORMALS, COLORS, TANGENTS = 1, 2, 4
STATIC, ANIMATED = 2, 1
CUTOFF = 0.5
# Rows are the new axes, z up with the front along +x; the engine's are left-handed, y up, and karts face +z.
FROM_ENGINE = np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]], dtype=np.float64)
LEVEL = re.compile(r"(_LOD_?(\d+|[a-z])|_lod(_model)?_[a-z]|[_-](high|hi|mid|low|lo))$")
LEVELS = {"high": 0, "hi": 0, "mid": 1, "low": 2, "lo": 2}
NO_OBJECTS = re.compile(
    r"_track$|track$|water|sky|cloud|plane|invisible|reset|boundar|wall|terrain|landscape|grass|field|sign|arrow|light|"
    r"beam|text|flag|road|mesh|collision|lava|glow|spot|display|bubble|zipper|gfx_|meta_|animgrass|flower|liana|leaves|"
    r"brick|board|path|ground|limit|circle|object|rail|mountain|trees|schiene|floor|start|corn_|grain|ramp|barrier|"
    r"static|vegetation|shadow|curtain|window|roof|helper|phys|fence|pipe|tube|cliff|river|smoke|particle|vertical|"
    r"hole|static|door|arena|roots|ribbon|screen|monestar|graden|some|navmesh|material|cube|sphere|cylinder|curve|"
    r"hitbox|wind$|spark|electrical\d|backroom|winframe|rotating|podium|nolok_intro|tuxintro|^sara$|hammerarm|catail|"
    r"text|ocean|surface|sea$|sand$|snow$|nitro_|boost|canvas|panel|advert|jetblast|neon|prayer|halo|ray|fog|dust|firework|balcony"
)
DROP = frozenset(
    "stklib stk hd main lod high low hi lo mid anim animation generic mod little a b c d e f g model sa new "
    "very".split()
)
# Shapes that only collisions see, and models that are copies all over a track.
UNSEEN = re.compile(r"phys|_col(_|$)|collision|hitbox|helper", re.IGNORECASE)
SCATTERED = frozenset(
    "cow stones_01 stones_02 bush_a bush_brown_leaf_a bush_brown_leaf_b painting_a stump_01 wood_planks branch "
    "house_pillar_a house_pillar_b toy_train ship container container_ctf pinevervlow sakuralow hat_a hammer canonball "
    "swatter_anim stklib_cartraffic_a stklib_tropicalplant_a stklib_sagebrush_a house_drive_in".split()
)
# Names that are not English nouns, or of which only players of the game know what they are.
NOUNS = {
    "animalPig": "pig", "cartraffic": "car", "bowling": "bowling ball", "nitrotank": "nitro bottle",
    "gift-box": "gift box",
    "castel": "castle", "canonBall": "cannonball", "house_table": "table", "house_drive_in": "garage",
    "bush_brown_leaf": "brown bush", "container_ctf": "container", "stump": "tree stump", "steamengine": "steam engine",
    "foundationRuin": "ruin", "antlers": "pair of antlers", "swatter": "fly swatter", "thunderbird": "bird",
    "easter_ears": "pair of rabbit ears", "dinosaur_arm": "dinosaur arm", "fitchBarrel": "crash barrel",
    "accacia": "acacia", "weatherCock": "weathercock", "hayBall": "hay bale",
    "aztek": "Aztec", "aztec": "Aztec", "gnuMeditation": "meditating gnu", "redToriiPortal": "red torii gate",
    "silvianHouse": "fantasy house", "silvianTower": "fantasy tower", "silvianKiosk": "fantasy kiosk",
    "silvianClock": "fantasy clock", "silvianGirl": "fantasy girl", "slivianFountain": "fantasy fountain",
    "hexajet": "jet airplane with six engines", "trijet": "jet airplane with three engines", "topf": "cooking pot",
    "beachBarMenu": "beach bar menu", "tvVan": "television van", "seaLantern": "sea lantern", "teller": "plate",
    "kikiPainter": "squirrel painter", "konqi": "dragon", "wilberPainter": "dog painter", "bugLamp": "bug lamp",
    "classchair": "school chair", "ferryWheels": "Ferris wheel", "mudpot": "mud pot", "curiosity": "Mars rover",
    "ekasia_tree": "tree", "log_small": "small log", "log_big": "big log", "monkeyCheering": "cheering monkey",
    "showProjector": "stage spotlight", "tiresBarrier": "stack of tires", "modernHousing": "modern house",
    "airConditioner": "air conditioner", "bigAirBlower": "big air blower", "papiAirport": "airport runway lamp",
    "blimp": "blimp", "wilbertSecurity": "dog security guard", "treeMod": "tree", "sakuraPine": "sakura tree",
    "sakuraLow": "sakura tree", "pineLow": "pine tree", "pineVeryLow": "pine tree", "pinetree": "pine tree",
    "silvian": "fantasy", "kiki": "squirrel", "lowPalmTree": "palm tree", "lowPineTree": "pine tree",
    "aztekGirlCheering": "cheering Aztec girl", "beachGuy": "man on the beach", "beachWomen": "woman on the beach",
    "entranceGuardianMale": "statue of a guardian", "computerScreenMail": "computer screen", "redXmasLight":
    "red Christmas lamp", "oldschoolLamp": "old lamp", "inflatableFence": "inflatable fence", "pillard": "pillar",
}  # fmt: skip
KARTS = {
    "adiumy": "a green bird in a go-kart", "amanda": "a panda in a go-kart", "emule": "a mule in a go-kart",
    "gavroche": "a gnu in a go-kart", "gnu": "a gnu in a go-kart", "kiki": "a squirrel in a go-kart",
    "konqi": "a green dragon in a go-kart", "nolok": "a red monster in a go-kart",
    "pidgin": "a purple bird in a go-kart",
    "puffy": "a puffer fish in a go-kart", "sara_the_racer": "a girl in a go-kart",
    "sara_the_wizard": "a wizard girl in a go-kart", "suzanne": "a monkey in a go-kart",
    "tux": "a penguin in a go-kart",
    "wilber": "a dog in a go-kart", "xue": "a mouse in a go-kart", "sara": "a girl in a go-kart",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The faces of an SPM file with one material, in the engine's axes; uvs have their origin at the upper left."""

    points_N3: np.ndarray
    normals_N3: np.ndarray | None
    uvs_N2: np.ndarray | None
    colors_N3: np.ndarray | None
    faces_F3: np.ndarray
    texture: str


class _Reader:
    """Reads a file from front to back."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def text(self) -> str:
        (length,) = self.take("B")
        (text,) = self.take(f"{length}s")
        return text.decode("utf-8", "replace")


def read_spm(content: bytes) -> list[Part]:
    """Read an SPM file; bones and their weights are passed over.

    Raises:
        DataError: it is not an SPM file, has another version, or is truncated.
    """
    if content[:2] != b"SP" or len(content) < HEADER_BYTES:
        raise DataError("is not an SPM file; download it again")
    version, kind = content[2] >> 3, content[2] & 7
    if version != VERSION or kind not in (STATIC, ANIMATED):
        raise DataError(f"is SPM version {version}, kind {kind}, but version 1 of static and animated meshes is read")
    reader = _Reader(content)
    reader.at = HEADER_BYTES
    try:
        (num_materials,) = reader.take("H")
        materials = [(reader.text(), reader.text()) for _ in range(num_materials)]
        parts = []
        (num_sectors,) = reader.take("H")
        for _ in range(num_sectors):
            (num_meshes,) = reader.take("H")
            parts += [_part(reader, content[3], materials, animated=kind == ANIMATED) for _ in range(num_meshes)]
    except (struct.error, IndexError, ValueError) as err:
        raise DataError(f"is truncated ({first_line(err)}); download it again") from err
    return parts


def _part(reader: _Reader, has: int, materials: list[tuple[str, str]], *, animated: bool) -> Part:
    num_vertices, num_indices, material = reader.take("IIH")
    first, second = materials[material]
    columns: dict[str, list] = {"points": [], "normals": [], "colors": [], "uvs": []}
    for _ in range(num_vertices):
        columns["points"].append(reader.take("3f"))
        if has & NORMALS:
            columns["normals"].append(reader.take("I")[0])
        if has & COLORS:
            (same,) = reader.take("B")
            columns["colors"].append((255, 255, 255) if same == 128 else reader.take("3B"))
        if first:
            columns["uvs"].append(reader.take("2e"))
            reader.at += (4 if second else 0) + (4 if has & TANGENTS else 0)
        reader.at += 16 if animated else 0
    form = "H" if num_vertices > 255 else "B"
    faces_F3 = np.array(reader.take(f"{num_indices}{form}"), np.int64).reshape(-1, 3)
    if num_indices and faces_F3.max() >= num_vertices:
        raise DataError("a face refers to a vertex that does not exist; download it again")
    return Part(
        points_N3=np.array(columns["points"], np.float64).reshape(-1, 3),
        normals_N3=_unpacked(columns["normals"]) if has & NORMALS else None,
        uvs_N2=np.array(columns["uvs"], np.float64).reshape(-1, 2) if first else None,
        colors_N3=np.array(columns["colors"], np.float64).reshape(-1, 3) / 255 if has & COLORS else None,
        faces_F3=faces_F3,
        texture=first,
    )


def _unpacked(words: list[int]) -> np.ndarray:
    """Normals of which each axis is a signed number of 10 bits."""
    bits_N3 = np.array(words, np.int64)[:, None] >> np.array([0, 10, 20]) & 1023
    normals_N3 = np.where(bits_N3 > 511, bits_N3 - 1024, bits_N3) / 511.0
    return normals_N3 / np.maximum(np.linalg.norm(normals_N3, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True)
class Placed:
    """A mesh file and where it is in an object: in the engine's axes, angles in degrees."""

    path: Path
    xyz: tuple[float, ...] = (0.0, 0.0, 0.0)
    hpr: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def matrix_44(self) -> np.ndarray:
        """The engine turns about x, then y, then z."""
        matrix_44 = np.eye(4)
        for axis, angle in enumerate(np.radians(self.hpr)):
            turn_33, (j, k) = np.eye(3), [n for n in range(3) if n != axis]
            sign = -1.0 if axis == 1 else 1.0
            turn_33[j, j] = turn_33[k, k] = np.cos(angle)
            turn_33[j, k], turn_33[k, j] = -sign * np.sin(angle), sign * np.sin(angle)
            matrix_44[:3, :3] = turn_33 @ matrix_44[:3, :3]
        matrix_44[:3, :3] = matrix_44[:3, :3] * np.array(self.scale)
        matrix_44[:3, 3] = self.xyz
        return matrix_44


@dataclass(frozen=True)
class Data:
    """The folder `data` of the game with what its copyright file says."""

    root: Path
    paragraphs: list[Paragraph]

    def texture(self, name: str, folder: Path) -> Path | None:
        """A texture of a mesh in `folder`: beside it, or among those that all objects share."""
        places = [folder / name, *(self.root / shared / name for shared in ("textures", "models"))]
        return next((place for place in places if place.is_file()), None)

    def terms(self, placed: list[Placed]) -> tuple[str, str] | None:
        """Licence and authors of an object; None if a part of it is not under a free licence, or cannot be read."""
        files: dict[Path, None] = {}
        for item in placed:
            try:
                names = [part.texture for part in read_spm(item.path.read_bytes()) if part.texture]
            except DataError:
                return None
            textures = (self.texture(name, item.path.parent) for name in names)
            files |= dict.fromkeys([item.path, *(path for path in textures if path is not None)])
        known = terms_of(self.paragraphs, [f"data/{path.relative_to(self.root).as_posix()}" for path in files])
        return None if known is None else (known[0], ", ".join(known[1]) or "SuperTuxKart team")


def read_object(placed: list[Placed], data: Data) -> tuple[RenderMesh, list[str]]:
    """Read the meshes of an object with their textures.

    Returns:
        The mesh, z up, and notes on what is missing.

    Raises:
        DataError: a file is broken.
        EmptyMeshError: it has no faces.
    """
    found, notes = [], []
    for item in placed:
        files = Companions(item.path, data.root)
        shaders = _shaders(data, item.path.parent)
        try:
            parts = read_spm(item.path.read_bytes())
        except DataError as err:
            raise DataError(f"{item.path}: {err}") from err
        for part in parts:
            mesh = _painted(part, item.matrix_44, files, data, shaders)
            found += [] if mesh is None else [mesh]
        notes += files.notes
    if not found:
        raise EmptyMeshError(f"{placed[0].path}: has no faces that can be seen")
    return join(found), notes


def _shaders(data: Data, folder: Path) -> dict[str, str]:
    """How each texture is drawn, by its name in lower case."""
    found = {}
    for path in (data.root / "textures/materials.xml", data.root / "models/materials.xml", folder / "materials.xml"):
        if path.is_file():
            for material in _parsed(path).iterfind("material"):
                found[material.get("name", "").lower()] = material.get("shader", "solid")
    return found


def _parsed(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except ElementTree.ParseError as err:
        raise DataError(f"{path}: is not XML ({first_line(err)}); download it again") from err


def _painted(
    part: Part, matrix_44: np.ndarray, files: Companions, data: Data, shaders: dict[str, str]
) -> RenderMesh | None:
    shader = shaders.get(part.texture.lower(), "solid")
    if not len(part.faces_F3) or shader in ("additive", "displace"):  # light and ripples have no surface
        return None
    turn_33 = FROM_ENGINE @ matrix_44[:3, :3]
    points_N3 = part.points_N3 @ turn_33.T + FROM_ENGINE @ matrix_44[:3, 3]
    points_F33 = points_N3[part.faces_F3]
    if part.normals_N3 is not None:
        normals_N3 = part.normals_N3 @ np.linalg.inv(turn_33)
        normals_N3 /= np.maximum(np.linalg.norm(normals_N3, axis=1, keepdims=True), 1e-6)
        normals_F33 = normals_N3[part.faces_F3]
    else:
        flat_F3 = np.cross(points_F33[:, 1] - points_F33[:, 0], points_F33[:, 2] - points_F33[:, 0])
        flat_F3 /= np.maximum(np.linalg.norm(flat_F3, axis=1, keepdims=True), 1e-12)
        normals_F33 = np.repeat(flat_F3[:, None], 3, axis=1)
    pixels_HWC = None
    if part.texture:
        path = data.texture(part.texture, files.path.parent)
        pixels_HWC = files.picture(part.texture, content=None if path is None else path.read_bytes())
    texture = None if pixels_HWC is None else Texture(pixels_HWC=pixels_HWC)
    cutoff = {"alphatest": CUTOFF, "unlit": CUTOFF, "grass": CUTOFF, "alphablend": 0.0}.get(shader)
    tints_F34 = None
    if part.colors_N3 is not None:
        tints_N4 = np.concatenate([srgb_to_linear(part.colors_N3), np.ones((len(part.colors_N3), 1))], axis=1)
        tints_F34 = tints_N4[part.faces_F3]
    uvs_F32 = None if part.uvs_N2 is None else (part.uvs_N2 * [1, -1] + [0, 1])[part.faces_F3]
    material = Material(color=(1.0, 1.0, 1.0), texture=texture, cutoff=cutoff)
    if texture is None and part.texture == "":
        material = Material()
    return painted(points_F33, normals_F33, material, uvs_F32=uvs_F32, tints_F34=tints_F34)


def objects(root: Path, work: Path, terms: Terms) -> list[Entry]:
    """List the karts, the objects of the library, and the models of the tracks that are objects and free.

    Raises:
        DataError: there is no folder data/library below `root`, or Debian's copyright file is not there.
    """
    libraries = sorted(path for path in root.rglob("library") if path.parent.name == "data" and path.is_dir())
    pages = sorted(root.rglob("doc/supertuxkart-data/copyright"))
    if not libraries or not pages:
        raise DataError(f"{root}: contains no folder data/library or no copyright file; name the package's folder")
    data = Data(libraries[0].parent, read_copyright(pages[0].read_text(encoding="utf-8")))
    found = []
    for category, title, caption, placed in [*_karts(data.root), *_library(data.root), *_models(data.root)]:
        known = data.terms(placed) if placed and caption else None
        if known is not None:
            read = partial(read_object, placed, data)
            name = f"{category} {title}"
            found.append(Entry(name, title, category, caption, *known, str(placed[0].path), read))
    return named(found, terms.prefix)


# An object as it is found: category, title, caption, and its meshes.
Found = tuple[str, str, str, list[Placed]]


def _numbers(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split()) if text else default


def _karts(root: Path) -> list[Found]:
    found = []
    for path in sorted(root.glob("karts/*/kart.xml")):
        kart, name = _parsed(path), path.parent.name
        placed = [Placed(path.parent / kart.get("model-file", ""))]
        for wheel in kart.find("wheels") or ():
            if wheel.get("model"):
                placed.append(Placed(path.parent / wheel.get("model", ""), _numbers(wheel.get("position"), (0, 0, 0))))
        placed = [item for item in placed if item.path.is_file()]
        found.append(("karts", name, KARTS.get(name, ""), placed))
    return found


def _library(root: Path) -> list[Found]:
    found = []
    for path in sorted(root.glob("library/*/node.xml")):
        name, placed = path.parent.name, []
        groups: set[str] = set()
        for node in sorted(_parsed(path).iter(), key=lambda node: float(node.get("lod_distance") or 0)):
            model = path.parent / node.get("model", "")
            if node.tag not in ("object", "static-object", "track") or not model.is_file() or not node.get("model"):
                continue
            if node.get("interaction") == "physicsonly" or UNSEEN.search(model.stem):
                continue
            group = node.get("lod_group") or node.get("lod_instance") or ""
            if group and group in groups:
                continue
            groups.add(group)
            scale = _numbers(node.get("scale"), (1, 1, 1))
            hpr, xyz = _numbers(node.get("hpr"), (0, 0, 0)), _numbers(node.get("xyz"), (0, 0, 0))
            placed.append(Placed(model, xyz, hpr, scale))
        if not placed:
            placed = [Placed(model) for model in _finest(sorted(path.parent.glob("*.spm")))[:1]]
        found.append(("library", name, _caption(name), placed))
    return found


def _models(root: Path) -> list[Found]:
    found = []
    for folder in [root / "models", *sorted(root.glob("tracks/*"))]:
        for path in _finest(sorted(folder.glob("*.spm"))):
            name = LEVEL.sub("", path.stem)
            found.append((folder.name, name, _caption(name), [Placed(path)]))
    return found


def _finest(paths: list[Path]) -> list[Path]:
    """Of each object the mesh with most detail: the one for the shortest distance."""
    best: dict[str, tuple[float, Path]] = {}
    for path in paths:
        match = LEVEL.search(path.stem)
        level = re.sub(r"^[_-](LOD_?|lod_(model_)?)?", "", match[0]) if match else ""
        rank = float(level) if level.isdigit() else float(LEVELS.get(level, ord(level[0]) if level else 0))
        name = LEVEL.sub("", path.stem)
        if name not in best or rank < best[name][0]:
            best[name] = rank, path
    return [path for _, path in best.values()]


def _caption(name: str) -> str:
    """A noun phrase of the name of a model; "" for what is no object."""
    name = re.sub(r"^(stklib|stk|hd)_", "", name)
    if NO_OBJECTS.search(name.lower()) or name.lower() in SCATTERED or re.fullmatch(r"[\W\d_]*", name):
        return ""
    for known in sorted(NOUNS, key=len, reverse=True):
        if name.lower().startswith(known.lower()):
            rest = name[len(known) :]
            name = NOUNS[known] + (f" {rest}" if re.match(r"[A-Z]", rest) else "")
            break
    return caption_of_file(name, drop=DROP)

"""Lists the objects of a source: mesh files in folders, and the furniture catalogues of Sweet Home 3D."""

from __future__ import annotations

import fnmatch
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.meshes.collecting.captions import caption_of_file, caption_of_title
from datasets.meshes.collecting.objects import Entry
from datasets.meshes.companions import Companions
from datasets.meshes.loading import read_mesh
from datasets.meshes.scene import Y_UP_TO_Z_UP, RenderMesh, turned
from utils.errors import DataError, first_line


@dataclass(frozen=True)
class Terms:
    """What a source says about all its objects, where an object does not say it itself."""

    prefix: str
    licence: str
    author: str


# Names of files that leave it to the folder to say what the object is.
NO_NAMES = ("model", "scene", "mesh", "base_link", "textured")
NO_CATEGORIES = frozenset("assets models model gltf glb obj meshes files public addons collada google_16k".split())
# A reader lists the objects below a folder; what it has to unpack goes into the second one.
Reader = Callable[[Path, Path, Terms], list[Entry]]


def read_file(
    path: Path,
    root: Path,
    up: str = "auto",
    rotation: tuple[float, ...] | None = None,
    textures: tuple[str, ...] = (),
) -> tuple[RenderMesh, list[str]]:
    """Read a mesh file.

    Args:
        rotation: the rows of a matrix that turns the axes of a y-up file.
        textures: folders of textures, relative to the folder of the file.
    """
    files = Companions(path, root, beside=textures)
    mesh = read_mesh(files, up=up)
    if rotation is not None:
        mesh = turned(mesh, Y_UP_TO_Z_UP @ np.array(rotation).reshape(3, 3) @ Y_UP_TO_Z_UP.T)
    return mesh, files.notes


def mesh_files(
    root: Path,
    work: Path,
    terms: Terms,
    *,
    patterns: tuple[str, ...],
    leave_out: str = "(?!)",
    drop: frozenset[str] = frozenset(),
    up: str = "auto",
    textures: tuple[str, ...] = (),
    noun_first: str = "(?!)",
) -> list[Entry]:
    """List mesh files.

    Args:
        patterns: of paths below `root`, such as `*/gltf/*.gltf`; `*` also stands for several folders.
        leave_out: regular expression of names that are no objects, such as tiles of a floor.
        drop: words that captions leave out.
        up: up axis of the files.
        textures: folders of textures, relative to the folder of a file.
        noun_first: regular expression of names that begin with their noun, such as "tree_pine".
    """
    paths = sorted(
        path
        for path in root.rglob("*")
        if any(fnmatch.fnmatch(path.relative_to(root).as_posix(), pattern) for pattern in patterns) and path.is_file()
    )
    found = []
    for path in paths:
        folder, title = path.relative_to(root).parent, Path(path.stem).stem  # .gltf.glb has two suffixes
        while title.lower() in (*NO_NAMES, *NO_CATEGORIES) and folder.name:
            folder, title = folder.parent, folder.name
        noun_is_first = re.match(noun_first, title, re.IGNORECASE) is not None
        category, caption = _category(folder), caption_of_file(title, drop=drop, noun_first=noun_is_first)
        if not caption or re.search(leave_out, title, re.IGNORECASE):
            continue
        read = partial(read_file, path, root, up, textures=textures)
        name = f"{category} {title}"
        found.append(Entry(name, title, category, caption, terms.licence, terms.author, str(path), read))
    return named(found, terms.prefix)


def _category(folder: Path) -> str:
    """The last folder that is not named after a file format or the like."""
    names = [part for part in folder.parts if part.lower().removesuffix(" format") not in NO_CATEGORIES]
    return names[-1] if names else ""


def named(entries: list[Entry], prefix: str) -> list[Entry]:
    """Give objects names that files of any system can have, each once; `prefix` keeps sources apart."""
    used: set[str] = set()
    found = []
    for entry in entries:
        name = base = "_".join([prefix, *re.findall(r"[a-z0-9]+", entry.name.lower())])[:100]
        number = 1
        while name in used:
            number += 1
            name = f"{base}_{number}"
        used.add(name)
        found.append(Entry(**{**vars(entry), "name": name}))
    return found


# Sweet Home 3D

LICENCES = {
    r"public domain|CC0": "CC0-1.0",
    r"attribution 3\.0 united states": "CC-BY-3.0-US",
    r"GNU GPL|General Public": "GPL-2.0-or-later",
    r"attribution 3\.0": "CC-BY-3.0",
}


def sweethome3d(root: Path, work: Path, terms: Terms) -> list[Entry]:
    """List the furniture of the catalogues (.sh3f, or the program's .jar) below a folder, and unpack them to `work`.

    A catalogue is a zip of .obj files with a list of name, category, creator, and rotation. Source: the format of
    furniture libraries, https://www.sweethome3d.com/documentation.jsp.

    Raises:
        DataError: there is no catalogue, or it is broken.
    """
    catalogues = sorted(path for path in root.rglob("*") if path.suffix in (".sh3f", ".jar") and path.is_file())
    if not catalogues:
        raise DataError(f"{root}: contains no furniture catalogue (.sh3f or .jar); name the folder of the package")
    found = []
    for path in catalogues:
        folder = work / path.stem
        try:
            with zipfile.ZipFile(path) as archive:
                lists = [n for n in archive.namelist() if re.search(r"(^|/)\w*FurnitureCatalog\.properties$", n)]
                texts = [archive.read(name).decode("latin-1") for name in lists]
                unpack(archive, folder, want=r"\.(obj|mtl|png|jpe?g|bmp|gif)$")
        except (zipfile.BadZipFile, OSError, EOFError) as err:
            raise DataError(f"{path}: is not a furniture catalogue ({first_line(err)}); download it again") from err
        for text in texts:
            found += _furniture(text, folder, terms)
    return named(found, terms.prefix)


def _furniture(text: str, folder: Path, terms: Terms) -> list[Entry]:
    """The objects of one list."""
    rows = properties(text)
    licence = next((spdx for said, spdx in LICENCES.items() if re.search(said, rows.get("license", ""), re.I)), None)
    numbers = [key.partition("#")[2] for key in rows if key.startswith("model#")]
    found = []
    for number in numbers:
        model, title = rows[f"model#{number}"].lstrip("/"), rows.get(f"name#{number}", "")
        caption = caption_of_title(title) or caption_of_file(Path(model).stem)
        turn = rows.get(f"modelRotation#{number}")
        rotation = None if turn is None else tuple(float(value) for value in turn.split())
        if not model.lower().endswith(".obj") or not caption or (rotation is not None and len(rotation) != 9):
            continue
        found.append(
            Entry(
                Path(model).stem,
                title,
                rows.get(f"category#{number}", ""),
                caption,
                licence or terms.licence,
                rows.get(f"creator#{number}") or terms.author,
                str(folder / model),
                partial(read_file, folder / model, folder, "y", rotation),
            )
        )
    return found


def properties(text: str) -> dict[str, str]:
    """Read Java properties: `key=value` lines with \\uXXXX escapes. A line that ends with a backslash goes on."""
    rows = {}
    for line in re.sub(r"\\\r?\n[ \t]*", "", text).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", "!")):
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), value)
            rows[key.strip()] = re.sub(r"\\(.)", r"\1", value).strip()
    return rows


def unpack(archive: zipfile.ZipFile, folder: Path, *, want: str) -> None:
    """Unpack the members of a zip whose names match `want`; those that are there in full size are kept."""
    for member in archive.infolist():
        parts = member.filename.split("/")
        if member.is_dir() or ".." in parts or not re.search(want, member.filename, re.IGNORECASE):
            continue
        target = folder.joinpath(*[part for part in parts if part])
        if target.is_file() and target.stat().st_size == member.file_size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with archive.open(member) as source, part.open("wb") as file:
            while block := source.read(1 << 20):
                file.write(block)
        os.replace(part, target)

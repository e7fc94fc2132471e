"""Small packages like those that tools/collect_meshes.py downloads: a furniture library and the data of a game.

Also what its tests ask of the folder that it writes.
"""

from __future__ import annotations

import json
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np

from datasets.meshes.loading import load_mesh
from tests.tiny_meshes import box, flat_png
from tools import collect_meshes

ACTOR = """<?xml version="1.0" encoding="utf-8"?>
<actor version="1">
  <group>
    <variant frequency="1" name="other"><mesh>gone.dae</mesh></variant>
    <variant frequency="9"><mesh>{mesh}</mesh>
      <textures><texture file="{texture}" name="baseTex"/><texture file="n.png" name="normTex"/></textures>
      <props>{props}</props>
    </variant>
  </group>
  <material>{material}</material>
</actor>
"""


def box_obj(size: tuple[float, float, float], mtl: str = "m.mtl") -> str:
    """A box of this size as .obj, with the material `skin`."""
    shape = box()
    lines = [f"mtllib {mtl}"]
    lines += ["v {:g} {:g} {:g}".format(*(np.array(size) * row)) for row in shape["POSITION"].tolist()]
    lines += ["usemtl skin"]
    lines += ["f " + " ".join(str(k + 1) for k in row) for row in shape["indices"].reshape(-1, 3).tolist()]
    return "\n".join(lines) + "\n"


def write_library(
    path: Path, objects: list[dict[str, str]], *, licence: str = "Creative Commons Attribution 3.0"
) -> Path:
    """Write a .sh3f; each object has `file`, `obj`, `mtl`, and what the catalogue says of it."""
    rows = [f"name=Tiny catalog\nlicense={licence} license\n"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, described in enumerate(objects, start=1):
            described = dict(described)
            file = described.pop("file")
            archive.writestr(f"{file}/{file}.obj", described.pop("obj"))
            archive.writestr(f"{file}/m.mtl", described.pop("mtl", "newmtl skin\nKd 1 0 0\n"))
            rows.append(f"model#{number}=/{file}/{file}.obj\n")
            rows += [f"{key}#{number}={value}\n" for key, value in described.items()]
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(rows).encode("latin-1"))
    return path


def build_deb(folder: Path, content: Path, name: str = "tiny") -> Path:
    """Build a Debian package of a folder; needs dpkg-deb."""
    (content / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b.org>\nDescription: tiny\n"
    (content / "DEBIAN" / "control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", content, folder / f"{name}.deb"], check=True, capture_output=True)
    return folder / f"{name}.deb"


def pmd(size: tuple[float, float, float], props: dict[str, tuple[tuple[float, ...], int]] | None = None) -> bytes:
    """A box of this size as PMD version 4; `props` are points with position and bone (255 for none)."""
    shape = box()
    body = struct.pack("<II", len(shape["POSITION"]), 1)
    for point, normal, uv in zip(shape["POSITION"], shape["NORMAL"], shape["TEXCOORD_0"], strict=True):
        body += struct.pack("<8f", *(point * size), *normal, *uv) + bytes([255] * 4) + struct.pack("<4f", 0, 0, 0, 0)
    faces = shape["indices"].reshape(-1, 3)[:, ::-1]  # clockwise, because the engine's axes are left-handed
    body += struct.pack("<I", len(faces)) + faces.astype("<u2").tobytes() + struct.pack("<I", 0)
    body += struct.pack("<I", len(props or {}))
    for name, (place, bone) in (props or {}).items():
        body += struct.pack("<I", len(name)) + name.encode() + struct.pack("<7fB", *place, 0, 0, 0, 1, bone)
    return b"PSMD" + struct.pack("<II", 4, len(body)) + body


def write_game(root: Path, actors: dict[str, dict[str, str]], meshes: dict[str, bytes]) -> Path:
    """Write the data of a game as a folder: actors by path, meshes by name, and a red texture, half transparent."""
    for name, values in actors.items():
        path = root / "art/actors" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            ACTOR.format(**{"mesh": "box.dae", "texture": "red.png", "props": "", "material": "", **values})
        )
    (root / "art/meshes").mkdir(parents=True)
    for name, content in meshes.items():
        (root / "art/meshes" / f"{name}.cached.pmd").write_bytes(content)
    (root / "art/textures/skins").mkdir(parents=True)
    (root / "art/textures/skins/red.png").write_bytes(flat_png((255, 0, 0, 0)))
    (root / "art/materials").mkdir()
    (root / "art/materials/player.xml").write_text('<material><define name="USE_PLAYERCOLOR" value="1"/></material>')
    (root / "art/materials/trans.xml").write_text("<material><alpha_blending/></material>")
    return root


# The tool and its folder


def collect(out, *more) -> int:
    return collect_meshes.main([str(out), "--workers", "1", *map(str, more)])


def listed(out) -> dict[str, dict]:
    rows = [json.loads(line) for line in (out / "objects.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["id"].partition("/")[2]: row for row in rows}


def errors(text: str) -> list[str]:
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def sides(path) -> list[float]:
    return np.ptp(load_mesh(path).points_F33.reshape(-1, 3), axis=0).round(4).tolist()

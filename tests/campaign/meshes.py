"""Bad and odd meshes and files of Gaussians, and the arguments of the tools that read them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh  # before processes are forked, so that they need not import it

from datasets.orbits.layout import read_rgba, view_file
from models.gaussians.files import write_ply, write_splat
from models.gaussians.scene import Gaussians
from tests.campaign import Case
from tests.tiny_meshes import (
    BLUE,
    GREEN,
    RED,
    Glb,
    box,
    box_glb,
    card,
    flat_png,
    glb_bytes,
    obj_text,
    png,
    textured_box,
    write_obj,
)

SMALL = ("--views", "1", "--size", "16", "--samples", "2", "--workers", "1", "--no-nd", "--elevation", "0")


def cases(folder: Path) -> Iterator[Case]:
    """Write the inputs below `folder`."""
    assert trimesh.__version__
    good = box_glb().write(folder / "good.glb")
    yield from _refused(folder / "refused", good)
    yield from _drawn(folder / "drawn")
    yield from _batches(folder / "batches")
    yield from _arguments(folder / "arguments", good)
    yield from _gaussians(folder / "gaussians")


def _refused(folder: Path, good: Path) -> Iterator[Case]:
    """Files that cannot be used: one line with the file's name, from a command that reads two meshes."""
    folder.mkdir()
    for number, (name, content, says) in enumerate([*_broken_gltf(), *_broken_others()]):
        path = folder / f"{number}{name[name.rindex('.') :]}"
        path.write_bytes(content)
        command = ("tools.compare_meshes", str(path), str(good), "--points", "200")
        yield Case(name=name, command=command, code=2, says=f"{number}\\.\\w+: .*{says}")
    missing = ("tools.compare_meshes", str(folder / "none.glb"), str(good))
    yield Case(name="a missing mesh", command=missing, code=2, says="none.glb: no such file")
    (folder / "folder.glb").mkdir()
    yield Case(
        name="a folder with a mesh's name",
        command=("tools.compare_meshes", str(folder / "folder.glb"), str(good)),
        code=2,
        says="folder.glb: no such file",
    )


def changed(change: Callable[[dict[str, Any]], Any], glb: Glb | None = None) -> bytes:
    """A box whose JSON was changed."""
    glb = glb or box_glb()
    change(glb.json)
    return glb.bytes()


def _broken_gltf() -> Iterator[tuple[str, bytes, str]]:
    whole = box_glb().bytes()
    yield "cut in the header.glb", whole[:9], "truncated"
    yield "cut in the JSON.glb", whole[:200], "truncated"
    yield "cut in the buffer.glb", whole[:-40], "truncated"
    yield "without its last chunk.glb", whole[: 20 + struct.unpack("<I", whole[12:16])[0]], "has no content"
    yield "glTF 1.glb", whole[:4] + struct.pack("<I", 1) + whole[8:], "glTF version is 1"
    yield "JSON that is a list.glb", glb_bytes([], b""), "no object"
    yield "JSON that is no UTF-8.glb", glb_bytes(b'{"asset": "\xff"}', b""), "JSON is broken"
    yield "deep JSON.gltf", b"[" * 200_000, "JSON is broken"
    yield "an HTML page.glb", b"<!DOCTYPE html><html></html>", "is no glTF"
    yield "zero bytes.glb", b"", "is empty"
    yield "only zeros.glb", b"\0" * 500, "is no glTF"
    rows: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
        ("version 3", lambda j: j["asset"].update(version="3.0"), "glTF version is 3.0"),
        ("no accessors", lambda j: j.pop("accessors"), "names entry"),
        ("accessors that are numbers", lambda j: j.update(accessors=[1, 2, 3]), "accessors is no list"),
        ("a count below zero", lambda j: j["accessors"][0].update(count=-1), "wrong type or count"),
        ("a count of 10^12", lambda j: j["accessors"][0].update(count=10**12), "wrong type or count"),
        ("a count that is a text", lambda j: j["accessors"][0].update(count="24"), "wrong type or count"),
        ("a count too large", lambda j: j["accessors"][0].update(count=25), "truncated"),
        ("an unknown component type", lambda j: j["accessors"][0].update(componentType=5124), "wrong type or count"),
        ("an unknown accessor type", lambda j: j["accessors"][0].update(type="VEC5"), "wrong type or count"),
        ("an offset below zero", lambda j: j["bufferViews"][0].update(byteOffset=-4), "wrong offset"),
        ("a view beyond the buffer", lambda j: j["bufferViews"][0].update(byteLength=10**6), "truncated"),
        ("a stride of 1", lambda j: j["bufferViews"][0].update(byteStride=1), "wrong offset or stride"),
        ("a stride too large", lambda j: j["bufferViews"][0].update(byteStride=200), "truncated"),
        ("points of two numbers", lambda j: j["accessors"][0].update(type="VEC2"), "does not fit"),
        ("normals of another number", lambda j: j["accessors"][1].update(count=3), "does not fit"),
        ("indices that are points", lambda j: prim(j).update(indices=0), "whole numbers"),
        ("an index of a missing accessor", lambda j: prim(j).update(indices=77), "names entry 77 of accessors"),
        ("a mode of 9", lambda j: prim(j).update(mode=9), "mode 9"),
        ("only lines", lambda j: prim(j).update(mode=1), "no triangles"),
        ("no primitive", lambda j: j["meshes"][0].update(primitives=[]), "no triangles"),
        ("a missing material", lambda j: prim(j).update(material=5), "entry 5 of materials"),
        ("a missing mesh", lambda j: j["nodes"][0].update(mesh=5), "entry 5 of meshes"),
        ("a missing scene", lambda j: j.update(scene=3), "entry 3 of scenes"),
        ("a scene without nodes", lambda j: j["scenes"][0].update(nodes=[]), "no triangles"),
        ("a node of its own", lambda j: j["nodes"][0].update(children=[0]), "own ancestor"),
        ("two parents", lambda j: two_parents(j), "two parents"),
        ("a matrix of 15", lambda j: j["nodes"][0].update(matrix=[1] * 15), "matrix is not 16 finite"),
        ("a scale that is a text", lambda j: j["nodes"][0].update(scale="big"), "scale is not 3 finite"),
        ("a scale of infinity", lambda j: j["nodes"][0].update(scale=[1e999, 1, 1]), "scale is not 3 finite"),
        ("everything hidden", lambda j: j["nodes"][0].update(scale=[0, 0, 0]), "no triangles"),
        ("everything transparent", lambda j: clear(j), "everything in it is transparent"),
        ("a colour of three", lambda j: color(j, [1, 0, 0]), "baseColorFactor is not 4 finite"),
        ("a colour that is NaN", lambda j: color(j, [float("nan")] * 4), "baseColorFactor is not 4 finite"),
        ("a skin that is missing", lambda j: j["nodes"][0].update(skin=2), "entry 2 of skins"),
        ("morph targets of another size", lambda j: other_target(j), "another number of vertices"),
        ("weights that are texts", lambda j: j["meshes"][0].update(weights=["a"]), "weights of morph targets"),
        ("sparse beyond its accessor", lambda j: sparse(j, 3), "index out of range"),
        ("sparse with a wrong count", lambda j: sparse(j, 10**6), "wrong count"),
        ("Draco", lambda j: needs(j, "KHR_draco_mesh_compression"), "Draco"),
        ("meshopt", lambda j: needs(j, "EXT_meshopt_compression"), "meshopt; export it without compression"),
        ("KTX2", lambda j: needs(j, "KHR_texture_basisu"), "PNG or JPEG"),
        ("an unknown extension", lambda j: needs(j, "ACME_x"), "needs the extension ACME_x"),
    ]
    for name, change, says in rows:
        yield f"{name}.glb", changed(change), says
    nan = box()
    nan["POSITION"][3] = np.nan
    glb = Glb()
    glb.node(glb.mesh(nan))
    yield "points that are NaN.glb", glb.bytes(), "not finite"
    flat = box()
    flat["POSITION"][:] = 1
    glb = Glb()
    glb.node(glb.mesh(flat))
    yield "all points in one place.glb", glb.bytes(), "no area"
    outside = box_glb()
    outside.primitive()["indices"] = outside.accessor(np.array([0, 1, 24], np.uint16))
    yield "an index out of range.glb", outside.bytes(), "vertex 24, but there are 24"
    buffers = box_glb()
    buffers.json["buffers"] = [{"byteLength": 10, "uri": "data:;base64,@@@"}]
    yield "broken base64.gltf", json.dumps(buffers.json).encode(), "broken base64"


def prim(document: dict[str, Any]) -> dict[str, Any]:
    return document["meshes"][0]["primitives"][0]


def two_parents(document: dict[str, Any]) -> None:
    document["nodes"] += [{"children": [0]}, {"children": [0]}]
    document["scenes"][0]["nodes"] = [1, 2]


def clear(document: dict[str, Any]) -> None:
    document["materials"][0]["alphaMode"] = "BLEND"
    color(document, [1, 0, 0, 0])


def color(document: dict[str, Any], factor: list[float]) -> None:
    document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = factor


def other_target(document: dict[str, Any]) -> None:
    prim(document)["targets"] = [{"POSITION": prim(document)["attributes"]["TEXCOORD_0"]}]
    document["meshes"][0]["weights"] = [1]


def sparse(document: dict[str, Any], count: int) -> None:
    """Indices from the bytes of floats, which lie far out of range."""
    indices = {"bufferView": 0, "componentType": 5125}
    document["accessors"][0]["sparse"] = {"count": count, "indices": indices, "values": {"bufferView": 0}}


def needs(document: dict[str, Any], name: str) -> None:
    document["extensionsRequired"] = [name]
    if "draco" in name:
        prim(document)["extensions"] = {name: {"bufferView": 0, "attributes": {"POSITION": 0}}}


def _broken_others() -> Iterator[tuple[str, bytes, str]]:
    triangle = b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"
    yield "only points.obj", triangle, "no triangles"
    yield "no text.obj", b"\0\1\2\3" * 50, "UTF-8"
    yield "UTF-16.obj", (triangle + b"f 1 2 3\n").decode().encode("utf-16"), "UTF-8"
    yield "vertex 0.obj", triangle + b"f 0 1 2\n", "counts from 1"
    yield "vertex 9.obj", triangle + b"f 1 2 9\n", "cannot be read"
    yield "vertex -9.obj", triangle + b"f -9 2 3\n", "names vertex -9"
    yield "words for numbers.obj", b"v a b c\nf 1 1 1\n", "cannot be read|no triangles"
    yield "points that are NaN.obj", b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"
    yield "faces of no area.obj", b"v 0 0 0\nv 1 0 0\nf 1 2 2\n", "no area"
    yield "zero bytes.ply", b"", "is empty"
    yield "no end of the header.ply", b"ply\nformat ascii 1.0\n", "header has no end"
    yield "no .ply at all.ply", b"solid x\n", "is no .ply"
    head = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    faces = b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    yield "only points.ply", head + b"end_header\n0 0 0\n1 0 0\n0 1 0\n", "no triangles"
    yield "cut in the points.ply", head + faces + b"0 0 0\n1 0", "cannot be read|no triangles"
    yield "an index out of range.ply", head + faces + b"0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", "cannot be read"
    binary = head.replace(b"ascii", b"binary_little_endian") + faces
    yield "cut in binary points.ply", binary + b"\0" * 20, "cannot be read"
    yield (
        "Gaussians.ply",
        head + b"property float f_dc_0\nproperty float opacity\nproperty float rot_0\nend_header\n",
        ("holds Gaussians, not a mesh"),
    )
    yield "empty.stl", b"solid x\nendsolid x\n", "cannot be read|no triangles"
    yield "cut.stl", b"\0" * 80 + struct.pack("<I", 10) + b"\0" * 60, "cannot be read|no triangles"
    yield "10^9 triangles.stl", b"\0" * 80 + struct.pack("<I", 10**9) + b"\0" * 100, "cannot be read|no triangles"
    yield "no header.off", b"3 1 0\n0 0 0\n", "cannot be read"
    yield "an unknown format.xyz9", b"hello", "cannot be read"
    yield "a pointer of Git LFS.glb", b"version https://git-lfs.github.com/spec/v1\nsize 1\n", "git lfs pull"


def _drawn(folder: Path) -> Iterator[Case]:
    """Odd files that are drawn: the colour in the middle, and the words about what is lost."""
    folder.mkdir()
    no_picture = textured_box(b"GIF89a")
    huge = textured_box(_png_header(60_000, 60_000))
    no_coordinates = textured_box(flat_png(RED), use={"texCoord": 3})
    cut = flat_png(GREEN, 64)[:-30]
    rows: list[tuple[str, Glb, str, str]] = [
        ("a texture that is no picture", no_picture, "white", "texture number 0 is broken"),
        ("a texture of 3.6 gigapixels", huge, "white", "texture number 0"),
        ("a texture that is cut", textured_box(cut), "white", "texture number 0 is broken"),
        ("a texture without coordinates", no_coordinates, "white", "no coordinates"),
        ("a 16-bit texture", textured_box(png(np.full((4, 4), 65535, np.uint16))), "white", "1 rendered, "),
        ("a texture with transparency that is opaque", textured_box(flat_png((*RED, 0))), "red", "1 rendered, "),
        ("a clamped texture", textured_box(flat_png(BLUE), texture={"sampler": 0}), "blue", "1 rendered, "),
        ("a blended box", box_glb((0, 1, 0, 0.5), alphaMode="BLEND"), "green", "1 rendered, "),
        ("an unknown alphaMode", box_glb((0, 1, 0), alphaMode="FUZZY"), "green", "alphaMode FUZZY is unknown"),
        ("glass", box_glb((0, 0, 1), extensions={"KHR_materials_transmission": {}}), "blue", "drawn opaque"),
        ("light of its own", box_glb((0, 0, 0), emissiveFactor=[0, 1, 0]), "green", "1 rendered, "),
        ("no light", box_glb((1, 0, 0), extensions={"KHR_materials_unlit": {}}), "red", "1 rendered, "),
        ("a cutoff of 0", box_glb((1, 0, 0, 0), alphaMode="MASK", alphaCutoff=0), "red", "1 rendered, "),
    ]
    rows[6][1].json["samplers"] = [{"wrapS": 33071, "wrapT": 1}]
    mirrored, tiny, far = box_glb((1, 0, 0)), box_glb((1, 0, 0)), box_glb((1, 0, 0))
    mirrored.json["nodes"][0]["scale"] = [-1, 1, 1]
    tiny.json["nodes"][0]["scale"] = [1e-7] * 3
    far.json["nodes"][0]["translation"] = [1e5, 0, 0]
    strip, points, lists = Glb(), box_glb((0, 1, 0)), box_glb((0, 1, 0))
    corners = card() | {"indices": np.array([0, 1, 3, 2], np.uint16)}
    strip.node(strip.mesh(corners, strip.material((1, 0, 0)), mode=5))
    points.node(points.mesh({"POSITION": box()["POSITION"] * 9}, mode=0))
    lists.primitive()["indices"] = lists.accessor(np.append(box()["indices"], [0, 1]).astype(np.uint16))
    unused = box_glb((0, 1, 0))
    unused.json |= {"extensionsUsed": ["ACME_x"], "animations": [], "extras": {"a": 1}}
    no_scene, visible = box_glb((0, 1, 0)), box_glb((0, 1, 0))
    del no_scene.json["scenes"], no_scene.json["scene"]
    visible.node(0, translation=[30, 0, 0], extensions={"KHR_node_visibility": {"visible": False}})
    rows += [
        ("a mirrored node", mirrored, "red", "1 rendered, "),
        ("a box of 10^-7", tiny, "red", "1 rendered, "),
        ("a box at 10^5", far, "red", "1 rendered, "),
        ("a strip", strip, "red", "1 rendered, "),
        ("points beside triangles", points, "green", "points are ignored"),
        ("two indices too many", lists, "green", "1 rendered, "),
        ("an extension that is not needed", unused, "green", "extension ACME_x is ignored"),
        ("no scene", no_scene, "green", "1 rendered, "),
        ("an invisible node", visible, "green", "1 rendered, "),
    ]
    for number, (name, glb, shown, says) in enumerate(rows):
        yield _shown(name, glb.write(folder / f"{number}.glb"), folder / "out", shown, says)
    lines = {
        "backslashes": (r"map_Kd tex\skin.png", "green", "1 rendered, "),
        "options": ("map_Kd -s 1 1 1 -bm 1 tex/skin.png", "green", "1 rendered, "),
        "a path of another machine": (r"map_Kd D:\scene\tex\skin.png", "green", "1 rendered, "),
        "another case": ("map_Kd TEX/SKIN.png", "green", "1 rendered, "),
        "a texture that is gone": ("map_Kd gone.png", "white", "texture gone.png is not found"),
        "a texture of the system": ("map_Kd ../../../../../../etc/hostname", "white", "texture .*hostname"),
        "glow": ("Kd 0 0 0\nKe 0 0 1", "blue", "1 rendered, "),
        "half transparent": ("Kd 1 0 0\nd 0.5", "red", "1 rendered, "),
        "words for numbers": ("Kd red green blue", "white", "1 rendered, "),
    }
    for number, (name, (line, shown, says)) in enumerate(lines.items()):
        place = folder / f"obj{number}"
        path = write_obj(place / f"o{number}.obj", line, texture=place / "tex" / "skin.png")
        yield _shown(f"{name} in .mtl", path, folder / "out", shown, says)
    (folder / "gone.obj").write_text(obj_text("gone.mtl"))
    yield _shown("a material file that is gone", folder / "gone.obj", folder / "out", "white", "gone.mtl is not found")
    (folder / "lied.obj").write_bytes(box_glb((0, 0, 1)).bytes())
    yield _shown("a .glb that is called .obj", folder / "lied.obj", folder / "out", "blue", "1 rendered, ")


def _png_header(width: int, height: int) -> bytes:
    """The start of a PNG that says it has this size."""
    content = bytearray(flat_png(RED))
    content[16:24] = struct.pack(">II", width, height)
    return bytes(content)


def _shown(name: str, path: Path, out: Path, color: str, says: str) -> Case:
    """Render one mesh, and check the colour in the middle of its view."""

    def check() -> None:
        red, green, blue, alpha = read_rgba(view_file(out / "meshes" / path.stem, 0))[8, 8].tolist()
        assert alpha > 100, f"alpha {alpha}"
        seen = {"red": red > 60, "green": green > 60, "blue": blue > 60}
        expected = {key: color in (key, "white") for key in seen}
        assert seen == expected, f"{(red, green, blue)} is not {color}"

    command = ("tools.render_orbit", str(path), "--out", str(out), *SMALL)
    return Case(name=name, command=command, code=0, says=says, check=check)


def _batches(folder: Path) -> Iterator[Case]:
    """Lists in which some meshes are bad: the others are rendered, and the summary comes."""
    folder.mkdir()
    for number in range(3):
        box_glb().write(folder / f"good{number}.glb")
    (folder / "bad.glb").write_bytes(b"junk")
    (folder / "bad.obj").write_text("v 0 0 0\n")
    far = box_glb()
    far.node(0, translation=[1e5, 0, 0])
    far.write(folder / "tiny.glb")
    command = ("tools.render_orbit", str(folder), "--out", str(folder / "out"), *SMALL)
    yield Case(name="two names that are one", command=command, code=2, says="would be written to one folder")
    (folder / "bad.obj").rename(folder / "worse.obj")
    yield Case(name="three bad of six", command=command, code=1, says="3 rendered, 0 already there, 3 failed")
    yield Case(name="once more", command=command, code=1, says="0 rendered, 3 already there, 3 failed")
    yield Case(name="seen by nobody", command=command, code=1, says="tiny.glb: nothing of it is seen in view 0")
    packed = (*command[:3], str(folder / "packed"), *SMALL, "--packed")
    yield Case(name="three bad of six, packed", command=packed, code=1, says="3 rendered, 0 already there, 3 failed")
    yield Case(name="packed once more", command=packed, code=1, says="0 rendered, 3 already there, 3 failed")


def _arguments(folder: Path, good: Path) -> Iterator[Case]:
    """Arguments of the mesh tools that are refused."""
    folder.mkdir()
    (folder / "empty").mkdir()
    (folder / "file").touch()
    (folder / "list.jsonl").write_text('{"file": "good.glb"}\n{"file": 3}\n')
    (folder / "deep.jsonl").write_text("[" * 100_000)
    (folder / "latin.jsonl").write_bytes(b'{"file": "caf\xe9.glb"}\n')
    render = ("tools.render_orbit", str(good), "--out", str(folder / "out"), *SMALL)
    rows = {
        "no view": (*render, "--views", "0"), "a size of 4": (*render, "--size", "4"),
        "0 samples": (*render, "--samples", "0"), "0 workers": (*render, "--workers", "0"),
        "a distance of NaN": (*render, "--distance", "nan"), "a fov of 180": (*render, "--fov", "180"),
        "an elevation of 90": (*render, "--elevation", "90"), "an azimuth of NaN": (*render, "--azimuth", "nan"),
        "three elevations": (*render, "--elevation", "1", "2", "3"), "a seed of -1": (*render, "--seed", "-1"),
        "a shard of 0": (*render, "--shard", "0"), "a dictionary above": (*render, "--dictionary", "../x"),
        "a dictionary without name": (*render, "--dictionary", ""),
        "a list that is missing": (*render, "--list", str(folder / "none.jsonl")),
        "a list with a number": (*render, "--list", str(folder / "list.jsonl")),
        "a deep list": (*render, "--list", str(folder / "deep.jsonl")),
        "a list in Latin-1": (*render, "--list", str(folder / "latin.jsonl")),
        "a list that is a folder": (*render, "--list", str(folder / "empty")),
        "where without list": (*render, "--where", "a=b"),
        "an out that is a file": (*render, "--out", str(folder / "file")),
        "a picture of 10^15 bytes": (*render, "--views", "100000", "--size", "8192"),
        "an empty folder": ("tools.render_orbit", str(folder / "empty"), "--out", str(folder / "out")),
        "0 points": ("tools.compare_meshes", str(good), str(good), "--points", "0"),
        "10^12 points": ("tools.compare_meshes", str(good), str(good), "--points", str(10**12)),
        "a threshold of NaN": ("tools.compare_meshes", str(good), str(good), "--thresholds", "0.1", "nan"),
        "a seed below 0": ("tools.compare_meshes", str(good), str(good), "--seed", "-1"),
        "a --json that is a folder": ("tools.compare_meshes", str(good), str(good), "--json", str(folder)),
        "0 objects": ("tools.make_zoo", str(folder / "zoo"), "--num", "0"),
        "10^15 objects": ("tools.make_zoo", str(folder / "zoo"), "--num", str(10**15)),
        "an unknown kind": ("tools.make_zoo", str(folder / "zoo"), "--num", "1", "--kinds", "unicorn"),
    }  # fmt: skip
    words = {"10^12 points": "--points", "10^15 objects": "--num", "a picture of 10^15 bytes": "GB for one object"}
    for name, command in rows.items():
        yield Case(name=name, command=command, code=2, says=words.get(name, "error: .*(--|no mesh|out)"))


def _gaussians(folder: Path) -> Iterator[Case]:
    """Files of Gaussians."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    scene = Gaussians(
        means_BN3=torch.rand(1, 30, 3, generator=generator) - 0.5,
        opacities_BN1=torch.full((1, 30, 1), 0.9),
        scales_BN3=torch.full((1, 30, 3), 0.05),
        quats_BN4=torch.tensor([1.0, 0, 0, 0]).expand(1, 30, 4),
        colors_BN3=torch.rand(1, 30, 3, generator=generator),
    )
    write_ply(folder / "good.ply", scene)
    write_splat(folder / "good.splat", scene)
    whole = (folder / "good.ply").read_bytes()
    start = whole.index(b"end_header\n") + 11
    splat = np.frombuffer((folder / "good.splat").read_bytes(), np.uint8).reshape(-1, 32).copy()
    far, still, nothing = splat.copy(), splat.copy(), splat.copy()
    far[2, :4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    still[:, 12:24] = 0
    nothing[:, 27] = 0
    rows = {
        "cut.ply": (whole[:-10], "truncated"),
        "cut in the header.ply": (whole[:100], "truncated"),
        "zero bytes.ply": (b"", "not a .ply"),
        "junk.ply": (b"\xff" * 99, "not a .ply"),
        "a count of 10^18.ply": (whole.replace(b"vertex 30", b"vertex " + b"9" * 18), "truncated"),
        "a count below 0.ply": (whole.replace(b"vertex 30", b"vertex -30"), "no number of Gaussians"),
        "a count of none.ply": (whole.replace(b"vertex 30", b"vertex 0"), "no Gaussians"),
        "ascii.ply": (whole.replace(b"binary_little_endian", b"ascii"), "truncated"),
        "a mesh.ply": (b"ply\nformat ascii 1.0\nelement vertex 0\nelement face 0\nend_header\n", "mesh or a point"),
        "an unknown type.ply": (whole.replace(b"float x", b"half x"), "is unknown"),
        "a name twice.ply": (whole.replace(b"float nx", b"float x"), "twice"),
        "without opacity.ply": (whole.replace(b"float opacity", b"float opaque"), "opacity is missing"),
        "NaN.ply": (whole[:start] + np.float32(np.nan).tobytes() + whole[start + 4 :], "not finite"),
        "far away.ply": (whole[:start] + np.float32(1e30).tobytes() + whole[start + 4 :], "out of range"),
        "odd bytes.splat": ((folder / "good.splat").read_bytes()[:-3], "multiple of the 32 bytes"),
        "zero bytes.splat": (b"", "multiple of the 32 bytes"),
        "NaN.splat": (far.tobytes(), "not finite"),
        "scales of 0.splat": (still.tobytes(), "scales must be positive"),
        "all transparent.splat": (nothing.tobytes(), "transparent"),
        "a text.txt": (b"hello", "not a .ply"),
    }
    for name, (content, says) in rows.items():
        path = folder / name
        path.write_bytes(content)
        command = (
            "tools.export_gaussians",
            str(path),
            str(folder / "good.splat"),
            "--out",
            str(folder / "out"),
            "--splat",
        )
        yield Case(
            name=name,
            command=command,
            code=1,
            says=f"{says}(.|\n)*1 exported, 1 failed|1 exported, 1 failed(.|\n)*{says}",
        )
    (folder / "renamed.splat").write_bytes(whole)
    (folder / "__SPLATS__ __TITLE__.ply").write_bytes(whole)
    for name in ("renamed.splat", "__SPLATS__ __TITLE__.ply"):
        out = folder / "out" / Path(name).stem

        def check(out: Path = out, name: str = name) -> None:
            text = (out / "viewer.html").read_text()
            assert text.count('const SPLATS = "') == 1
            assert len(text.split('const SPLATS = "')[1].split('"')[0]) == 4 * 30 * 32 / 3
            assert f"<title>{Path(name).stem}</title>" in text

        command = ("tools.export_gaussians", str(folder / name), "--out", str(folder / "out"), "--html")
        yield Case(name=f"{name} as a page", command=command, code=0, check=check)
    line = ("tools.export_gaussians", str(folder / "good.ply"), "--out", str(folder / "out"), "--splat")
    for option, value in (("--fov", "0"), ("--distance", "nan"), ("--elevation", "90"), ("--device", "tpu")):
        yield Case(name=f"{option} {value}", command=(*line, option, value), code=2, says=option.strip("-"))
    twice = (*line[:2], str(folder / "good.ply"), *line[2:])
    yield Case(name="one file twice", command=twice, code=2, says="name each file once")
    missing = ("tools.export_gaussians", str(folder / "none.ply"), "--out", str(folder / "out"), "--splat")
    yield Case(name="Gaussians that are missing", command=missing, code=1, says="none.ply: no such file")

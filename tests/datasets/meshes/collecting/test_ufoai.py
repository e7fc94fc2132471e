"""Models of UFO: Alien Invasion become objects, if they and their skins are free."""

import struct
import zipfile

import numpy as np
import pytest

from datasets.meshes.collecting.ufoai import read_md2
from datasets.meshes.loading import load_mesh
from tests.tiny_meshes import RED, box, flat_png
from tests.tiny_sources import collect, listed, sides
from utils.errors import DataError

pytest.importorskip("trimesh")

PAGE = """Files: *
Copyright: the team
License: GPL-2

Files:
 base/models/objects/city/bench.md2
 base/models/objects/city/skin.png
 base/models/objects/city/lamp.md2
Copyright: 2010 Jane Doe
License: CC-BY-SA-3.0
"""


def md2(size=(1.0, 1.0, 1.0), *, skin: str = ".skin") -> bytes:
    """A box of this size as MD2, z up, with the coordinates of its first face everywhere."""
    shape = box()
    corners = shape["indices"].reshape(-1, 3)[:, ::-1].astype("<u2")  # clockwise
    points = shape["POSITION"] * size
    low, step = points.min(axis=0), np.ptp(points, axis=0) / 255
    packed = np.round((points - low) / step).astype("u1")
    frame = struct.pack("<6f16s", *step, *low, b"stand") + b"".join(bytes(row) + b"\0" for row in packed)
    uvs = np.round(shape["TEXCOORD_0"] * 64).astype("<i2").tobytes()
    faces = np.stack([corners, corners], axis=1).tobytes()
    at = [68, 68 + 64, 68 + 64 + len(uvs), 68 + 64 + len(uvs) + len(faces)]
    counts = [1, len(points), len(points), len(corners), 0, 1]
    end = at[3] + len(frame)
    head = struct.pack("<4s16i", b"IDP2", 8, 64, 64, len(frame), *counts, *at, end, end)
    return head + struct.pack("<64s", skin.encode()) + uvs + faces + frame


def write_game(root, files: dict[str, bytes]):
    """Write the package of the game with these files in its archive."""
    (root / "base").mkdir(parents=True)
    with zipfile.ZipFile(root / "base/0models.pk3", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"models/objects/city/{name}", content)
    page = root / "doc/ufoai-data/copyright"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE)
    return root


def test_a_box_is_read():
    model = read_md2(md2((4, 2, 1)))
    shape = box()
    step = np.array((4, 2, 1)) / 255  # of a frame
    np.testing.assert_allclose(model.points_N3, shape["POSITION"] * (4, 2, 1), atol=step.max())
    np.testing.assert_array_equal(model.faces_F3, shape["indices"].reshape(-1, 3))
    np.testing.assert_allclose(model.uvs_F32, shape["TEXCOORD_0"][model.faces_F3], atol=1 / 64)
    assert model.skin == ".skin"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IDP3" + bytes(80), "is not an MD2 file"),
        (b"IDP2\x0f" + bytes(80), "version 15"),
        (md2()[:-9], "truncated"),
    ],
)
def test_a_broken_file_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        read_md2(content)


def test_only_models_whose_skin_is_free_too_are_taken(tmp_path, capsys):
    files = {
        "bench.md2": md2((4, 2, 1)),
        "skin.png": flat_png(RED),
        "lamp.md2": md2(skin=".other"),
        "other.png": flat_png(RED),
        "statue.md2": md2(),
    }
    game = write_game(tmp_path / "game", files)
    out = tmp_path / "out"
    assert collect(out, "--sources", "ufoai", "--from", f"ufoai={game}") == 0, capsys.readouterr()
    [(name, row)] = listed(out).items()
    assert (name, row["caption"]) == ("ufo_objects_city_bench", "a bench")
    assert (row["licence"], row["author"]) == ("CC-BY-SA-3.0", "Jane Doe")
    path = out / row["file"]
    np.testing.assert_allclose(sides(path), [1.0, 0.5, 0.25], atol=1e-3)
    mesh = load_mesh(path)
    assert mesh.textures[0].pixels_HWC[0, 0].tolist() == list(RED)
    cross_F3 = np.cross(mesh.points_F33[:, 1] - mesh.points_F33[:, 0], mesh.points_F33[:, 2] - mesh.points_F33[:, 0])
    outwards_F = np.einsum("fc,fc->f", cross_F3, mesh.points_F33.mean(axis=1))
    assert (outwards_F > 0).all()

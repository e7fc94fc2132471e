"""Models of MegaGlest become objects: units as they stand, the things of its landscapes, and their colours."""

import struct

import numpy as np
import pytest

from datasets.meshes.collecting.megaglest import read_g3d
from datasets.meshes.collecting.pyrogenesis import PLAYERS
from datasets.meshes.loading import load_mesh
from tests.tiny_meshes import RED, box, flat_png
from tests.tiny_sources import collect, errors, listed, sides
from utils.errors import DataError

pytest.importorskip("trimesh")


def g3d(size=(1.0, 1.0, 1.0), *, texture: str = "skin.png", custom_color: bool = False, frames: int = 2) -> bytes:
    """A box of this size as G3D version 4; frames after the first are ten times as large."""
    shape = box()
    count = len(shape["POSITION"])
    body = struct.pack("<3sBHB", b"G3D", 4, 1, 0)
    body += struct.pack("<64sIII", b"box", frames, count, shape["indices"].size)
    body += struct.pack("<3f3fff", 0.0, 0.0, 1.0, 0, 0, 0, 0, 1.0) + struct.pack(
        "<II", int(custom_color), bool(texture)
    )
    body += struct.pack("<64s", texture.encode()) if texture else b""
    points = (shape["POSITION"] * size).astype("<f4")
    for frame in range(frames):
        body += (points * 10**frame).astype("<f4").tobytes()
    body += shape["NORMAL"].astype("<f4").tobytes() * frames
    body += shape["TEXCOORD_0"].astype("<f4").tobytes() if texture else b""
    return body + shape["indices"].astype("<u4").tobytes()


def write_game(root, files: dict[str, bytes]):
    """Write the data of the game: files by path, and beside each a red texture, transparent."""
    (root / "tilesets").mkdir(parents=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        (path.parent / "skin.png").write_bytes(flat_png((*RED, 0)))
    return root


def test_a_box_is_read_in_its_first_frame():
    [part] = read_g3d(g3d((4, 2, 1)))
    np.testing.assert_allclose(np.ptp(part.points_N3, axis=0), (4, 2, 1))
    assert part.faces_F3.shape == (12, 3)
    assert (part.texture, part.shows_player, part.opacity) == ("skin.png", False, 1.0)


def test_a_mesh_without_texture_has_its_colour_and_no_coordinates():
    [part] = read_g3d(g3d(texture=""))
    assert part.uvs_N2 is None
    assert part.color == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a--", "is not a G3D file"),
        (b"G3D\x03" + bytes(8), "version 3"),
        (g3d()[:-8], "truncated"),
        (g3d()[:100], "truncated"),
    ],
)
def test_a_broken_file_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        read_g3d(content)


def test_a_face_must_have_its_vertices():
    content = bytearray(g3d())
    content[-4:] = struct.pack("<I", 999)
    with pytest.raises(DataError, match="vertex that does not exist"):
        read_g3d(bytes(content))


def test_units_stand_and_show_their_player(tmp_path, capsys):
    unit = "techs/pack/factions/romans/units/catapult/models"
    files = {
        f"{unit}/catapult_walking.g3d": g3d((9, 1, 1), custom_color=True),
        f"{unit}/catapult_standing.g3d": g3d((4, 2, 1), custom_color=True),
        "tilesets/forest/models/tanne_small.g3d": g3d((1, 3, 1), texture=""),
        "tilesets/forest/models/none.g3d": g3d(),
    }
    game = write_game(tmp_path / "game", files)
    assert collect(tmp_path / "out", "--sources", "megaglest", "--from", f"megaglest={game}") == 0, capsys.readouterr()
    rows = listed(tmp_path / "out")
    assert {name: row["caption"] for name, row in rows.items()} == {
        "mg_romans_catapult": "a Roman catapult", "mg_forest_tanne_small": "a small fir tree",
    }  # fmt: skip
    assert {row["licence"] for row in rows.values()} == {"CC-BY-SA-3.0"}
    path = tmp_path / "out" / rows["mg_romans_catapult"]["file"]
    assert sides(path) == [0.25, 1.0, 0.5]  # y up became z up, and the longest side is 1
    assert tuple(load_mesh(path).textures[0].pixels_HWC[0, 0]) in PLAYERS
    tree = load_mesh(tmp_path / "out" / rows["mg_forest_tanne_small"]["file"])
    np.testing.assert_allclose(tree.colors_F33.reshape(-1, 3).mean(axis=0), (0, 0, 1), atol=1e-6)


def test_things_of_a_landscape_are_not_painted_but_cut_out(tmp_path, capsys):
    files = {"tilesets/forest/models/palm2.g3d": g3d(custom_color=True)}
    game = write_game(tmp_path / "game", files)
    collect(tmp_path / "out", "--sources", "megaglest", "--from", f"megaglest={game}")
    assert listed(tmp_path / "out") == {}  # all of it is transparent
    assert errors(capsys.readouterr().err) == []


def test_another_folder_is_refused(tmp_path, capsys):
    (tmp_path / "game").mkdir()
    assert collect(tmp_path / "out", "--sources", "megaglest", "--from", f"megaglest={tmp_path / 'game'}") == 1
    assert "contains no folder tilesets" in capsys.readouterr().err

"""Models of SuperTuxKart become objects, if their meshes and textures are free."""

import struct

import numpy as np
import pytest

from datasets.meshes.collecting.supertuxkart import Placed, read_spm
from datasets.meshes.loading import load_mesh
from tests.tiny_meshes import RED, box, flat_png
from tests.tiny_sources import collect, listed, sides
from utils.errors import DataError

pytest.importorskip("trimesh")

PAGE = """Files: *
Copyright: the team
License: GPL-3+

Files: {free}
Copyright: 2012 Jane Doe
License: CC-BY-SA-3.0
"""
NODE = """<scene><lod><group name="g">
<static-object lod_distance="90" lod_group="g" model="fine.spm" xyz="0 0 0" hpr="0 0 0" scale="1 1 1"/>
<static-object lod_distance="200" lod_group="g" model="rough.spm" xyz="0 0 0" hpr="0 0 0" scale="1 1 1"/>
</group></lod>
<object model="fine.spm" xyz="0 {up} 0" hpr="{hpr}" scale="1 1 1"/>
<object model="around_physics.spm" xyz="0 0 0" hpr="0 0 0" scale="1 1 1" interaction="physicsonly"/>
</scene>"""


def spm(size=(1.0, 1.0, 1.0), *, texture: str = "skin.png", animated: bool = False, colors: bool = False) -> bytes:
    """A box of this size as SPM, in the engine's left-handed axes."""
    shape = box()
    points = shape["POSITION"] * size
    body = b"SP" + bytes([1 << 3 | (1 if animated else 2), 1 | 2 * colors | 4]) + struct.pack("<6f", *[0] * 6)
    body += struct.pack("<H", 1) + bytes([len(texture)]) + texture.encode() + b"\0"
    body += struct.pack("<HHIIH", 1, 1, len(points), shape["indices"].size, 0)
    for point, normal, uv in zip(points, shape["NORMAL"], shape["TEXCOORD_0"], strict=True):
        packed = sum((round(v * 511) & 1023) << 10 * k for k, v in enumerate(normal.tolist()))
        body += struct.pack("<3fI", *point, packed)
        body += (b"\x00" + bytes(RED)) if colors else b""
        body += struct.pack("<2eI", *uv, 0) if texture else b""
        body += bytes(16) if animated else b""
    return body + shape["indices"].reshape(-1, 3)[:, ::-1].astype("u1").tobytes()


def write_game(root, node: str, *, free: str = "data/*"):
    """Write the package of the game with one object of the library."""
    folder = root / "games/data/library/stklib_fitchBarrel_a"
    folder.mkdir(parents=True)
    (folder / "node.xml").write_text(node)
    (folder / "skin.png").write_bytes(flat_png(RED))
    for name, size in {"fine": (1, 1, 1), "rough": (9, 1, 1), "around_physics": (30, 30, 30)}.items():
        (folder / f"{name}.spm").write_bytes(spm(size))
    page = root / "doc/supertuxkart-data/copyright"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE.format(free=free))
    return root


@pytest.mark.parametrize("animated", [False, True])
@pytest.mark.parametrize("colors", [False, True])
def test_a_box_is_read(animated, colors):
    [part] = read_spm(spm((4, 2, 1), animated=animated, colors=colors))
    shape = box()
    np.testing.assert_allclose(part.points_N3, shape["POSITION"] * (4, 2, 1))
    np.testing.assert_allclose(part.normals_N3, shape["NORMAL"], atol=2e-3)  # a step of 10 bits
    np.testing.assert_allclose(part.uvs_N2, shape["TEXCOORD_0"], atol=1e-3)
    assert part.texture == "skin.png"
    assert part.faces_F3.shape == (12, 3)
    assert (part.colors_N3 is not None) is colors


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"XX" + bytes(40), "is not an SPM file"), (b"SP\x1a" + bytes(40), "version 3"), (spm()[:-5], "truncated")],
)
def test_a_broken_file_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        read_spm(content)


def test_a_face_must_have_its_vertices():
    content = bytearray(spm())
    content[-1] = 200
    with pytest.raises(DataError, match="vertex that does not exist"):
        read_spm(bytes(content))


def test_an_object_is_put_together_at_its_finest(tmp_path, capsys):
    game = write_game(tmp_path / "game", NODE.format(up=3, hpr="0 0 0"))
    out = tmp_path / "out"
    assert collect(out, "--sources", "supertuxkart", "--from", f"supertuxkart={game}") == 0, capsys.readouterr()
    [(name, row)] = listed(out).items()
    assert (name, row["caption"]) == ("stk_library_stklib_fitchbarrel_a", "a crash barrel")
    assert (row["licence"], row["author"], row["faces"]) == ("CC-BY-SA-3.0", "Jane Doe", 24)
    assert sides(out / row["file"]) == [0.25, 0.25, 1.0]  # two boxes of 1, the upper one 3 higher
    mesh = load_mesh(out / row["file"])
    assert mesh.textures[0].pixels_HWC[0, 0].tolist() == list(RED)
    cross_F3 = np.cross(mesh.points_F33[:, 1] - mesh.points_F33[:, 0], mesh.points_F33[:, 2] - mesh.points_F33[:, 0])
    assert (np.einsum("fc,fkc->fk", cross_F3, mesh.normals_F33) > 0).all()


def test_a_texture_that_is_not_free_leaves_its_object_out(tmp_path, capsys):
    game = write_game(tmp_path / "game", NODE.format(up=3, hpr="0 0 0"), free="data/library/*.spm")
    assert collect(tmp_path / "out", "--sources", "supertuxkart", "--from", f"supertuxkart={game}") == 1
    assert "no mesh was found" in capsys.readouterr().err


def test_a_placed_mesh_turns_about_its_axes_in_order(tmp_path):
    about_y_44 = Placed(tmp_path, hpr=(0.0, 90.0, 0.0), xyz=(5.0, 0.0, 0.0), scale=(2.0, 2.0, 2.0)).matrix_44
    np.testing.assert_allclose(about_y_44 @ [0, 0, 1, 1], [7, 0, 0, 1], atol=1e-12)
    about_x_44 = Placed(tmp_path, hpr=(90.0, 0.0, 0.0)).matrix_44
    np.testing.assert_allclose(about_x_44 @ [0, 1, 0, 1], [0, 0, 1, 1], atol=1e-12)

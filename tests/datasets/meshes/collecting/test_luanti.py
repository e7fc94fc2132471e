"""Objects of Luanti's mods take their textures from the definitions in Lua."""

import numpy as np
import pytest

from datasets.meshes.collecting.luanti import definitions, nodes, read_parts
from datasets.meshes.collecting.readers import Terms
from datasets.meshes.scene import srgb_to_linear
from tests.tiny_meshes import GREEN, RED, flat_png
from utils.errors import DataError

TERMS = Terms("hd", "CC-BY-SA-4.0", "somebody")
OBJ = """v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 3
vt 0 0
vt 1 1
usemtl second
f 1/1 2/2 3/1 4/2
usemtl first
f 1/1/1 5/2/1 2/1/1
usemtl second
f 3/1 2/2 5/1
"""
LUA = """
homedecor.color_grey = 0xff808080
homedecor.register("chair", {
    mesh = "homedecor_kitchen_chair.obj",
    tiles = { "red.png", { name = "green.png", color = homedecor.color_grey } },
})
homedecor.register("lost", { mesh = "lost.obj", tiles = { "gone.png" } })
homedecor.register("bare", { mesh = "bare.obj" })
homedecor.register("other", { mesh = "homedecor_stool.obj", tiles = { {name="red.png", color=0xff0000ff} } })
"""


def test_faces_are_sorted_by_material_in_the_order_of_use():
    (first_F33, uvs_F32), (second_F33, _) = read_parts(OBJ)
    assert (len(first_F33), len(second_F33)) == (3, 1)  # the face with four corners is two
    np.testing.assert_array_equal(second_F33[0], [[0, 0, 0], [0, 0, 3], [1, 0, 0]])
    np.testing.assert_array_equal(uvs_F32[1], [[0, 0], [0, 0], [1, 1]])


@pytest.mark.parametrize("text", ["v 0 0 zero", "v 0 0 0\nf 1 2 3", "v 0 0 0\nf -1 -1 -1"])
def test_a_broken_file_is_refused(text):
    with pytest.raises(DataError):
        read_parts(text)


def test_definitions_name_tiles_and_colours():
    found = definitions(LUA, {"color_grey": "0xff808080"})
    assert list(found) == ["homedecor_kitchen_chair.obj", "lost.obj", "homedecor_stool.obj"]
    grey = float(srgb_to_linear(np.array([128 / 255]))[0])
    assert found["homedecor_kitchen_chair.obj"] == [
        ("red.png", (1.0, 1.0, 1.0)), ("green.png", pytest.approx((grey, grey, grey))),
    ]  # fmt: skip
    assert found["homedecor_stool.obj"] == [("red.png", (0.0, 0.0, 1.0))]


def test_an_object_is_painted_with_its_tiles(tmp_path):
    (tmp_path / "init.lua").write_text(LUA)
    for name in ("homedecor_kitchen_chair", "lost", "homedecor_stool"):
        (tmp_path / f"{name}.obj").write_text(OBJ)
    (tmp_path / "red.png").write_bytes(flat_png(RED))
    (tmp_path / "green.png").write_bytes(flat_png(GREEN))
    entries = nodes(tmp_path, tmp_path, TERMS)
    assert [entry.caption for entry in entries] == ["a kitchen chair", "a stool"]  # a tile of `lost` is not there
    mesh, notes = entries[0].read()
    assert notes == []
    assert [texture.pixels_HWC[0, 0].tolist() for texture in mesh.textures] == [list(RED), list(GREEN)]
    np.testing.assert_array_equal(mesh.texture_F, [0, 0, 0, 1])
    np.testing.assert_allclose(np.ptp(mesh.points_F33.reshape(-1, 3), axis=0), (3, 1, 1))  # +z became +x

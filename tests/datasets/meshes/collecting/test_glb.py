"""What a renderer sees of a mesh survives writing it as .glb."""

import numpy as np

from datasets.meshes.collecting.glb import write_glb
from datasets.meshes.loading import load_mesh
from datasets.meshes.scene import CLAMP
from tests.tiny_meshes import BLUE, RED, Glb, box, box_glb, png, textured_box


def rewritten(tmp_path, glb: Glb, **more):
    """A mesh as it was, and as it is after it was written."""
    before = load_mesh(glb.write(tmp_path / "before.glb"))
    write_glb(tmp_path / "after.glb", before, max_texture=more.get("max_texture", 512))
    return before, load_mesh(tmp_path / "after.glb")


def corners(mesh, values) -> np.ndarray:
    """Values at corners, sorted by corner: the order of faces may differ."""
    rows = np.concatenate([mesh.points_F33, mesh.normals_F33, values], axis=-1).reshape(-1, 6 + values.shape[-1])
    rows = rows.round(3) + 0.0
    return rows[np.lexsort(rows.T[::-1])]


def test_colours_positions_and_normals_survive(tmp_path):
    glb = box_glb((0.2, 0.4, 0.6))
    before, after = rewritten(tmp_path, glb)
    np.testing.assert_allclose(corners(after, after.colors_F33), corners(before, before.colors_F33), atol=2e-3)
    shape = box()
    shape["COLOR_0"] = np.linspace(0, 1, 24 * 3, dtype=np.float32).reshape(24, 3)
    glb = Glb()
    glb.node(glb.mesh(shape, glb.material()))
    before, after = rewritten(tmp_path, glb)
    np.testing.assert_allclose(corners(after, after.colors_F33), corners(before, before.colors_F33), atol=2e-3)


def test_normals_that_smooth_an_edge_survive(tmp_path):
    shape = box()
    shape["NORMAL"] = (shape["POSITION"] / np.linalg.norm(shape["POSITION"], axis=1, keepdims=True)).astype(np.float32)
    glb = Glb()
    glb.node(glb.mesh(shape, glb.material((1, 0, 0))))
    before, after = rewritten(tmp_path, glb)
    np.testing.assert_allclose(corners(after, after.colors_F33), corners(before, before.colors_F33), atol=2e-3)


def test_textures_survive_with_their_wrap_and_smaller(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = RED, BLUE
    glb = textured_box(png(pixels), texture={"sampler": 0})
    glb.row("samplers", {"wrapS": 33071, "wrapT": 10497})
    before, after = rewritten(tmp_path, glb, max_texture=32)
    assert after.textures[0].pixels_HWC.shape == (32, 32, 3)
    assert after.textures[0].wrap == before.textures[0].wrap == (CLAMP, "repeat")
    np.testing.assert_array_equal(after.textures[0].pixels_HWC[5, [3, 28]], [RED, BLUE])
    np.testing.assert_allclose(corners(after, after.uvs_F32), corners(before, before.uvs_F32), atol=2e-3)


def test_holes_glass_glow_and_flat_colours_survive(tmp_path):
    glb = Glb()
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 1], pixels[:4, :, 3] = 255, 200
    holed = glb.texture(png(pixels))
    looks = [
        glb.material(texture=holed, alphaMode="MASK", alphaCutoff=0.25),
        glb.material((1, 0, 0, 0.5), alphaMode="BLEND"),
        glb.material((0, 0, 1), emissiveFactor=[0.5, 0.25, 0], emissiveTexture={"index": holed}),
        glb.material((1, 1, 0), extensions={"KHR_materials_unlit": {}}),
    ]
    for number, look in enumerate(looks):
        glb.node(glb.mesh(box(), look), translation=[2 * number, 0, 0])
    glb.json["extensionsUsed"] = ["KHR_materials_unlit"]
    before, after = rewritten(tmp_path, glb)
    for name in ("colors_F33", "glow_F33"):
        np.testing.assert_allclose(
            corners(after, vars(after)[name]), corners(before, vars(before)[name]), atol=2e-3, err_msg=name
        )
    for name in ("cutoff_F", "lit_F"):
        expected, found = (corners(m, np.repeat(vars(m)[name][:, None, None], 3, axis=1)) for m in (before, after))
        np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=name)
    opacities = [corners(mesh, mesh.opacities_F3[..., None]) for mesh in (before, after)]
    np.testing.assert_allclose(opacities[1], opacities[0], atol=2e-3)
    assert sorted(texture.pixels_HWC.shape[2] for texture in after.textures) == [3, 4]

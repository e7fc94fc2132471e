"""What a glTF file holds is what is drawn, and what is lost is named."""

import importlib.util
import sys

import numpy as np
import pytest

from datasets.meshes.companions import Companions
from datasets.meshes.gltf_materials import texture_transform
from datasets.meshes.gltf_scene import faces_of
from datasets.meshes.lighting import irradiance
from datasets.meshes.loading import read_mesh
from datasets.meshes.renderer import render_views
from datasets.meshes.scene import RenderMesh, linear_to_srgb, normalise
from tests.tiny_meshes import BLUE, GREEN, RED, YELLOW, Glb, box, box_glb, card, flat_png, png, textured_box
from utils.cameras import DATA_FOV_DEG, orbit_cameras
from utils.errors import DataError

FRONT = irradiance(np.array([1.0, 0.0, 0.0], np.float32))
DISC = np.zeros((32, 32, 4), np.uint8)  # transparent texels are black, as many programs leave them
DISC[np.hypot(*(np.mgrid[:32, :32] - 15.5)) < 10] = (*YELLOW, 255)


def read(tmp_path, glb: Glb) -> tuple[RenderMesh, list[str]]:
    files = Companions(glb.write(tmp_path / "mesh.glb"))
    return read_mesh(files), files.notes


def view(mesh: RenderMesh, *, size: int = 32, azimuth_deg: float = 0.0) -> np.ndarray:
    """The view from the front, level with the object: RGBA."""
    c2w_V44 = orbit_cameras(num_views=1, elevation_deg=0, radius=2.0, azimuth_start_deg=azimuth_deg).numpy()
    return render_views(normalise(mesh), c2w_V44, fov_deg=DATA_FOV_DEG, size=size).rgba_VHW4[0]


def middle(mesh: RenderMesh, **how) -> list[int]:
    seen = view(mesh, **how)
    return seen[len(seen) // 2, len(seen) // 2].tolist()


def lit(color) -> np.ndarray:
    """The 8-bit colour of a linear albedo on a side that faces the front camera."""
    return linear_to_srgb(FRONT * np.array(color, np.float32)) * 255


def test_a_texture_that_is_no_picture_is_white_and_named(tmp_path):
    mesh, notes = read(tmp_path, textured_box(b"no picture"))
    np.testing.assert_allclose(middle(mesh)[:3], lit((1, 1, 1)), atol=1)
    assert len(notes) == 1
    assert "texture number 0 is broken or no picture" in notes[0]


@pytest.mark.parametrize("name", ["my%20skin.png", "my skin.png", "MY%20Skin.PNG", r"C:\work\tex\my skin.png"])
def test_names_of_textures_and_buffers(tmp_path, name):
    """Percent-encoded as the specification wants, or not; in another case; and by a path of another machine."""
    glb = textured_box(b"")
    glb.json["images"] = [{"uri": name}]
    (tmp_path / "my skin.png").write_bytes(flat_png(GREEN))
    (tmp_path / "my scene.bin").write_bytes(glb.blob)
    path = glb.write_gltf(tmp_path / "mesh.gltf", uri="my%20scene.bin")
    files = Companions(path)
    np.testing.assert_allclose(middle(read_mesh(files))[:3], lit((0, 1, 0)), atol=1)
    assert files.notes == []
    assert [file.name for file in files.read] == ["my scene.bin", "my skin.png"]


def test_a_buffer_that_is_gone_or_elsewhere_is_named(tmp_path):
    path = box_glb().write_gltf(tmp_path / "mesh.gltf", uri="gone.bin")
    with pytest.raises(DataError, match=r"mesh.gltf: its buffer gone.bin is not found"):
        read_mesh(Companions(path))
    path = box_glb().write_gltf(tmp_path / "mesh.gltf", uri="https://example.org/a.bin")
    with pytest.raises(DataError, match="is on the network"):
        read_mesh(Companions(path))


def test_what_a_mask_cuts_out_is_not_there(tmp_path):
    glb = Glb()
    material = glb.material(texture=glb.texture(png(DISC)), alphaMode="MASK", alphaCutoff=0.5, doubleSided=True)
    glb.node(glb.mesh(card(), material))
    mesh, _ = read(tmp_path, glb)
    seen = view(mesh, size=64)
    np.testing.assert_allclose(seen[32, 32], [*lit((1, 1, 0)), 255], atol=1)
    whole = view(read(tmp_path, box_glb((1, 1, 0)))[0], size=64)[..., 3]  # for the size of the card on the picture
    side = 64 / 2 / np.tan(np.radians(DATA_FOV_DEG) / 2) / 2.0
    assert abs(seen[..., 3].sum() / 255 - np.pi * (10 / 32 * side) ** 2) < 0.05 * side**2
    assert whole.sum() > seen[..., 3].sum()
    # the black of transparent texels darkens no edge
    assert seen[seen[..., 3] == 255][:, :2].min() > 215


def test_a_transparent_shell_hides_nothing(tmp_path):
    glb = Glb()
    shell = glb.mesh(box(), glb.material((1, 1, 1, 0.0), alphaMode="BLEND"))
    glb.node(shell, scale=[2, 2, 2])
    glb.node(glb.mesh(box(), glb.material((1, 0, 0))))
    mesh, _ = read(tmp_path, glb)
    np.testing.assert_allclose(middle(mesh), [*lit((1, 0, 0)), 255], atol=1)
    np.testing.assert_allclose(np.diff(mesh.bounds_23, axis=0), [[1, 1, 1]])  # the shell is left out


def test_blended_surfaces_are_blended_over_what_is_behind(tmp_path):
    """A half transparent blue card before a red one, as in the equation of alpha blending, in linear light."""
    glb = Glb()
    glb.node(glb.mesh(card(), glb.material((0, 0, 1, 0.5), alphaMode="BLEND")), translation=[0, 0, 0.1])
    back = glb.node(glb.mesh(card(), glb.material((1, 0, 0))))
    mesh, _ = read(tmp_path, glb)
    np.testing.assert_allclose(middle(mesh), [*lit((0.5, 0, 0.5)), 255], atol=1)
    glb.json["scenes"][0]["nodes"].remove(back)
    alone, _ = read(tmp_path, glb)
    np.testing.assert_allclose(middle(alone), [*lit((0, 0, 1)), 128], atol=1)


def test_a_mesh_that_is_transparent_everywhere_is_refused(tmp_path):
    with pytest.raises(DataError, match="everything in it is transparent"):
        read(tmp_path, box_glb((1, 0, 0, 0), alphaMode="BLEND"))


def test_opaque_materials_ignore_alpha(tmp_path):
    mesh, _ = read(tmp_path, box_glb((1, 0, 0, 0)))
    assert mesh.opacities_F3 is None
    np.testing.assert_allclose(middle(mesh), [*lit((1, 0, 0)), 255], atol=1)
    mesh, _ = read(tmp_path, box_glb((1, 0, 0, 1), alphaMode="BLEND"))
    assert mesh.opacities_F3 is None  # so that it is as fast as an opaque one


def test_a_surface_that_glows(tmp_path):
    mesh, _ = read(tmp_path, box_glb((0, 0, 0), emissiveFactor=[0, 1, 0]))
    assert middle(mesh) == [0, 255, 0, 255]
    glb = box_glb((0, 0, 0), emissiveFactor=[1, 1, 1])
    glb.json["materials"][0]["emissiveTexture"] = {"index": glb.texture(flat_png(BLUE))}
    assert middle(read(tmp_path, glb)[0]) == [0, 0, 255, 255]
    glb = box_glb((0, 0, 0), emissiveFactor=[0.1, 0, 0])
    glb.json["materials"][0]["extensions"] = {"KHR_materials_emissive_strength": {"emissiveStrength": 5}}
    np.testing.assert_allclose(middle(read(tmp_path, glb)[0]), [*linear_to_srgb([0.5, 0, 0]) * 255, 255], atol=1)


def test_a_surface_without_light(tmp_path):
    mesh, _ = read(tmp_path, box_glb((0.2, 0.2, 0.2), extensions={"KHR_materials_unlit": {}}))
    np.testing.assert_allclose(middle(mesh)[:3], linear_to_srgb([0.2] * 3) * 255, atol=1)


def test_specular_glossiness_gives_the_diffuse_colour(tmp_path):
    glb = box_glb((1, 1, 1), extensions={"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0, 0, 1, 1]}})
    np.testing.assert_allclose(middle(read(tmp_path, glb)[0])[:3], lit((0, 0, 1)), atol=1)


ATLAS = np.zeros((64, 64, 3), np.uint8)
ATLAS[:32, :32], ATLAS[:32, 32:], ATLAS[32:, :32], ATLAS[32:, 32:] = RED, BLUE, YELLOW, GREEN


def test_a_texture_transform_selects_a_part_of_an_atlas(tmp_path):
    move = {"offset": [0.5, 0.5], "scale": [0.5, 0.5]}
    mesh, notes = read(tmp_path, textured_box(png(ATLAS), use={"extensions": {"KHR_texture_transform": move}}))
    for azimuth_deg in (0, 90, 180, 270):
        red, green, blue, alpha = middle(mesh, azimuth_deg=azimuth_deg)
        assert (red, blue, alpha) == (0, 0, 255)
        assert green > 180
    assert notes == []


def test_a_quarter_turn_of_a_texture():
    """Counter-clockwise as one sees the picture, whose v points downwards."""
    matrix = texture_transform({"rotation": np.pi / 2, "scale": [2, 1]})
    np.testing.assert_allclose(matrix @ [1, 0, 1], [0, -2, 1], atol=1e-12)


def test_a_second_set_of_coordinates(tmp_path):
    glb = textured_box(png(ATLAS), use={"texCoord": 1})
    corner = np.full((24, 2), 0.25, np.float32)
    glb.primitive()["attributes"]["TEXCOORD_1"] = glb.accessor(corner)
    np.testing.assert_allclose(middle(read(tmp_path, glb)[0])[:3], lit((1, 0, 0)), atol=1)
    del glb.primitive()["attributes"]["TEXCOORD_1"]
    mesh, notes = read(tmp_path, glb)
    assert notes == ["a texture has no coordinates (TEXCOORD_1) and is left out"]
    np.testing.assert_allclose(middle(mesh)[:3], lit((1, 1, 1)), atol=1)


@pytest.mark.parametrize(("wrap", "color"), [(10497, (1, 0, 0)), (33071, (0, 1, 0)), (33648, (0, 1, 0))])
def test_what_lies_beyond_a_texture(tmp_path, wrap, color):
    """At u = v = 1.2: the upper left of a repeated picture, the lower right of a clamped or mirrored one."""
    glb = textured_box(png(ATLAS), texture={"sampler": 0})
    glb.json["samplers"] = [{"wrapS": wrap, "wrapT": wrap}]
    glb.primitive()["attributes"]["TEXCOORD_0"] = glb.accessor(np.full((24, 2), 1.2, np.float32))
    np.testing.assert_allclose(middle(read(tmp_path, glb)[0])[:3], lit(color), atol=1)


def test_quantised_data(tmp_path):
    shape = box()
    glb = Glb()
    checker = np.array([[RED, BLUE], [BLUE, RED]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    material = glb.material(texture=glb.texture(png(checker)))
    points = np.round(shape["POSITION"] * [32000, 64000, 32000]).astype(np.int16)
    attributes = {
        "POSITION": glb.accessor(np.pad(points, ((0, 0), (0, 1))), type="VEC3", normalized=True),
        "NORMAL": glb.accessor(np.pad((shape["NORMAL"] * 127).astype(np.int8), ((0, 0), (0, 1))), normalized=True),
        "TEXCOORD_0": glb.accessor((shape["TEXCOORD_0"] * 65535).astype(np.uint16), normalized=True),
    }
    for name, stride in (("POSITION", 8), ("NORMAL", 4)):
        accessor = glb.json["accessors"][attributes[name]]
        accessor["type"] = "VEC3"
        glb.json["bufferViews"][accessor["bufferView"]]["byteStride"] = stride
    indices = glb.accessor(shape["indices"])
    mesh = {"primitives": [{"attributes": attributes, "indices": indices, "material": material}]}
    glb.node(glb.row("meshes", mesh), scale=[2, 2, 2], translation=[5, 0, 0])
    glb.json["extensionsUsed"] = glb.json["extensionsRequired"] = ["KHR_mesh_quantization"]
    loaded, notes = read(tmp_path, glb)
    np.testing.assert_allclose(np.ptp(loaded.bounds_23, axis=0), [1.953, 1.953, 3.906], atol=0.01)
    seen = view(loaded, size=64)
    colors = {tuple((seen[r, c, :3] > 100).tolist()) for r in (22, 42) for c in (28, 36)}
    assert colors == {(True, False, False), (False, False, True)}
    assert notes == []


def test_sparse_accessors(tmp_path):
    glb = box_glb()
    points = box()["POSITION"]
    raised = np.flatnonzero(points[:, 1] > 0)
    values = points[raised] + np.array([0, 2, 0], np.float32)
    accessor = glb.json["accessors"][glb.primitive()["attributes"]["POSITION"]]
    accessor["sparse"] = {
        "count": len(raised),
        "indices": {"bufferView": glb.view(raised.astype(np.uint16).tobytes()), "componentType": 5123},
        "values": {"bufferView": glb.view(values.tobytes())},
    }
    np.testing.assert_allclose(np.ptp(read(tmp_path, glb)[0].bounds_23, axis=0), [1, 1, 3], atol=1e-6)


def skinned(**node) -> Glb:
    glb = box_glb()
    attributes = glb.primitive()["attributes"]
    attributes["JOINTS_0"] = glb.accessor(np.zeros((24, 4), np.uint8))
    attributes["WEIGHTS_0"] = glb.accessor(np.tile([1, 0, 0, 0], (24, 1)).astype(np.float32))
    inverse = glb.accessor(np.eye(4, dtype=np.float32).reshape(1, 16))
    glb.json["nodes"][0] |= {"skin": 0} | node
    glb.row("skins", {"joints": [glb.node()], "inverseBindMatrices": inverse})
    glb.node(0, translation=[0, 1.5, 0])
    return glb


def test_the_node_of_a_skinned_mesh_does_not_move_it(tmp_path):
    mesh, _ = read(tmp_path, skinned(translation=[100, 0, 0]))
    np.testing.assert_allclose(mesh.bounds_23, [[-0.5, -0.5, -0.5], [0.5, 0.5, 2.0]], atol=1e-6)
    hidden, _ = read(tmp_path, skinned(scale=[0, 0, 0]))
    np.testing.assert_allclose(hidden.bounds_23, mesh.bounds_23, atol=1e-6)


def test_joints_move_a_skinned_mesh(tmp_path):
    glb = skinned()
    glb.json["nodes"][1] |= {"translation": [0, -3, 0]}
    np.testing.assert_allclose(read(tmp_path, glb)[0].bounds_23[0], [-0.5, -0.5, -3.5], atol=1e-6)


@pytest.mark.parametrize("owner", ["mesh", "node"])
def test_morph_targets_have_their_default_weights(tmp_path, owner):
    glb = box_glb()
    moved = np.zeros((24, 3), np.float32)
    moved[box()["POSITION"][:, 1] > 0, 1] = 2
    glb.primitive()["targets"] = [{"POSITION": glb.accessor(moved)}]
    glb.json["meshes"][0]["weights"] = [1.0 if owner == "mesh" else 0.5]
    if owner == "node":
        glb.json["nodes"][0]["weights"] = [1.0]
    np.testing.assert_allclose(np.ptp(read(tmp_path, glb)[0].bounds_23, axis=0), [1, 1, 3], atol=1e-6)


def test_instances(tmp_path):
    glb = box_glb()
    places = glb.accessor(np.array([[-2, 0, 0], [0, 0, 0], [2, 0, 0]], np.float32))
    glb.json["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}
    mesh, _ = read(tmp_path, glb)
    assert len(mesh.points_F33) == 36
    np.testing.assert_allclose(np.ptp(mesh.bounds_23, axis=0), [1, 5, 1], atol=1e-6)


def test_fans_and_strips():
    np.testing.assert_array_equal(faces_of(np.arange(4), 6), [[0, 1, 2], [0, 2, 3]])
    np.testing.assert_array_equal(faces_of(np.array([0, 1, 2, 3, 3, 4]), 5), [[0, 1, 2], [2, 1, 3]])
    assert len(faces_of(np.arange(2), 5)) == len(faces_of(np.arange(2), 6)) == len(faces_of(np.arange(2), 4)) == 0


def test_a_fan_is_drawn_and_lines_are_named(tmp_path):
    glb = box_glb()
    glb.node(glb.mesh(card() | {"indices": np.arange(4, dtype=np.uint16)}, 0, mode=6), translation=[0, 0, 2])
    glb.node(glb.mesh(card() | {"indices": np.arange(4, dtype=np.uint16)}, 0, mode=1))
    mesh, notes = read(tmp_path, glb)
    assert len(mesh.points_F33) == 14
    assert notes == ["lines are ignored"]


def test_zero_scales_and_invisible_nodes_are_left_out(tmp_path):
    glb = box_glb()
    glb.node(0, scale=[0, 0, 0], translation=[50, 0, 0])
    glb.node(0, translation=[70, 0, 0], extensions={"KHR_node_visibility": {"visible": False}})
    np.testing.assert_allclose(np.ptp(read(tmp_path, glb)[0].bounds_23, axis=0), [1, 1, 1], atol=1e-6)


def test_a_mirrored_node_keeps_its_outside_outside(tmp_path):
    glb = box_glb()
    glb.json["nodes"][0]["scale"] = [-1, 1, 1]
    mesh, _ = read(tmp_path, glb)
    corners = mesh.points_F33
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("fi,fi->f", across, mesh.normals_F33[:, 0]) > 0).all()
    assert (np.einsum("fi,fi->f", corners.mean(axis=1), mesh.normals_F33[:, 0]) > 0).all()


def draco_box() -> Glb:
    """A box with data that only Draco reads (here: none)."""
    glb = box_glb()
    primitive = glb.primitive()
    for index in (*primitive["attributes"].values(), primitive["indices"]):
        del glb.json["accessors"][index]["bufferView"]
    compressed = {"bufferView": glb.view(b"DRACO junk"), "attributes": {"POSITION": 0}}
    primitive["extensions"] = {"KHR_draco_mesh_compression": compressed}
    glb.json["extensionsUsed"] = glb.json["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    return glb


def test_draco_is_decoded_or_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(DataError, match=r"KHR_draco_mesh_compression.*pip install DracoPy.*without compression"):
        read(tmp_path, draco_box())


@pytest.mark.skipif(importlib.util.find_spec("DracoPy") is None, reason="the extra `draco` is not installed")
def test_draco_with_its_package(tmp_path):
    import DracoPy

    shape = box()
    faces = shape["indices"].reshape(-1, 3).astype(np.uint32)
    glb = draco_box()
    content = DracoPy.encode(shape["POSITION"], faces, quantization_bits=14, preserve_order=True)
    extension = glb.primitive()["extensions"]["KHR_draco_mesh_compression"]
    extension |= {"bufferView": glb.view(content), "attributes": {"POSITION": 0}}
    glb.primitive()["attributes"] = {"POSITION": glb.primitive()["attributes"]["POSITION"]}
    mesh, _ = read(tmp_path, glb)
    np.testing.assert_allclose(mesh.bounds_23, [[-0.5] * 3, [0.5] * 3], atol=1e-3)
    with pytest.raises(DataError, match="Draco data are broken"):
        read(tmp_path, draco_box())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("KHR_texture_basisu", "textures are KTX2; export it with PNG or JPEG textures"),
        ("EXT_meshopt_compression", "compressed by meshopt; export it without compression"),
        ("ACME_magic", "export it without this extension"),
    ],
)
def test_extensions_that_are_needed_but_not_read_are_refused(tmp_path, name, words):
    glb = box_glb()
    glb.json["extensionsRequired"] = [name]
    with pytest.raises(DataError, match=f"needs the extension {name}.*{words}"):
        read(tmp_path, glb)


def test_extensions_that_are_not_needed_are_named(tmp_path):
    glb = textured_box(b"\xabKTX 20\xbb")
    source = glb.json["textures"][0].pop("source")
    glb.json["textures"][0]["extensions"] = {"KHR_texture_basisu": {"source": source}}
    glb.json["extensionsUsed"] = ["KHR_texture_basisu", "ACME_magic"]
    _, notes = read(tmp_path, glb)
    assert notes[0] == "extension ACME_magic is ignored"
    assert "is a KTX2 file" in notes[1]


@pytest.mark.parametrize("mode", ["grey", "palette", "grey with alpha"])
def test_pictures_of_other_depths(tmp_path, mode):
    """40000 of 65535 is 156 of 255."""
    content = {
        "grey": png(np.full((4, 4), 40000, np.uint16)),
        "palette": png(np.full((4, 4, 3), 153), mode="P"),  # a colour that palettes of Pillow have
        "grey with alpha": png(np.full((4, 4, 4), 156), mode="LA"),
    }[mode]
    mesh, _ = read(tmp_path, textured_box(content))
    assert (mesh.textures[0].pixels_HWC == (153 if mode == "palette" else 156)).all()
    assert mesh.textures[0].pixels_HWC.shape == (4, 4, 3)


@pytest.mark.parametrize("with_material", [False, True])
@pytest.mark.parametrize("generator", ["Blender", "https://github.com/mikedh/trimesh"])
def test_vertex_colours_are_linear_except_those_of_trimesh_without_material(tmp_path, generator, with_material):
    glb = Glb()
    glb.json["asset"]["generator"] = generator
    shape = box() | {"COLOR_0": np.tile([128, 128, 128, 255], (24, 1)).astype(np.uint8)}
    glb.node(glb.mesh(shape, glb.material() if with_material else None))
    glb.json["accessors"][glb.primitive()["attributes"]["COLOR_0"]]["normalized"] = True
    expected = 0.2159 if "trimesh" in generator and not with_material else 128 / 255
    np.testing.assert_allclose(read(tmp_path, glb)[0].colors_F33, expected, atol=1e-3)


def test_vertex_colours_have_alpha(tmp_path):
    glb = Glb()
    shape = card() | {"COLOR_0": np.tile([1, 0, 0, 0.25], (4, 1)).astype(np.float32)}
    glb.node(glb.mesh(shape, glb.material(alphaMode="BLEND")))
    np.testing.assert_allclose(middle(read(tmp_path, glb)[0]), [*lit((1, 0, 0)), 64], atol=1)


def test_an_index_out_of_range_is_named(tmp_path):
    glb = box_glb()
    glb.primitive()["indices"] = glb.accessor(np.array([0, 1, 99], np.uint16))
    with pytest.raises(DataError, match=r"mesh.glb: a face names vertex 99, but there are 24 vertices"):
        read(tmp_path, glb)


def test_a_node_that_is_its_own_ancestor_is_refused(tmp_path):
    glb = box_glb()
    glb.json["nodes"][0]["children"] = [0]
    with pytest.raises(DataError, match="its own ancestor"):
        read(tmp_path, glb)


def test_json_that_is_no_gltf_is_one_line(tmp_path):
    for number, content in enumerate((b"[]", b"{", b"\xff\xfe{}", b'{"asset": []}', b"[" * 100_000, b"", b"glTF")):
        path = tmp_path / f"{number}.gltf"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_mesh(Companions(path))
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)

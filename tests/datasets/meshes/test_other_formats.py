"""Textures of .obj, colours of .ply, and how files beside a mesh are found."""

import numpy as np
import pytest

from datasets.meshes.companions import Companions
from datasets.meshes.loading import load_mesh, read_mesh
from datasets.meshes.obj import parse_mtl
from datasets.meshes.scene import linear_to_srgb
from tests.datasets.meshes.test_gltf import lit, middle, view
from tests.tiny_meshes import GREEN, RED, card, flat_png, obj_text, png, write_obj
from utils.errors import DataError


def color(path, *, root=None) -> tuple[list[int], list[str]]:
    """The colour in the middle of the front view, and what was noted."""
    files = Companions(path, root)
    return middle(read_mesh(files))[:3], files.notes


@pytest.mark.parametrize(
    "line",
    [
        r"map_Kd textures\skin.png",
        "map_Kd textures/Skin.PNG",
        "map_Kd -s 1 1 1 -o 0 0 0 textures/skin.png",
        "map_Kd -bm 0.5 -clamp on -blendu off textures/skin.png",
        "map_Kd -s 2 textures/skin.png",
        "\tmap_Kd   textures/skin.png  ",
        "MAP_KD ./textures/skin.png",
        r"map_Kd C:\Users\ann\scene\textures\skin.png",
        "map_Kd /home/ann/skin.png",
        'map_Kd "textures/skin.png"',
        "map_Kd textures/my%20skin.png",
    ],
)
def test_a_texture_is_found_by_any_name_that_programs_write(tmp_path, line):
    names = ("my skin.png",) if "my%20" in line else ("skin.png",)
    path = write_obj(tmp_path / "a.obj", line, texture=tmp_path / "textures" / names[0])
    if line.endswith("ann/skin.png"):
        (tmp_path / "skin.png").write_bytes(flat_png(GREEN))
    seen, notes = color(path)
    np.testing.assert_allclose(seen, lit((0, 1, 0)), atol=1)
    assert notes == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("map_Kd gone.png", "texture gone.png is not found"),
        ("map_Kd textures", "texture textures is not found"),
        ("map_Kd a.obj", "texture a.obj is broken or no picture"),
        ("map_Kd https://example.org/a.png", "texture https://example.org/a.png is on the network"),
        ("map_Kd -s 1 1 1", "texture 1 is not found"),
    ],
)
def test_a_texture_that_cannot_be_read_is_white_and_named(tmp_path, line, words):
    (tmp_path / "textures").mkdir()
    seen, notes = color(write_obj(tmp_path / "a.obj", line))
    np.testing.assert_allclose(seen, lit((1, 1, 1)), atol=1)
    assert len(notes) == 1
    assert words in notes[0]


def test_a_material_file_that_is_gone_is_named(tmp_path):
    (tmp_path / "a.obj").write_text(obj_text("gone.mtl"))
    seen, notes = color(tmp_path / "a.obj")
    np.testing.assert_allclose(seen, lit((0.7, 0.7, 0.7)), atol=1)
    assert notes == ["material file gone.mtl is not found"]
    (tmp_path / "a.obj").write_text(obj_text(None))
    assert color(tmp_path / "a.obj")[1] == ["material skin is named, but no material file (mtllib)"]
    write_obj(tmp_path / "a.obj", "")
    (tmp_path / "a.obj").write_text(obj_text(material="other"))
    assert color(tmp_path / "a.obj")[1] == ["material other is in no material file"]


def test_several_material_files_and_names_that_differ_in_case(tmp_path):
    write_obj(tmp_path / "a.obj", "map_Kd skin.png", texture=tmp_path / "skin.png")
    (tmp_path / "two words.mtl").write_bytes("\ufeffnewmtl unused\r\nKd 1 0 0\r\n".encode())
    (tmp_path / "a.obj").write_text("mtllib two words.mtl\n" + obj_text("M.MTL", material="SKIN"))
    seen, notes = color(tmp_path / "a.obj")
    np.testing.assert_allclose(seen, lit((0, 1, 0)), atol=1)
    assert notes == []


def test_names_in_latin_1_and_with_several_spaces(tmp_path):
    (tmp_path / "a.obj").write_bytes(obj_text("m\xfcll.mtl", material="my  sk\xedn").encode("latin-1"))
    (tmp_path / "m\xfcll.mtl").write_bytes("newmtl my  sk\xedn\nmap_Kd H\xe4ut.png\n".encode("latin-1"))
    (tmp_path / "H\xe4ut.png").write_bytes(flat_png(GREEN))
    seen, notes = color(tmp_path / "a.obj")
    np.testing.assert_allclose(seen, lit((0, 1, 0)), atol=1)
    assert notes == []


def test_textures_lie_below_the_folder_that_was_given(tmp_path):
    """`../t.png` is read when the folder above was given, and named otherwise."""
    path = write_obj(tmp_path / "set" / "a" / "a.obj", "map_Kd ../t.png", texture=tmp_path / "set" / "t.png")
    seen, notes = color(path, root=tmp_path / "set")
    np.testing.assert_allclose(seen, lit((0, 1, 0)), atol=1)
    assert notes == []
    seen, notes = color(path, root=path.parent)
    np.testing.assert_allclose(seen, lit((1, 1, 1)), atol=1)
    assert notes == ["texture ../t.png lies outside the folder that was given and is not read"]


def test_colour_opacity_and_glow_of_an_mtl(tmp_path):
    found = parse_mtl(
        "newmtl a\nKd 0.5 0 0\nd 0.25\nnewmtl b\nTr 0.25\nnewmtl c\nKd 1\nKe 0 0 1\nTr 1\n", Companions(tmp_path)
    )
    a, b, c = (found[name].material for name in "abc")
    np.testing.assert_allclose(linear_to_srgb(np.array(a.color)), [0.5, 0, 0], atol=1e-6)
    assert (a.opacity, a.cutoff, b.opacity, c.opacity, c.cutoff) == (0.25, 0.0, 0.75, 1.0, None)
    assert c.color == pytest.approx((1, 1, 1))
    assert c.glow == pytest.approx((0, 0, 1))


def test_a_texture_with_alpha_and_one_of_opacity(tmp_path):
    half = np.zeros((8, 8, 4), np.uint8)
    half[:, :4] = (*RED, 255)
    path = write_obj(tmp_path / "a.obj", "map_Kd skin.png")
    (tmp_path / "skin.png").write_bytes(png(half))
    alpha = view(read_mesh(Companions(path)))[..., 3]
    assert 0.4 < (alpha > 0).mean() / (view(read_mesh(Companions(write_obj(tmp_path / "b.obj", "")))) > 0).mean()
    path = write_obj(tmp_path / "c.obj", "map_Kd skin.png\nmap_d mask.png", texture=tmp_path / "skin.png")
    (tmp_path / "mask.png").write_bytes(flat_png((0, 0, 0)))
    with pytest.raises(DataError, match="transparent"):
        read_mesh(Companions(path))


def test_relative_indices_count_from_the_face(tmp_path):
    """Two triangles, each after its own points, as many programs write them."""
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 5 0 0\nv 6 0 0\nv 5 1 0\nf -3 -2 -1\n"
    (tmp_path / "a.obj").write_text(text)
    np.testing.assert_allclose(np.ptp(load_mesh(tmp_path / "a.obj").bounds_23, axis=0), [0, 6, 1], atol=1e-6)


@pytest.mark.parametrize("face", ["1 2 9", "0 1 2", "-9 -2 -1", "a b c", "1.5 2 3"])
def test_indices_out_of_range_are_refused(tmp_path, face):
    (tmp_path / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\nf {face}\n")
    with pytest.raises(DataError, match=r"a\.obj: "):
        load_mesh(tmp_path / "a.obj")


def test_a_texture_without_coordinates_is_named(tmp_path):
    path = write_obj(tmp_path / "a.obj", "map_Kd skin.png", texture=tmp_path / "skin.png")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if line[:2] != "vt"))
    assert color(path)[1] == ["a texture has no coordinates and is left out"]


def test_indented_lines_and_continued_ones_are_read(tmp_path):
    (tmp_path / "a.obj").write_bytes(b"\xef\xbb\xbfv 0 0 0\r\n  v 1 0 0\r\nv 0 1 \\\r\n 0\r\n\tf 1 2 3\r\n")
    assert len(load_mesh(tmp_path / "a.obj").points_F33) == 1


def ply(path, names: str, *, binary: bool = False):
    shape = card()
    kinds = "".join(f"property uchar {name}\n" for name in names.split())
    head = f"ply\nformat {'binary_little_endian' if binary else 'ascii'} 1.0\nelement vertex 4\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + kinds
    head += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    rgb = [200, 0, 0, 255][: len(names.split())]
    faces = shape["indices"].reshape(-1, 3)
    if binary:
        body = b"".join(row.tobytes() + bytes(rgb) for row in shape["POSITION"])
        body += b"".join(b"\3" + row.astype("<i4").tobytes() for row in faces)
    else:
        rows = [" ".join(map(str, [*point, *rgb])) for point in shape["POSITION"].tolist()]
        body = "\n".join(rows + [f"3 {a} {b} {c}" for a, b, c in faces.tolist()]).encode() + b"\n"
    path.write_bytes(head.encode() + body)
    return path


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("names", ["red green blue", "diffuse_red diffuse_green diffuse_blue"])
def test_colours_of_ply(tmp_path, names, binary):
    mesh = load_mesh(ply(tmp_path / "a.ply", names, binary=binary))
    np.testing.assert_allclose(linear_to_srgb(mesh.colors_F33[0, 0]) * 255, [200, 0, 0], atol=0.5)


def test_textures_of_ply(tmp_path, capfd):
    head = "ply\nformat ascii 1.0\ncomment TextureFile skin.png\nelement vertex 4\n"
    head += "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
    head += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    rows = ["-1 -1 0 0 0", "1 -1 0 1 0", "1 1 0 1 1", "-1 1 0 0 1", "3 0 1 2", "3 0 2 3"]
    (tmp_path / "a.ply").write_text(head + "\n".join(rows) + "\n")
    seen, notes = color(tmp_path / "a.ply")
    np.testing.assert_allclose(seen, lit((0.7, 0.7, 0.7)), atol=1)
    assert notes == ["texture skin.png is not found"]
    (tmp_path / "skin.png").write_bytes(png(np.full((4, 4), 40000, np.uint16)))
    seen, notes = color(tmp_path / "a.ply")
    np.testing.assert_allclose(seen, lit(np.full(3, 0.3325)), atol=1)  # 156 of 255, decoded
    assert notes == []
    assert capfd.readouterr().err == ""


def test_gaussians_are_no_mesh(tmp_path):
    head = "ply\nformat ascii 1.0\nelement vertex 0\n"
    head += "".join(f"property float {name}\n" for name in ("x", "y", "z", "f_dc_0", "opacity", "rot_0"))
    (tmp_path / "a.ply").write_text(head + "end_header\n")
    with pytest.raises(DataError, match=r"holds Gaussians, not a mesh; tools/export_gaussians\.py"):
        load_mesh(tmp_path / "a.ply")


def test_a_pointer_of_git_lfs_is_no_mesh(tmp_path):
    (tmp_path / "a.glb").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match="git lfs pull"):
        load_mesh(tmp_path / "a.glb")

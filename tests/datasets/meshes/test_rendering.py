"""The renderer against closed forms: where a known point lands, how deep it is, which way a texture goes."""

import numpy as np
import pytest
import torch

from datasets.meshes.lighting import irradiance
from datasets.meshes.loading import load_mesh
from datasets.meshes.renderer import render_views, sample_texture
from datasets.meshes.scene import RenderMesh, crease_normals, linear_to_srgb, normalise, stretched, turned
from datasets.zoo.primitives import box, ellipsoid
from utils.cameras import DATA_FOV_DEG, intrinsics, orbit_cameras, project_points
from utils.errors import DataError

trimesh = pytest.importorskip("trimesh")


def mesh_of(shape, color=(0.5, 0.5, 0.5)) -> RenderMesh:
    return RenderMesh(
        points_F33=shape.points_N3[shape.faces_F3],
        normals_F33=crease_normals(shape.points_N3, shape.faces_F3),
        colors_F33=np.broadcast_to(np.float32(color), (len(shape.faces_F3), 3, 3)),
    )


@pytest.mark.parametrize("elevation_deg", [15.0, -30.0, 70.0])
def test_known_points_land_within_half_a_pixel(elevation_deg):
    """Small balls at known points: the centroid of their coverage against the projection of their centres."""
    c2w_V44 = orbit_cameras(num_views=5, elevation_deg=elevation_deg, radius=2.0)
    size = 256
    for centre in ([0.31, 0.12, 0.4], [-0.4, 0.33, -0.21], [0.05, -0.45, 0.1]):
        mesh = mesh_of(ellipsoid(0.02, 0.02, 0.02).move(*centre))
        views = render_views(mesh, c2w_V44.numpy(), fov_deg=DATA_FOV_DEG, size=size)
        for view, c2w_44 in enumerate(c2w_V44):
            weight_HW = views.rgba_VHW4[view, ..., 3].astype(np.float64)
            rows, columns = np.mgrid[:size, :size] + 0.5
            seen = [(weight_HW * grid).sum() / weight_HW.sum() for grid in (columns, rows)]
            expected = project_points(torch.tensor([centre]), c2w_44, intrinsics(DATA_FOV_DEG, size))[0]
            # the projected ball is an ellipse whose centre is off by radius^2 / distance^2: far below 0.1 pixel
            np.testing.assert_allclose(seen, expected.numpy(), atol=0.1)


def test_depth_and_normal_of_a_wall():
    """A wall across the x axis at x = 0.5, seen from +x: depth is distance - 0.5 everywhere, the normal is +x."""
    mesh = mesh_of(box(0.02, 0.5, 0.5, bevel=0.0).move(x=0.49, z=-0.25))
    c2w_V44 = orbit_cameras(num_views=1, elevation_deg=0.0, radius=2.0).numpy()
    views = render_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=64)
    inside = np.s_[0, 28:36, 28:36]
    np.testing.assert_allclose(views.depth_VHW[inside], 1.5, atol=1e-5)
    np.testing.assert_allclose(views.normals_VHW3[inside], np.broadcast_to([1.0, 0, 0], (8, 8, 3)), atol=1e-5)
    assert views.depth_VHW[0, 0, 0] == 0
    assert views.rgba_VHW4[0, 0, 0, 3] == 0


def test_coverage_is_the_covered_area():
    """A wall whose edges cut pixels: the sum of alpha is its projected area."""
    half, depth, size = 0.2, 1.49, 64
    mesh = mesh_of(box(0.02, 2 * half, 2 * half, bevel=0.0).move(x=0.5, z=-half))
    c2w_V44 = orbit_cameras(num_views=1, elevation_deg=0.0, radius=2.0).numpy()
    views = render_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=size, samples=8)
    focal = float(intrinsics(DATA_FOV_DEG, size)[0, 0])
    side = 2 * half * focal / depth
    # 8 samples along each edge: at most 1/16 pixel off on each side
    assert abs(np.sqrt(views.rgba_VHW4[0, ..., 3].sum() / 255.0) - side) < 1 / 8


def test_colour_is_albedo_times_light():
    mesh = mesh_of(box(0.02, 0.5, 0.5, bevel=0.0).move(x=0.49, z=-0.25), color=(0.5, 0.25, 0.1))
    c2w_V44 = orbit_cameras(num_views=1, elevation_deg=0.0, radius=2.0).numpy()
    pixel = render_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=32).rgba_VHW4[0, 16, 16, :3]
    light = irradiance(np.array([1.0, 0.0, 0.0], dtype=np.float32))
    # rounding to 8 bit and the steps of the encoding table
    np.testing.assert_allclose(pixel, linear_to_srgb(light * [0.5, 0.25, 0.1]) * 255, atol=1.0)


@pytest.mark.parametrize("factors_3", [(1.2, 0.8, 1.1), (-1.0, 1.0, 1.0), (-0.8, 1.2, 1.0)])
def test_a_stretched_mesh_is_lit_as_one_made_so(factors_3):
    """A turned box, stretched or mirrored after its normals were made, or before."""
    turn_33 = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    shape = box(0.5, 0.3, 0.4, bevel=0.0)
    late = stretched(turned(mesh_of(shape), turn_33), factors_3)
    points_N3 = shape.points_N3 @ turn_33.T * factors_3
    faces_F3 = shape.faces_F3 if np.prod(factors_3) > 0 else shape.faces_F3[:, ::-1]
    soon = mesh_of(type(shape)(points_N3, faces_F3))
    np.testing.assert_allclose(late.normals_F33, soon.normals_F33, atol=1e-5)
    c2w_V44 = orbit_cameras(num_views=5, elevation_deg=20.0, radius=2.0).numpy()
    one, two = (render_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=48).rgba_VHW4 for mesh in (late, soon))
    assert (one[..., 3] > 0).mean() > 0.05
    np.testing.assert_allclose(one.astype(int), two.astype(int), atol=1)


def test_inside_of_an_open_surface_is_lit_as_if_turned_over():
    wall = box(0.02, 0.5, 0.5, bevel=0.0).move(x=0.49, z=-0.25)
    seen = []
    for faces_F3 in (wall.faces_F3, wall.faces_F3[:, ::-1]):
        mesh = mesh_of(type(wall)(wall.points_N3, faces_F3))
        c2w_V44 = orbit_cameras(num_views=1, elevation_deg=0.0, radius=2.0).numpy()
        seen.append(render_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=32).rgba_VHW4)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_texture_rows_start_at_the_top():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[0, 0], image[3, 3] = (255, 0, 0), (0, 0, 255)  # red upper left, blue lower right
    texels = sample_texture(image, np.array([[0.125, 0.875], [0.875, 0.125]], dtype=np.float32))
    np.testing.assert_allclose(texels, [[1, 0, 0], [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_texture_comes_out_upright_and_not_mirrored(tmp_path, suffix):
    """A y-up wall that faces the front (+z in the file) with four colours in its corners."""
    from PIL import Image

    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:32, :32], image[:32, 32:], image[32:, :32], image[32:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    vertices = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], dtype=float)
    uv = vertices[:, :2] + 0.5
    visual = trimesh.visual.TextureVisuals(uv=uv, image=Image.fromarray(image))
    wall = trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    path = tmp_path / f"wall{suffix}"
    wall.export(path)
    mesh = normalise(load_mesh(path))
    c2w_V44 = orbit_cameras(num_views=1, elevation_deg=0.0, radius=2.0).numpy()
    view_HW4 = render_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=64).rgba_VHW4[0]
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    corners = [view_HW4[r, c, :3] > 64 for r in (24, 40) for c in (24, 40)]
    assert [names[tuple(corner.astype(int).tolist())] for corner in corners] == ["red", "green", "blue", "white"]


def test_up_axis(tmp_path):
    tall = trimesh.creation.box(extents=(1.0, 2.0, 3.0))
    for suffix, longest in ((".obj", 0), (".stl", 2)):  # y-up turns the file's z to the front, along x
        path = tmp_path / f"tall{suffix}"
        tall.export(path)
        low, high = normalise(load_mesh(path)).bounds_23
        assert int(np.argmax(high - low)) == longest
        np.testing.assert_allclose(low, -high, atol=1e-6)
        np.testing.assert_allclose((high - low).max(), 1.0, atol=1e-6)


def test_vertex_and_face_colours(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=1)
    ball.visual.vertex_colors = np.tile([200, 40, 90, 255], (len(ball.vertices), 1))
    ball.export(tmp_path / "vertex.ply")
    mesh = load_mesh(tmp_path / "vertex.ply")
    np.testing.assert_allclose(linear_to_srgb(mesh.colors_F33[0, 0]) * 255, [200, 40, 90], atol=0.5)


def test_texture_coordinates_without_a_texture_give_the_default_grey(tmp_path):
    path = tmp_path / "bare.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n")
    mesh = load_mesh(path)
    assert mesh.textures == ()
    np.testing.assert_allclose(mesh.colors_F33, 0.7, atol=1e-6)


def test_crease_normals_smooth_a_ball_and_keep_a_cube():
    ball = ellipsoid(1.0, 1.0, 1.0, sides=40, rings=25)
    normals = crease_normals(ball.points_N3, ball.faces_F3)
    # facets of 9 degrees: vertex normals agree with the sphere's to within half of that
    assert np.degrees(np.arccos(np.clip((normals * ball.points_N3[ball.faces_F3]).sum(-1), -1, 1))).max() < 4.5
    cube = trimesh.creation.box()
    flat = crease_normals(cube.vertices, cube.faces)
    np.testing.assert_allclose(flat, np.repeat(cube.face_normals[:, None], 3, axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.glb", b"junk"), ("b.obj", b"v 0 0 0\n"), ("c.ply", b""), ("d.stl", b"solid x\nendsolid x\n")],
)
def test_what_is_no_mesh_is_refused_by_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_mesh(path)

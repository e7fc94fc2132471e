"""Gaussians of a known shape become a mesh of that shape, in those colours, in a file that other tools open."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage

from datasets.meshes.loading import load_mesh
from datasets.meshes.renderer import sample_texture
from datasets.meshes.scene import linear_to_srgb
from models.gaussians.rendering import render
from pipelines.assets import texels
from pipelines.assets.depth_maps import (
    DepthMaps,
    depth_maps_at,
    render_depth_maps,
    sphere_cameras,
    with_opaque_depths,
    without_floaters,
)
from pipelines.assets.mesh import UNLIT, write_glb
from pipelines.assets.surface import OPEN_SHARE, Volume, clean, close_gaps, extract_surface, filled, fuse, triangulate
from pipelines.assets.texels import cover_texels
from pipelines.assets.texture import colors_at, nearest_full, nearest_seen
from tests.tiny_gaussians import SMALL_OPTIONS, ball, direction_colors, fog, join, transparent
from utils.cameras import intrinsics, orbit_cameras
from utils.errors import DataError

RADIUS, CENTER = 0.4, (0.05, -0.1, 0.02)


def surface_of(gaussians, *, lowest_deg=-80.0, num_faces=1500):
    views = render_depth_maps(gaussians, num_views=16, size=96, lowest_deg=lowest_deg)
    return extract_surface(views, grid=48, num_faces=num_faces)


def glb_json(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<I", content[12:16])
    return json.loads(content[20 : 20 + length])


def test_a_ball_of_gaussians_becomes_a_closed_ball():
    surface = surface_of(ball(radius=RADIUS, center=CENTER))
    mesh = trimesh.Trimesh(surface.points_N3, surface.faces_F3, process=False)
    assert len(surface.faces_F3) <= 1500
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert mesh.volume > 0  # faces point outwards
    # The voxel is 0.018; Gaussians of 0.023 lie half in front of the surface they stand for.
    distances_N = np.linalg.norm(surface.points_N3 - np.array(CENTER), axis=1)
    assert np.abs(distances_N - RADIUS).max() < 0.03
    assert abs(np.median(distances_N) - RADIUS) < 0.015


def test_a_ball_of_fog_comes_out_nearly_as_large_as_it_looks():
    """The mean of the centres that a pixel shows lies 0.04 behind the ball's outline, at 0.333."""
    surface = surface_of(fog())
    assert 0.30 < np.median(np.linalg.norm(surface.points_N3, axis=1)) < 0.335


@pytest.mark.parametrize(("num_open", "outside"), [(1, False), (4, True)])
def test_a_hollow_must_be_open_to_more_than_a_few_cameras(num_open, outside):
    """Most of 24 cameras see a wall before the middle, and some see through it."""
    assert 1 < OPEN_SHARE * 24 < 4
    alphas_V1HW, depths_V1HW = torch.ones(24, 1, 32, 32), torch.full((24, 1, 32, 32), 1.5)
    alphas_V1HW[:num_open] = 0
    views = DepthMaps(
        c2w_V44=orbit_cameras(num_views=24, elevation_deg=0, radius=2.0),
        K_33=intrinsics(40.0, 32),
        colors_V3HW=torch.zeros(24, 3, 32, 32),
        alphas_V1HW=alphas_V1HW,
        depths_V1HW=depths_V1HW,
        low_3=torch.full((3,), -0.5),
        high_3=torch.full((3,), 0.5),
    )
    values_XYZ = fuse(views, grid=24).values_XYZ
    middle = tuple(size // 2 for size in values_XYZ.shape)
    assert (values_XYZ[middle] > 0) == outside


def test_what_no_camera_sees_is_closed():
    """Half a ball, open below, with cameras above only: the opening is closed and the inside is solid."""
    whole = ball(radius=RADIUS)
    half = whole.only(whole.means_BN3[0, :, 2] > 0)
    surface = surface_of(half, lowest_deg=10.0)
    mesh = trimesh.Trimesh(surface.points_N3, surface.faces_F3, process=False)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert mesh.volume > 0.9 * (2 / 3) * np.pi * RADIUS**3


def test_floaters_leave_no_parts():
    generator = torch.Generator().manual_seed(0)
    haze = ball(60, radius=0.02)
    haze = dataclasses.replace(
        haze,
        means_BN3=torch.rand(1, 60, 3, generator=generator) * 1.6 - 0.8,
        opacities_BN1=torch.rand(1, 60, 1, generator=generator) * 0.3,
        scales_BN3=torch.full((1, 60, 3), 0.02),
    )
    lump = ball(100, radius=0.03, center=(0.75, 0.7, 0.6))  # solid, but small and apart
    surface = surface_of(join(ball(radius=RADIUS), haze, lump))
    mesh = trimesh.Trimesh(surface.points_N3, surface.faces_F3, process=False)
    assert mesh.body_count == 1
    assert np.linalg.norm(surface.points_N3, axis=1).max() < RADIUS + 0.06


def test_gaussians_that_stand_alone_are_floaters():
    body = ball(800)
    alone = ball(20, radius=0.9)
    alone = dataclasses.replace(alone, scales_BN3=torch.full((1, 20, 3), 0.01))
    kept = without_floaters(join(body, alone))
    assert torch.equal(kept.means_BN3, body.means_BN3)
    # As far apart, but so large that they touch: a coarse part of the object.
    coarse = dataclasses.replace(alone, scales_BN3=torch.full((1, 20, 3), 0.4))
    assert without_floaters(join(body, coarse)).means_BN3.shape[1] == 820


def test_two_large_parts_both_stay():
    two = join(ball(800, radius=0.2, center=(-0.3, 0, 0)), ball(800, radius=0.2, center=(0.3, 0, 0)))
    surface = surface_of(two)
    assert trimesh.Trimesh(surface.points_N3, surface.faces_F3, process=False).body_count == 2


def test_narrow_gaps_in_a_depth_map_are_closed_and_wide_ones_kept():
    alpha, depth = torch.ones(1, 100, 100), torch.full((1, 100, 100), 2.0)
    depth[0, 20:22, 20:22] = 2.5  # one looks through at something behind
    alpha[0, 40:42, 40] = 0.1  # or at nothing
    depth[0, 60:80, 60:80] = 2.5  # a real hollow
    depth[0, :, 90] = 1.5  # a thin bar before the surface
    closed_alpha, closed_depth = close_gaps(alpha, depth, step=0.1)
    assert bool((closed_alpha == 1).all())
    expected = torch.full((1, 100, 100), 2.0)
    expected[0, 60:80, 60:80] = 2.5
    expected[0, :, 90] = 1.5
    assert torch.equal(closed_depth, expected)


def test_nothing_to_see_is_refused(tmp_path):
    with pytest.raises(DataError, match="opaque enough"):
        surface_of(transparent())
    faint = ball(200)
    faint = dataclasses.replace(faint, opacities_BN1=torch.full((1, 200, 1), 0.06), scales_BN3=faint.scales_BN3 / 4)
    with pytest.raises(DataError, match="too transparent"):
        write_glb(tmp_path / "mesh.glb", faint, SMALL_OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_volume_that_touches_its_border_is_closed():
    volume = Volume(values_XYZ=np.full((4, 4, 4), -1.0), origin_3=np.zeros(3), voxel=1.0)
    surface = triangulate(clean(volume))
    assert trimesh.Trimesh(surface.points_N3, surface.faces_F3).is_watertight


def test_an_enclosed_hollow_is_filled():
    x, y, z = np.mgrid[-12:13, -12:13, -12:13]
    radius = np.sqrt(x**2 + y**2 + z**2)
    shell = np.clip(np.maximum(radius - 10, 6 - radius) / 4, -1, 1)
    surface = triangulate(clean(Volume(values_XYZ=shell, origin_3=np.full(3, -12.0), voxel=1.0)))
    assert trimesh.Trimesh(surface.points_N3, surface.faces_F3).volume == pytest.approx(4 / 3 * np.pi * 1000, rel=0.05)


def test_holes_are_filled_as_scipy_fills_them():
    solid = np.random.default_rng(0).random((20, 21, 22)) < 0.75
    expected = ndimage.binary_fill_holes(solid)
    assert (expected != solid).any()
    np.testing.assert_array_equal(filled(solid), expected)


def test_cameras_surround_the_object():
    c2w_V44 = sphere_cameras(64, distance=2.0, lowest_deg=-30.0)
    torch.testing.assert_close(c2w_V44[:, :3, 3].norm(dim=-1), torch.full((64,), 2.0))
    assert float(c2w_V44[:, 2, 3].min()) > -1.0  # sin(-30°) · 2
    assert float(c2w_V44[:, 2, 3].max()) > 1.9
    assert float(c2w_V44[:, :2, 3].mean(dim=0).norm()) < 0.1


def test_texels_of_two_triangles_cover_a_square_once():
    square = np.array([[[1, 1], [9, 1], [9, 9]], [[1, 1], [9, 9], [1, 9]]], dtype=float)
    texels_T2, faces_T, weights_T3 = (values.numpy() for values in cover_texels(torch.from_numpy(square)))
    assert {tuple(texel) for texel in texels_T2} == {(x, y) for x in range(1, 9) for y in range(1, 9)}
    places = np.einsum("tk,tkc->tc", weights_T3, square[faces_T])
    np.testing.assert_allclose(places, texels_T2 + 0.5, atol=1e-12)


def test_texels_are_the_same_in_parts(monkeypatch):
    triangles = 60 * torch.rand(40, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    triangles[7, 2] = triangles[7, 1]  # without an area
    whole = cover_texels(triangles)
    monkeypatch.setattr(texels, "CHUNK_TEXELS", 500)
    for found, wanted in zip(cover_texels(triangles), whole, strict=True):
        assert torch.equal(found, wanted)
    assert 7 not in whole[1]


def test_what_stands_behind_takes_no_colour_of_what_stands_before():
    """A camera sees a wall, red on the left and blue on the right; behind the blue half nobody sees anything."""
    colors = torch.zeros(1, 3, 32, 32)
    colors[:, 0, :, :16], colors[:, 2, :, 16:] = 1.0, 1.0
    views = DepthMaps(
        low_3=torch.tensor([-1.0, -1.0, 0.0]),
        high_3=torch.tensor([1.0, 1.0, 3.0]),
        c2w_V44=torch.eye(4)[None],
        K_33=torch.tensor([[32.0, 0.0, 16.0], [0.0, 32.0, 16.0], [0.0, 0.0, 1.0]]),
        colors_V3HW=colors,
        alphas_V1HW=torch.ones(1, 1, 32, 32),
        depths_V1HW=torch.ones(1, 1, 32, 32),
    )
    on_the_wall, behind = (-0.1, 0.0, 1.0), (0.4, 0.0, 2.0)
    facing = torch.tensor([[0.0, 0.0, -1.0]] * 2)
    seen = colors_at(torch.tensor([on_the_wall, behind]), facing, views)
    np.testing.assert_allclose(seen, [[1, 0, 0], [1, 0, 0]], atol=1e-6)  # the nearest place that is seen
    at_the_wall = colors_at(torch.tensor([on_the_wall, (0.2, 0.0, 1.02)]), facing, views)
    np.testing.assert_allclose(at_the_wall, [[1, 0, 0], [0, 0, 1]], atol=1e-6)  # so little behind is still the wall


def test_what_no_view_sees_takes_the_mean_colour_of_the_nearest_cell():
    """Red points in one cell, blue ones far away; grey is what an unseen point has before."""
    places = torch.tensor([[0.0, 0, 0], [0.001, 0, 0], [1, 0, 0], [0.1, 0, 0], [0.101, 0, 0], [0.8, 0, 0]])
    colors = torch.tensor([[1.0, 0, 0], [0.5, 0, 0], [0, 0, 1]] + [[0.5, 0.5, 0.5]] * 3)
    seen = torch.tensor([True, True, True, False, False, False])
    expected = torch.tensor([[0.75, 0, 0], [0.75, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(nearest_seen(places, colors, seen), expected)


def test_empty_texels_take_the_nearest_colour():
    empty = np.ones((5, 9), dtype=np.uint8)
    empty[2, [1, 7]] = 0
    nearest = nearest_full(empty)
    assert nearest.min() == 1
    assert nearest[2, 1] != nearest[2, 7]
    assert (nearest[:, :4] == nearest[2, 1]).all()
    assert (nearest[:, 5:] == nearest[2, 7]).all()


@pytest.fixture(scope="module")
def textured(tmp_path_factory):
    path = tmp_path_factory.mktemp("glb") / "mesh.glb"
    return path, write_glb(path, ball(radius=RADIUS), SMALL_OPTIONS)


def test_the_file_says_what_it_holds(textured):
    path, facts = textured
    assert facts["watertight"] is True
    assert facts["faces"] <= 1500
    mesh = trimesh.load(path, force="mesh")
    assert mesh.metadata["watertight"] is True
    assert "seams" in mesh.metadata["note"]
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight
    tree = glb_json(path)
    assert tree["extensionsUsed"] == [UNLIT]
    assert "extensionsRequired" not in tree
    assert tree["materials"][0]["extensions"] == {UNLIT: {}}


def corners(mesh):
    """Positions and directions of all corners of a mesh that lies around the origin."""
    points = mesh.points_F33.reshape(-1, 3)
    return points, points / np.linalg.norm(points, axis=1, keepdims=True)


def test_the_texture_is_compressed_quickly(textured):
    """The second byte of a stream of zlib tells the level in its two highest bits: 0 for level 1."""
    content = textured[0].read_bytes()
    stream = content[content.index(b"IDAT") + 4 :]
    assert stream[0] == 0x78
    assert stream[1] >> 6 == 0


def test_the_texture_shows_the_colours_where_they_are(textured):
    """Read back as z-up, every corner has the colour of its direction; so the axes are right as well."""
    mesh = load_mesh(textured[0])
    _, direction = corners(mesh)
    seen = linear_to_srgb(sample_texture(mesh.textures[0].pixels_HWC, mesh.uvs_F32.reshape(-1, 2)))
    assert np.abs(seen - direction_colors(direction)).mean() < 0.02


def test_the_file_is_y_up_with_its_front_along_z(textured):
    """glTF's up (+y) is the world's z, its front (+z) the world's x: read raw, blue grows along y and red along z."""
    mesh = load_mesh(textured[0], up="z")
    _, direction = corners(mesh)
    seen = linear_to_srgb(sample_texture(mesh.textures[0].pixels_HWC, mesh.uvs_F32.reshape(-1, 2)))
    np.testing.assert_allclose(seen[direction[:, 1] > 0.95].mean(axis=0), [0.5, 0.5, 0.9], atol=0.05)
    np.testing.assert_allclose(seen[direction[:, 2] > 0.95].mean(axis=0), [0.9, 0.5, 0.5], atol=0.05)


def test_vertex_colours_instead_of_a_texture(tmp_path):
    options = dataclasses.replace(SMALL_OPTIONS, texture=0, unlit=False)
    write_glb(tmp_path / "mesh.glb", ball(radius=RADIUS), options)
    assert trimesh.load(tmp_path / "mesh.glb", force="mesh").is_watertight
    mesh = load_mesh(tmp_path / "mesh.glb")
    _, direction = corners(mesh)
    assert np.abs(linear_to_srgb(mesh.colors_F33.reshape(-1, 3)) - direction_colors(direction)).mean() < 0.02
    assert "extensionsUsed" not in glb_json(tmp_path / "mesh.glb")


def test_half_transparent_gaussians_have_the_depth_of_their_surface():
    """As they are, they show the far side of the ball too, and the mean depth lies inside it."""
    faint = ball(1500, radius=RADIUS)
    faint = dataclasses.replace(faint, opacities_BN1=torch.full_like(faint.opacities_BN1, 0.4))
    c2w_V44, K_33 = orbit_cameras(num_views=2, elevation_deg=10, radius=2.0), intrinsics(30.0, 48)

    def draw(c2w_V44, K_33, size, background):
        return render(faint, c2w_V44[None], K_33, size=size, background=background)

    corner = torch.full((3,), RADIUS)
    plain = depth_maps_at(draw, c2w_V44, K_33, (48, 48), -corner, corner)
    solid = with_opaque_depths(plain, faint)
    assert float(plain.depths_V1HW[:, 0, 24, 24].mean()) > 2 - RADIUS + 0.1
    torch.testing.assert_close(solid.depths_V1HW[:, 0, 24, 24], torch.full((2,), 2 - RADIUS), atol=0.03, rtol=0)
    assert torch.equal(solid.alphas_V1HW, plain.alphas_V1HW)

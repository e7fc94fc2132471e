"""Chamfer distance and F-score where they are known in closed form."""

import numpy as np
import pytest
import trimesh

from datasets.meshes.scene import RenderMesh
from pipelines.evaluation.mesh_metrics import (
    is_closed,
    is_inside,
    is_outer,
    sample_surface,
    surface_distance,
    volume_iou,
)
from utils.errors import DataError


def as_mesh(mesh: trimesh.Trimesh) -> RenderMesh:
    triangles = np.asarray(mesh.triangles)
    return RenderMesh(
        points_F33=triangles, normals_F33=np.zeros_like(triangles), colors_F33=np.zeros(triangles.shape, np.float32)
    )


def sphere(radius: float, center=(0.0, 0.0, 0.0)) -> RenderMesh:
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return as_mesh(mesh.apply_translation(center))


def test_spheres_in_each_other_are_apart_by_the_difference_of_their_radii():
    found = surface_distance(sphere(0.55), sphere(0.5), num_points=20_000, thresholds=(0.04, 0.06))
    # 1 is the true sphere's diameter; the nearest sample lies up to floor beside the nearest point
    assert found.accuracy == pytest.approx(0.05, abs=0.001)
    assert found.completeness == pytest.approx(0.05, abs=0.001)
    assert found.chamfer == pytest.approx((found.accuracy + found.completeness) / 2)
    assert (found.f_scores[0.04], found.f_scores[0.06]) == (0.0, 1.0)


def test_unions_of_closed_parts_are_closed_and_a_missing_face_opens_them():
    ball, box = trimesh.creation.icosphere(subdivisions=2), trimesh.creation.box()
    both = trimesh.util.concatenate([ball, box, box.copy().apply_translation((1.0, 0, 0))])  # the boxes share a side
    assert is_closed(as_mesh(both))
    one_less = both.submesh([np.arange(1, len(both.faces))], append=True)
    assert not is_closed(as_mesh(one_less))
    turned = both.copy()
    turned.faces[0] = turned.faces[0, ::-1]
    assert not is_closed(as_mesh(turned))


def test_a_shifted_sphere():
    """A point of a sphere shifted by s, in direction cos = u, is |sqrt(r² + 2 r s u + s²) - r| off; u is uniform."""
    radius, shift = 0.5, 0.1
    u = np.linspace(-1, 1, 100_001)
    apart = np.abs(np.sqrt(radius**2 + 2 * radius * shift * u + shift**2) - radius)
    found = surface_distance(sphere(radius, (shift, 0, 0)), sphere(radius), num_points=40_000, thresholds=(0.05,))
    assert found.accuracy == pytest.approx(apart.mean(), abs=0.001)
    assert found.completeness == pytest.approx(apart.mean(), abs=0.001)
    assert found.f_scores[0.05] == pytest.approx((apart < 0.05).mean(), abs=0.01)


def test_what_is_missing_lowers_recall_only():
    """Half a sphere: what is there is right; of the rest, a ring along the rim is near."""
    whole = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    half = as_mesh(whole.submesh([np.flatnonzero(whole.triangles_center[:, 2] > 0)], append=True))
    found = surface_distance(half, as_mesh(whole), num_points=40_000, thresholds=(0.05,))
    assert found.accuracy < 2 * found.floor
    # a chord of 0.05 from the rim spans the angle 2 asin(0.05), so the height 0.5 · sin of it
    recall = 0.5 + 0.5 * np.sin(2 * np.arcsin(0.05))
    assert found.f_scores[0.05] == pytest.approx(2 * recall / (1 + recall), abs=0.01)


def test_units_are_sides_of_the_true_bounding_cube():
    small = surface_distance(sphere(0.55), sphere(0.5), num_points=5000)
    large = surface_distance(sphere(5.5), sphere(5.0), num_points=5000)
    assert large.chamfer == pytest.approx(small.chamfer, rel=1e-3)
    assert large.f_scores == small.f_scores


def test_the_same_surface_is_at_the_floor():
    found = surface_distance(sphere(0.5), sphere(0.5), num_points=20_000)
    expected = 0.5 * np.sqrt(np.pi / 20_000)  # the mean distance to the nearest of a Poisson process on a plane
    assert found.floor == pytest.approx(expected, rel=0.05)
    assert found.chamfer == pytest.approx(found.floor, rel=0.05)


def test_samples_are_uniform_by_area():
    points = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 5], [3, 0, 5], [0, 1, 5]]], dtype=float)
    mesh = RenderMesh(points_F33=points, normals_F33=points, colors_F33=points)
    samples = sample_surface(mesh, num_points=20_000, seed=0)
    assert (samples[:, 2] > 2.5).mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(samples[samples[:, 2] > 2.5].mean(axis=0), [1, 1 / 3, 5], atol=0.02)


def test_what_nobody_can_see_is_left_out():
    """A ball inside a closed one, and another that is half sunk into it."""
    shell, hidden = trimesh.creation.icosphere(radius=0.5), trimesh.creation.icosphere(radius=0.3)
    sunk = trimesh.creation.icosphere(radius=0.2).apply_translation([0.5, 0, 0])
    mesh = as_mesh(trimesh.util.concatenate([shell, hidden, sunk]))
    points = np.array([[0, 0, 0.5], [0, 0, 0.3], [0.7, 0, 0], [0.3, 0, 0]]) * 0.99  # facets lie inside the spheres
    assert is_outer(mesh, points + 0.01 * np.array([[0, 0, 1], [0, 0, 1], [1, 0, 0], [-1, 0, 0]])).tolist() == [
        True, False, True, False
    ]  # fmt: skip
    whole = surface_distance(as_mesh(shell), as_mesh(trimesh.util.concatenate([shell, hidden])), num_points=5000)
    outer = surface_distance(
        as_mesh(shell), as_mesh(trimesh.util.concatenate([shell, hidden])), num_points=5000, outer=True
    )
    assert whole.completeness > 0.04
    assert outer.completeness == pytest.approx(outer.floor, rel=0.1)


def test_a_mesh_without_area_is_refused():
    flat = np.zeros((2, 3, 3))
    with pytest.raises(DataError, match="no area"):
        sample_surface(RenderMesh(points_F33=flat, normals_F33=flat, colors_F33=flat), num_points=10, seed=0)


def test_iou_of_boxes_is_that_of_the_formula():
    box, moved = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1, 1, 1))
    moved.apply_translation((0.5, 0, 0))
    assert volume_iou(as_mesh(box), as_mesh(box)) == 1
    assert volume_iou(as_mesh(box), as_mesh(moved), grid=60) == pytest.approx(1 / 3, abs=0.02)
    half = trimesh.creation.box((1, 0.5, 1))
    assert volume_iou(as_mesh(box), as_mesh(half)) == pytest.approx(0.5, abs=0.02)


def test_overlapping_parts_count_once_and_the_inside_is_where_it_is():
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    twice = trimesh.util.concatenate([ball, ball.copy().apply_translation((0.1, 0, 0))])
    one_XYZ = is_inside(as_mesh(ball), np.full(3, -0.5), side=1.0, grid=32)
    both_XYZ = is_inside(as_mesh(twice), np.full(3, -0.5), side=1.0, grid=32)
    places = (np.indices((32, 32, 32)) + 0.5) / 32 - 0.5
    assert (one_XYZ == (np.linalg.norm(places, axis=0) < 0.5)).mean() > 0.99  # the mesh is a little smaller
    assert bool((both_XYZ >= one_XYZ).all())
    assert one_XYZ.mean() == pytest.approx(np.pi / 6, abs=0.01)


def test_meshes_without_a_volume_have_no_iou():
    inside_out = trimesh.creation.box((1, 1, 1))
    inside_out.invert()
    with pytest.raises(DataError, match="enclose no volume"):
        volume_iou(as_mesh(inside_out), as_mesh(inside_out))

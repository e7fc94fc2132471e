"""Charts cover the surface once, do not cover themselves or each other, and keep lengths nearly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from pipelines.assets.charts import STEEP, neighbours, towards, unfold
from pipelines.assets.packing import PADDING, outlines, pack
from pipelines.assets.texels import cover_texels
from utils.errors import DataError

SIZE = 256


def unfolded(mesh, size=SIZE):
    return unfold(np.asarray(mesh.vertices), np.asarray(mesh.faces), size=size)


def charts_of(cut_F3):
    """The chart of each point: charts share no points."""
    links = trimesh.graph.connected_component_labels(cut_F3[:, [0, 1, 1, 2]].reshape(-1, 2))
    return links[cut_F3[:, 0]]


def texels(cut_F3, uvs_N2, size=SIZE):
    return tuple(values.numpy() for values in cover_texels(torch.from_numpy(uvs_N2[cut_F3] * size)))


def spiral(turns=2.5, steps=60):
    """A ramp around an axis, whose turns lie above each other and all look upwards."""
    angle = np.linspace(0, 2 * np.pi * turns, steps)
    rims = [np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.08 * angle], axis=1) for radius in (0.3, 1.0)]
    inner, outer = np.arange(steps - 1), np.arange(steps - 1) + steps
    faces = np.concatenate([np.stack([inner, outer, outer + 1], 1), np.stack([inner, outer + 1, inner + 1], 1)])
    return trimesh.Trimesh(np.concatenate(rims), faces, process=False)


def test_a_box_has_six_charts_without_distortion():
    box = trimesh.creation.box((1.0, 0.7, 0.4)).subdivide().subdivide()
    source_N, cut_F3, uvs_N2 = unfolded(box)
    assert charts_of(cut_F3).max() == 5
    np.testing.assert_array_equal(source_N[cut_F3], box.faces)
    sides = [np.linalg.norm(points[:, [1, 2, 0]] - points, axis=-1) for points in (box.triangles, uvs_N2[cut_F3])]
    np.testing.assert_allclose(sides[1] / sides[0], (sides[1] / sides[0])[0, 0], rtol=1e-9)


def test_no_face_is_mirrored_or_lost():
    ball = trimesh.creation.icosphere(subdivisions=4)
    _, cut_F3, uvs_N2 = unfolded(ball)
    a, b, c = uvs_N2[cut_F3].transpose(1, 0, 2)
    flat_F = 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    share_F = flat_F / ball.area_faces
    assert share_F.min() > STEEP * share_F.max()  # counter-clockwise, and not narrower than the steepest face may be
    assert 0 <= uvs_N2.min()
    assert uvs_N2.max() <= 1


def test_charts_fill_the_texture_and_keep_apart():
    ball = trimesh.creation.icosphere(subdivisions=4)
    _, cut_F3, uvs_N2 = unfolded(ball)
    texels_T2, faces_T, _ = texels(cut_F3, uvs_N2)
    assert len(texels_T2) > 0.5 * SIZE**2
    owner_HW = np.full((SIZE + 2 * PADDING, SIZE + 2 * PADDING), -1)
    chart_T = charts_of(cut_F3)[faces_T]
    owner_HW[texels_T2[:, 1] + PADDING, texels_T2[:, 0] + PADDING] = chart_T
    for down in range(PADDING):
        for right in range(PADDING):
            beside_T = owner_HW[texels_T2[:, 1] + PADDING + down, texels_T2[:, 0] + PADDING + right]
            assert ((beside_T == -1) | (beside_T == chart_T)).all()


def test_a_spiral_is_peeled_into_layers():
    mesh = spiral()
    assert (mesh.face_normals[:, 2] > 0.7).all()  # one direction for all, so that one chart would cover itself
    source_N, cut_F3, uvs_N2 = unfolded(mesh)
    texels_T2, faces_T, weights_T3 = texels(cut_F3, uvs_N2)
    height_T = (weights_T3 * mesh.vertices[source_N][cut_F3][faces_T, :, 2]).sum(axis=1)
    key_T = texels_T2[:, 1] * SIZE + texels_T2[:, 0]
    order_T = np.argsort(key_T, kind="stable")
    twice = np.flatnonzero(np.diff(key_T[order_T]) == 0)
    apart = np.abs(height_T[order_T][twice] - height_T[order_T][twice + 1]) > 0.2  # a turn is 0.5 high
    assert apart.sum() < 1e-3 * len(texels_T2)
    assert charts_of(cut_F3).max() <= 6  # and not into single faces


@pytest.mark.parametrize(("height", "joins"), [(0.6, True), (0.2, False)])
def test_a_small_chart_joins_its_neighbour_unless_it_is_too_steep(height, joins):
    """A large face that looks up, and a chain of tiny ones beside it, longer than the smoothing reaches."""
    normals_F3 = np.tile([(1 - height**2) ** 0.5, 0.0, height], (20, 1))
    normals_F3[0] = 0.0, 0.0, 1.0
    weight_F = np.r_[1e4, np.ones(19)]
    pairs_E2 = np.stack([np.arange(19), np.arange(1, 20)], axis=1)
    assert (height >= STEEP) == joins
    label_F = towards(normals_F3, weight_F, pairs_E2, np.ones(19))
    assert label_F.tolist() == [2] + [2 if joins else 0] * 19


def test_noise_makes_no_crumbs():
    ball = trimesh.creation.icosphere(subdivisions=4)
    noise_N1 = np.random.default_rng(0).normal(size=(len(ball.vertices), 1))
    noisy = trimesh.Trimesh(ball.vertices * (1 + 0.006 * noise_N1), ball.faces, process=False)
    assert charts_of(unfolded(noisy)[1]).max() < 30


def test_edges_between_neighbours_have_their_lengths():
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=float)
    pairs_E2, lengths_E = neighbours(square, np.array([[0, 1, 2], [0, 2, 3]]))
    assert pairs_E2.tolist() == [[0, 1]]
    assert lengths_E == pytest.approx([2**0.5])


def test_outlines_follow_a_triangle():
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    widths_K, low_C, high_C = outlines(corners, np.array([[0, 1], [1, 2], [0, 2]]), np.zeros(3, dtype=int))
    assert widths_K.tolist() == [4 + PADDING]
    np.testing.assert_allclose(low_C, -1)
    np.testing.assert_allclose(high_C, [5, 5, 5, 4, 3, 2])  # half the padding above and beside the slope


@pytest.mark.parametrize("scale", [5.0, 60.0, 2000.0])
def test_charts_grow_or_shrink_until_they_fill_the_square(scale):
    """Squares of side 1: 16 of them with their padding fill a square of 128 texels."""
    corners = np.array([[0.0, 0.0], [1, 0], [1, 1], [0, 1]])
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * chart for chart in range(16)])
    placed = pack(np.tile(corners, (16, 1)), faces, np.arange(64) // 4, size=128, scale=scale)
    assert placed.min() >= 0
    assert placed.max() <= 128
    sides = np.linalg.norm(placed[1::4] - placed[::4], axis=1)
    assert 24 < sides.min() <= 30  # 30 is the best possible, in four rows
    assert np.ptp(sides) < 1e-9


def test_too_many_charts_are_refused():
    rng = np.random.default_rng(0)
    corners_FN2 = rng.random((2000, 1, 2)) * 0.01 + rng.random((2000, 3, 2)) * 1e-3
    points = corners_FN2.reshape(-1, 2)
    with pytest.raises(DataError, match=r"does not fit one texture of 64 pixels; increase assets\.texture"):
        pack(points, np.arange(6000).reshape(-1, 3), np.arange(6000) // 3, size=64, scale=1e4)


def test_a_mesh_without_area_is_refused():
    with pytest.raises(DataError, match=r"no area.*set assets\.texture to 0"):
        unfold(np.zeros((3, 3)), np.array([[0, 1, 2]]), size=64)


@pytest.mark.gpu
def test_charts_are_the_same_on_a_gpu():
    mesh = spiral()
    found = [unfold(np.asarray(mesh.vertices), np.asarray(mesh.faces), size=SIZE, device=d) for d in ("cpu", "cuda")]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)

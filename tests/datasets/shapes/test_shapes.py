"""Random shapes: deterministic, closed where nothing was cut, in one piece, and with textures that have no seam."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from datasets.shapes import redraw_shape, sample_shape
from datasets.shapes.forms import DEFORMATIONS, FORMS, draw_form, fitted
from datasets.shapes.surfaces import Surface, cut_open, cut_shell
from datasets.shapes.textures import PATTERNS, SIZE, draw_palette, draw_texture, holes_left
from datasets.zoo.kinds import MAX_RADIUS
from utils.errors import ConfigError, DataError


def open_edges(surface: Surface) -> int:
    """The number of edges (by place) that do not have exactly one face on each side."""
    places = np.unique(np.round(surface.points_N3, 6), axis=0, return_inverse=True)[1].reshape(-1)
    faces = places[surface.faces_F3]
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    there, back = ({tuple(edge) for edge in way} for way in (edges.tolist(), edges[:, ::-1].tolist()))
    return len(there ^ back)


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_closed_and_face_outwards(name):
    surface = fitted(FORMS[name](np.random.default_rng(1))).outwards()
    assert surface.volume > 0.01
    assert open_edges(surface) == 0
    assert np.abs(surface.points_N3).max() == pytest.approx(1)


@pytest.mark.parametrize("name", DEFORMATIONS)
def test_deformations_move_every_side_of_a_seam_alike(name):
    rng = np.random.default_rng(2)
    box = FORMS["box"](np.random.default_rng(4))
    points_N3 = DEFORMATIONS[name](box.points_N3, rng)
    assert not np.allclose(points_N3, box.points_N3)
    assert open_edges(box.moved(points_N3)) == 0


def test_a_hollow_body_has_a_wall_and_no_open_edge():
    ball = FORMS["ball"](np.random.default_rng(0)).outwards()
    shell = cut_shell(ball, 0.5 - ball.points_N3[:, 2], thickness=0.1)
    assert open_edges(shell) == 0
    radius_N = np.linalg.norm(shell.points_N3, axis=1)
    assert radius_N.min() == pytest.approx(0.9, abs=0.01)
    assert radius_N.max() == pytest.approx(1, abs=0.01)
    # A spherical shell (4/3 pi (1 - 0.9^3)) without its cap: a sphere's area is even in z, so 3/4 of it remain.
    assert shell.volume == pytest.approx(0.75 * 4 / 3 * np.pi * (1 - 0.9**3), rel=0.05)


def test_a_cut_is_exactly_where_the_field_is_zero():
    ball = FORMS["ball"](np.random.default_rng(0))
    half = cut_open(ball, ball.points_N3[:, 1] - 0.2)
    assert half.points_N3[:, 1].min() == pytest.approx(0.2, abs=1e-9)


@pytest.mark.parametrize("name", [*PATTERNS, "holes"])
def test_textures_have_no_seam(name):
    mask_HW = (PATTERNS | {"holes": holes_left})[name](np.random.default_rng(3))
    assert mask_HW.shape == (SIZE, SIZE)
    assert 0 <= mask_HW.min() < mask_HW.max() <= 1
    if name != "lettered":  # signs are clipped by the edge
        steps = np.abs(np.diff(mask_HW, axis=1)).mean(axis=0)
        assert np.abs(mask_HW[:, 0] - mask_HW[:, -1]).mean() <= 2.5 * steps.max() + 1e-3


def test_half_of_the_palettes_are_as_weak_as_photographs():
    rng = np.random.default_rng(0)
    chroma = np.array([np.hypot(*draw_palette(rng)[:, 1:].T).max() for _ in range(200)])
    assert 0.35 < (chroma <= 0.16).mean() < 0.7


def test_a_texture_is_described_without_being_made():
    palette = draw_palette(np.random.default_rng(0))
    for seed in range(6):
        made = draw_texture(np.random.default_rng(seed), palette, holes=seed % 2 == 0)
        said = draw_texture(np.random.default_rng(seed), palette, holes=seed % 2 == 0, with_pixels=False)
        assert made.words == said.words
    assert made.pixels_HWC.shape == (SIZE, SIZE, 3)


def test_one_seed_gives_one_shape():
    first, second = sample_shape(0), sample_shape(0)
    np.testing.assert_array_equal(first.mesh.points_F33, second.mesh.points_F33)
    for one, other in zip(first.mesh.textures, second.mesh.textures, strict=True):
        np.testing.assert_array_equal(one.pixels_HWC, other.pixels_HWC)
    assert sample_shape(0, with_mesh=False).attributes() == first.attributes()
    assert sample_shape(0, with_mesh=False).caption == first.caption
    assert sample_shape(0, "held_out", with_mesh=False).forms != first.forms
    np.testing.assert_array_equal(redraw_shape(first.attributes()).mesh.points_F33, first.mesh.points_F33)
    with pytest.raises(DataError, match="make the folder again"):
        redraw_shape(first.attributes() | {"version": 0})
    with pytest.raises(ConfigError, match="split must be one of train, held_out"):
        sample_shape(0, "test")


def test_parts_touch_each_other_and_lie_in_the_picture():
    for seed in (2, 6, 15):
        mesh = sample_shape(seed).mesh
        points_N3 = mesh.points_F33.reshape(-1, 3)
        assert np.isfinite(points_N3).all()
        assert np.isfinite(mesh.normals_F33).all()
        assert np.linalg.norm(points_N3, axis=1).max() <= MAX_RADIUS + 1e-5
        groups = [points_N3[np.repeat(mesh.texture_F == number, 3)][::5] for number in range(len(mesh.textures))]
        joined, rest = groups[:1], groups[1:]
        while rest:  # the vertices of a surface lie up to 0.1 apart
            near = [k for k, one in enumerate(rest) if cKDTree(np.concatenate(joined)).query(one)[0].min() < 0.1]
            assert near, f"shape {seed} falls apart"
            joined.append(rest.pop(near[0]))


def test_mirrored_shapes_are_symmetric():
    drawn = (sample_shape(seed, with_mesh=False) for seed in range(40))
    shape = sample_shape(next(one.seed for one in drawn if "symmetric" in one.caption))
    points_N3 = np.unique(np.round(shape.mesh.points_F33.reshape(-1, 3), 4), axis=0)
    assert cKDTree(points_N3).query(points_N3 * [1, -1, 1])[0].max() < 1e-3


def test_captions_name_forms_and_colours():
    form = draw_form(np.random.default_rng(5))[1]
    assert form.split()[-1] in FORMS
    for seed in range(12):
        shape = sample_shape(seed, with_mesh=False)
        assert shape.caption.startswith("a random ")
        assert any(words in shape.caption for words in shape.forms)

"""The zoo: deterministic, truthful, held-out combinations apart, and every kind sound."""

import numpy as np
import pytest

from datasets.zoo import COLORS, KINDS, is_held_out, redraw, sample_object
from datasets.zoo.kinds import MAX_RADIUS
from datasets.zoo.sample import write_caption
from utils.errors import ConfigError, DataError


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_and_part_is_sound(kind):
    parts = set()
    for seed in range(6):
        drawn = sample_object(seed, kinds=(kind,))
        parts.add(drawn.part)
        mesh = drawn.mesh
        assert np.isfinite(mesh.points_F33).all()
        assert np.isfinite(mesh.normals_F33).all()
        assert len(mesh.points_F33) < 6500
        low, high = mesh.bounds_23
        assert (high - low).max() <= 1.0 + 1e-5
        np.testing.assert_allclose(low, -high, atol=1e-5)
        assert np.linalg.norm(mesh.points_F33, axis=-1).max() <= MAX_RADIUS + 1e-5
    assert parts <= set(KINDS[kind].parts)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_named_part_is_really_painted(kind):
    """The caption's part colour covers faces of the mesh, for every part that the kind names."""
    seen = set()
    for seed in range(60):
        drawn = sample_object(seed, kinds=(kind,), with_mesh=False)
        if drawn.part in seen:
            continue
        seen.add(drawn.part)
        drawn = sample_object(seed, kinds=(kind,))
        for color in (drawn.color, drawn.part_color):
            srgb = np.array(COLORS[color]) / 255
            linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
            near = np.abs(drawn.mesh.colors_F33[:, 0] - linear).max(axis=1) < 0.08  # the jitter, in linear light
            assert near.sum() >= 20, f"{drawn.caption}: no {color} faces"
    assert seen == set(KINDS[kind].parts)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_shapes_face_outwards(kind):
    """Signed volume of each object: a shape turned inside out would count negative."""
    points = sample_object(3, kinds=(kind,)).mesh.points_F33.astype(np.float64)
    volume = np.einsum("fi,fi->f", points[:, 0], np.cross(points[:, 1], points[:, 2])).sum() / 6
    assert volume > 0.001


def test_one_seed_gives_one_object():
    first, second = sample_object(41), sample_object(41)
    np.testing.assert_array_equal(first.mesh.points_F33, second.mesh.points_F33)
    np.testing.assert_array_equal(first.mesh.colors_F33, second.mesh.colors_F33)
    assert (first.caption, first.attributes()) == (second.caption, second.attributes())
    assert sample_object(41, with_mesh=False).caption == first.caption


def test_splits_share_no_combination():
    def combinations(split: str) -> set[tuple[str, str, str, str]]:
        drawn = [sample_object(seed, split, with_mesh=False) for seed in range(1000)]
        return {(d.kind, d.color, d.part, d.part_color) for d in drawn}

    train, held_out = combinations("train"), combinations("held_out")
    assert not train & held_out
    assert all(is_held_out(*c) for c in held_out)
    assert not any(is_held_out(*c) for c in train)


def test_a_tenth_is_held_out():
    names = list(COLORS)
    all_of_them = [
        (k.name, a, part, b) for k in KINDS.values() for part in k.parts for a in names for b in names if a != b
    ]
    share = np.mean([is_held_out(*c) for c in all_of_them])
    # binomial: three standard deviations of a tenth over this many
    assert abs(share - 0.1) < 3 * np.sqrt(0.09 / len(all_of_them))


def test_every_kind_and_colour_occurs_in_training():
    drawn = [sample_object(seed, with_mesh=False) for seed in range(6000)]
    assert {(d.kind, d.color) for d in drawn} == {(k, c) for k in KINDS for c in COLORS}


def test_captions():
    assert write_caption("mug", "red", "handle", "white") == "a red mug with a white handle"
    assert write_caption("umbrella", "orange", "border", "orange") == "an orange umbrella with an orange border"
    assert write_caption("car", "blue", "wheels", "orange") == "a blue car with orange wheels"
    captions = [sample_object(seed, with_mesh=False).caption for seed in range(400)]
    first_form = np.mean([" with a" in c or " with " in c for c in captions])
    assert first_form > 0.6
    assert len(KINDS) >= 24


def test_attributes_lead_back_to_the_object():
    drawn = sample_object(41, "held_out")
    assert np.array_equal(redraw(drawn.attributes()).mesh.points_F33, drawn.mesh.points_F33)
    with pytest.raises(DataError, match="seed 41 is no longer the mug"):
        redraw({**drawn.attributes(), "kind": "mug"})


def test_unknown_kind_and_split_are_refused():
    with pytest.raises(ConfigError, match="unicorn"):
        sample_object(0, kinds=("unicorn",))
    with pytest.raises(ConfigError, match="split"):
        sample_object(0, "test")

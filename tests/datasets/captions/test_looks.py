"""Colours and parts that are seen on a mesh, and the words that are made of them."""

from dataclasses import replace

import numpy as np
import pytest

from datasets.captions.color_names import oklab
from datasets.captions.looks import Look, describe_colors, look_of
from datasets.captions.wording import bare_noun, captions_of
from datasets.meshes.scene import normalise, srgb_to_linear
from datasets.zoo import sample_object

WHITE, BLUE, RED, GREEN, YELLOW = (240, 240, 240), (40, 80, 210), (200, 30, 30), (50, 150, 50), (250, 210, 40)


def seen(*bands):
    """The look of an object whose colours lie in bands from its bottom to its top: (colour, number of pixels)."""
    lab = [np.repeat(oklab(srgb_to_linear(np.array([rgb]) / 255)), num, axis=0) for rgb, num in bands]
    return describe_colors(np.concatenate(lab), np.linspace(0, 1, sum(num for _, num in bands)))


def test_one_colour():
    assert seen((RED, 100)) == Look(colors=("red",), shares={"red": 1.0})


def test_the_colour_of_the_upper_and_the_lower_end():
    look = seen((WHITE, 75), (BLUE, 25))
    assert (look.colors, look.top, look.bottom) == (("white",), "blue", "")
    assert captions_of("a teapot", look)[0] == "a white teapot with a blue lid"
    look = seen((BLUE, 22), (WHITE, 78))
    assert captions_of("an armchair", look)[0] == "a white armchair with blue legs"
    assert captions_of("a gadget", look)[0] == "a white gadget with a blue base"


def test_two_colours_all_over_and_details():
    mixed = seen(*[(WHITE, 1), (RED, 1)] * 40)
    assert mixed.colors == ("white", "red")
    assert captions_of("a mug", mixed)[0] == "a white and red mug"
    assert captions_of("a mug", seen(*[(WHITE, 9), (RED, 1)] * 9))[0] == "a white mug with red details"


def test_many_colours():
    look = seen(*[(RED, 1), (GREEN, 1), (BLUE, 1), (YELLOW, 1)] * 20)
    found = captions_of("a ball", look)
    assert found[0] == "a colourful ball"
    assert "a ball in many colours" in found


def test_captions_differ_and_the_plain_noun_is_one_of_them():
    found = captions_of("a red chair", seen((WHITE, 75), (BLUE, 25)), material="wooden", most=8)
    assert len(found) == len(set(found)) >= 5
    assert found[0] == "a white wooden chair with a blue top"
    assert found[-2:] == ["a wooden chair", "a chair"]
    assert not any("red" in one for one in found)
    assert captions_of("a wooden chair", None, material="wooden") == ["a wooden chair"]
    assert captions_of("a bed with drawers", seen((RED, 9)))[0] == "a red bed with drawers"
    assert len(captions_of("a red chair", seen((WHITE, 9)), most=2)) == 2


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("a red fire hydrant", "fire hydrant"),
        ("a dark blue and white car", "car"),
        ("an orange tree", "orange tree"),
        ("a pink tree", "tree"),
        ("red wine", "red wine"),
        ("the white house", "house"),
        ("an orange", "orange"),
        ("a blackboard", "blackboard"),
    ],
)
def test_colours_before_the_noun_are_replaced(caption, noun):
    assert bare_noun(caption) == noun


def test_colours_are_those_of_the_material_and_not_of_the_light():
    drawn = sample_object(3, kinds=("mug",))
    look = look_of(drawn.mesh)
    assert look.colors[0] == drawn.color.replace("gray", "grey")
    dark = replace(drawn.mesh, colors_F33=np.full_like(drawn.mesh.colors_F33, 0.75))
    assert look_of(normalise(dark)).colors == ("white",)


def test_zoo_colours_are_found():
    """The body's colour is the first that is seen; parts and plain details may cover more on a few kinds."""
    right = 0
    for seed in range(10):
        drawn = sample_object(seed)
        right += drawn.color.replace("gray", "grey") in look_of(drawn.mesh).colors
    assert right >= 8

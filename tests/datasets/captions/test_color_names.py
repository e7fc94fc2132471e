"""Names of colours agree with those of the CSS colours and of the zoo."""

import numpy as np
import pytest

from datasets.captions.color_names import color_name, linear_from_oklab, oklab
from datasets.meshes.scene import srgb_to_linear
from datasets.zoo import COLORS

KNOWN = {
    "crimson": (220, 20, 60, "red"), "maroon": (128, 0, 0, "red"), "tan": (210, 180, 140, "beige"),
    "saddlebrown": (139, 69, 19, "brown"), "sienna": (160, 82, 45, "brown"), "goldenrod": (218, 165, 32, "gold"),
    "khaki": (240, 230, 140, "yellow"), "olive": (128, 128, 0, "green"), "darkgreen": (0, 100, 0, "green"),
    "navy": (0, 0, 128, "blue"), "skyblue": (135, 206, 235, "blue"), "indigo": (75, 0, 130, "purple"),
    "hotpink": (255, 105, 180, "pink"), "salmon": (250, 128, 114, "pink"), "silver": (192, 192, 192, "grey"),
    "ivory": (255, 255, 240, "white"), "slategrey": (112, 128, 144, "grey"), "oak": (133, 94, 66, "brown"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_css_colours_have_the_name_that_people_use(name):
    *rgb, wanted = KNOWN[name]
    assert color_name(srgb_to_linear(np.array(rgb) / 255)) == wanted


@pytest.mark.parametrize("name", COLORS)
def test_the_zoo_uses_the_same_names(name):
    assert color_name(srgb_to_linear(np.array(COLORS[name]) / 255)) == name.replace("gray", "grey")


def test_oklab_and_back():
    linear = np.random.default_rng(0).random((50, 3))
    np.testing.assert_allclose(linear_from_oklab(oklab(linear)), linear, atol=1e-9)
    # Ottosson's table gives three digits: red, and white
    np.testing.assert_allclose(oklab(np.array([1.0, 0, 0])), [0.628, 0.225, 0.126], atol=1e-3)
    np.testing.assert_allclose(oklab(np.ones(3)), [1, 0, 0], atol=1e-4)

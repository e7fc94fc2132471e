"""Pictures, videos and what writes them side by side."""

from __future__ import annotations

import os
import signal
import threading

import imageio.v3
import numpy as np
import pytest
import torch

from models.weights import save_safetensors
from utils.errors import DataError
from utils.files import meanwhile, write_json
from utils.images import save_video


def test_a_video_shows_its_views(tmp_path):
    views_VCHW = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 32, 48)
    save_video(tmp_path / "a.mp4", views_VCHW, fps=8)
    frames = imageio.v3.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert frames.shape == (4, 32, 48, 3)
    assert np.abs(frames.mean(axis=(1, 2, 3)) / 255 - np.linspace(0, 1, 4)).max() < 0.02  # 8 bits, and a range of 219


def test_what_the_codec_refuses_is_said_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match=r"a\.mp4 cannot be written: the codec needs even sizes, but views are 33 x 32"):
        save_video(tmp_path / "a.mp4", torch.zeros(2, 3, 32, 33), fps=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, 500, 5000])
def test_a_video_that_the_disk_cannot_hold_is_refused_whole(tmp_path, limit):
    resource = pytest.importorskip("resource")
    views_VCHW = torch.rand(12, 3, 64, 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DataError, match=r"a\.mp4 cannot be written: .*check the space on the disk"):
            save_video(tmp_path / "a.mp4", views_VCHW, fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_of_new_ones(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_safetensors(tmp_path / "a.safetensors", {"weight": torch.zeros(2)})
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "a.safetensors": 0o666 & ~umask,
        "a.json": 0o666 & ~umask,
    }


def test_calls_run_beside_a_block_and_their_errors_come_out():
    begun, ended = threading.Event(), threading.Event()

    def waits() -> None:
        begun.set()
        assert ended.wait(10)

    with meanwhile(waits):
        assert begun.wait(10)  # it runs while this block does
        ended.set()

    def fails() -> None:
        raise DataError("no room")

    with pytest.raises(DataError, match="no room"), meanwhile(ended.wait, fails):
        pass

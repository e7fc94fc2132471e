"""Pictures, videos and what writes them side by side."""

from __future__ import annotations

import threading

import imageio.v3
import numpy as np
import pytest
import torch

from utils.errors import DataError
from utils.files import meanwhile
from utils.images import save_video


def test_a_video_shows_its_views(tmp_path):
    views_VCHW = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 32, 48)
    save_video(tmp_path / "a.mp4", views_VCHW, fps=8)
    frames = imageio.v3.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert frames.shape == (4, 32, 48, 3)
    assert np.abs(frames.mean(axis=(1, 2, 3)) / 255 - np.linspace(0, 1, 4)).max() < 0.02  # 8 bits, and a range of 219


def test_what_the_codec_refuses_is_said_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match=r"a\.mp4 cannot be written: ffmpeg: .*(even|divisible by 2)"):
        save_video(tmp_path / "a.mp4", torch.zeros(2, 3, 32, 33), fps=8)
    assert not list(tmp_path.iterdir())


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

"""The tool that finds broken images before a training does."""

from __future__ import annotations

import os

import pytest

from tests.tiny import write_config
from tests.tiny_images import sample, write_list, write_shards, write_tar
from tools.check_images import main
from utils.errors import ConfigError


def check(folder, section, *options):
    file = write_config(folder / "run.yaml", {"TASK_TYPE": "train_t2v_entrance", "img_dataset": section})
    return main(["--cfg", str(file), "--workers", "1", *options])


def test_shards_are_checked_by_their_filters(tmp_path, capsys):
    section = write_shards(tmp_path, num=3, size=8)
    assert check(tmp_path, section, "--strict") == 0
    assert "24 images to train on, 0 left out by the filters, 0 broken" in capsys.readouterr().out
    os.truncate(tmp_path / "00001.tar", (tmp_path / "00001.tar").stat().st_size // 2)
    odd = {"dull": sample(1, AESTHETIC_SCORE=1.0), "noise": sample(2) | {"jpg": b"noise"}, "good": sample(3)}
    write_tar(tmp_path / "00002.tar", odd)
    assert check(tmp_path, section, "--strict") == 1
    output = capsys.readouterr().out
    assert "00001.tar: the shard is truncated after 4 images" in output
    assert "00002.tar/noise cannot be decoded" in output
    assert "13 images to train on, 1 left out by the filters, 2 broken" in output
    assert check(tmp_path, section, "img_dataset.min_aesthetic=null") == 0
    assert "14 images to train on, 0 left out" in capsys.readouterr().out


def test_lists_are_checked(tmp_path, capsys):
    section = write_list(tmp_path)
    (tmp_path / "4.jpg").write_bytes(b"")
    assert check(tmp_path, section, "--strict") == 1
    output = capsys.readouterr().out
    assert "4.jpg has zero bytes" in output
    assert "5 images to train on, 0 left out by the filters, 1 broken" in output
    with pytest.raises(ConfigError, match="no section img_dataset"):
        check(tmp_path, {})

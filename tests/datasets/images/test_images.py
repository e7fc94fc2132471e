"""Single images: lists and shards, filters, and what is broken."""

from __future__ import annotations

import os
import pickle
import re

import numpy as np
import pytest

import datasets  # noqa: F401 - registers
from datasets.images.sample import cover
from datasets.images.shard import expanded, read_shard
from tests.odd_pictures import absurd
from tests.tiny_images import sample, write_list, write_shards, write_tar
from utils.errors import ConfigError, DataError
from utils.registry import DATASETS


def build(section, **changes):
    return DATASETS.build({**section, **changes}, where="img_dataset")


def captions(dataset, indices):
    return [dataset[index]["caption"] for index in indices]


def test_a_listed_image_is_cut_to_size(tmp_path):
    dataset = build(write_list(tmp_path), resolution=[32, 16], caption_suffix=", photo")
    one = dataset[2]
    assert one["views_VCHW"].shape == (1, 3, 16, 32)
    assert one["caption"] == "picture 2, photo"
    assert abs(float(one["views_VCHW"].mean()) - 28 / 255) < 0.02  # JPEG
    assert dataset.name_of(2) == one["object_id"] == str(tmp_path / "2.jpg")


def test_the_middle_is_kept():
    image_HW3 = np.zeros((4, 12, 3), dtype=np.uint8)
    image_HW3[:, 4:8] = 200
    np.testing.assert_array_equal(cover(image_HW3, (4, 4)), np.full((4, 4, 3), 200))
    assert cover(image_HW3, (7, 5)).shape == (5, 7, 3)


def test_broken_listed_images_are_named(tmp_path):
    section = write_list(tmp_path)
    (tmp_path / "0.jpg").write_bytes(b"")
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    (tmp_path / "2.jpg").unlink()
    absurd(tmp_path / "4.jpg")
    (tmp_path / "list.txt").write_text("0.jpg|||a\n1.jpg|||b\n2.jpg|||c\n3.jpg\n4.jpg|||d\n")
    dataset = build(section)
    broken = "cannot be decoded"
    reasons = ("has zero bytes; replace", broken, "cannot be read", "has no caption; add", broken)
    for index, reason in enumerate(reasons):
        with pytest.raises(DataError, match=rf"{index}\.jpg:? {reason}"):
            dataset[index]


def test_missing_lists_and_shards_are_refused(tmp_path):
    section = write_list(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build(section, data_dir_list=["nowhere"])
    with pytest.raises(DataError, match=r"nothing.txt: cannot be read"):
        build(section, data_list=[str(tmp_path / "nothing.txt")])
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no images"):
        build(section)
    shards = write_shards(tmp_path / "shards")
    with pytest.raises(DataError, match=r"2 of 5 shards are missing, the first is .*00003.tar; .* range that exists"):
        build(shards, data_list=["{00000..00004}.tar"])
    with pytest.raises(ConfigError, match="need the same number of entries"):
        build(shards, data_dir_list=[])


def test_ranges():
    assert expanded("{00008..00010}.tar") == ["00008.tar", "00009.tar", "00010.tar"]
    assert expanded("part{0..1}/{3..4}.tar") == ["part0/3.tar", "part0/4.tar", "part1/3.tar", "part1/4.tar"]
    assert expanded("one.tar") == ["one.tar"]


def test_samples_follow_from_their_number(tmp_path):
    section = {**write_shards(tmp_path), "samples_per_visit": 4}
    dataset = build(section)
    first = captions(dataset, range(12))
    assert captions(build(section), reversed(range(12))) == first[::-1]
    assert captions(pickle.loads(pickle.dumps(dataset)), range(12)) == first
    assert captions(build(section, seed=1), range(12)) != first
    # a pass visits each shard once, and a visit shows no image twice
    shards = [[int(caption.split()[1]) // 6 for caption in first[visit * 4 : visit * 4 + 4]] for visit in range(3)]
    assert sorted(shard[0] for shard in shards) == [0, 1, 2]
    assert all(len(set(shard)) == 1 for shard in shards)
    assert len(set(first)) == 12
    assert len(set(captions(dataset, range(12 * 20)))) == 18  # in time all are shown
    assert dataset.name_of(3).endswith(f"{int(first[3].split()[1]):09d}")


def test_filters_are_the_published_ones(tmp_path):
    cases = {
        "kept": {},
        "at_the_limits": {"pwatermark": 0.3, "punsafe": 0.2, "AESTHETIC_SCORE": 4.0, "width": 120, "height": 40},
        "watermark": {"pwatermark": 0.31},
        "unsafe": {"punsafe": 0.21},
        "plain": {"AESTHETIC_SCORE": 3.9},
        "wide": {"width": 121, "height": 40},
        "tall": {"width": 40, "height": 121},
        "unknown": {"punsafe": None},
    }
    file = write_tar(tmp_path / "0.tar", {name: sample(0, **facts) for name, facts in cases.items()})
    section = {"type": "LAIONImageDataset", "data_list": ["0.tar"], "data_dir_list": [str(tmp_path)]}

    def kept(**options):
        config = DATASETS.resolve({**section, **options}, where="img_dataset")[1]
        shard = read_shard(file, keeps=config.keeps)
        assert not shard.problems
        assert shard.num_left_out == len(cases) - len(shard.images)
        return [image.name for image in shard.images]

    assert kept() == ["kept", "at_the_limits"]
    assert kept(min_size=41) == []
    assert kept(min_similarity=0.31) == []
    assert kept(max_watermark=None, max_unsafe=None, min_aesthetic=None, max_aspect=None) == list(cases)


def test_broken_samples_of_a_shard_are_named(tmp_path):
    broken = {"no_text": sample(1, without="txt"), "no_facts": sample(2, without="json")}
    broken |= {"no_picture": sample(3, without="jpg"), "empty": sample(4) | {"jpg": b""}}
    broken |= {"odd": sample(5) | {"json": b"{"}}
    broken |= {f"no_object_{n}": sample(5) | {"json": text} for n, text in enumerate((b"[]", b"null", b'"x"', b"3"))}
    broken |= {"words": sample(5, punsafe="low"), "no_size": sample(5, width="48"), "list": sample(5, width=[1])}
    file = write_tar(tmp_path / "0.tar", {"whole": sample(0), **broken, "noise": sample(6) | {"jpg": b"noise"}})
    dataset = build({"type": "LAIONImageDataset", "data_list": ["0.tar"], "data_dir_list": [str(tmp_path)]})
    shard = read_shard(file, keeps=dataset.config.keeps)
    assert [image.name for image in shard.images] == ["whole", "noise"]
    assert [re.search(r"tar/(\w+): ", line)[1] for line in shard.problems] == list(broken)
    with pytest.raises(DataError, match=r"0.tar/noise cannot be decoded; replace the file"):
        [dataset[index] for index in range(2)]


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_a_shard_that_is_cut_off_gives_what_is_whole(tmp_path, share):
    section = write_shards(tmp_path, num=1, size=8)
    file = tmp_path / "00000.tar"
    os.truncate(file, int(file.stat().st_size * share))
    dataset = build(section)
    shard = read_shard(file, keeps=dataset.config.keeps)
    assert len(shard.images) == (4 if share == 0.5 else 0)
    assert any("the shard is truncated after" in line for line in shard.problems)
    if shard.images:
        assert {dataset[index]["caption"] for index in range(4)} == {f"picture {number}" for number in range(4)}
        assert len(dataset.take_problems()) == len(shard.problems)
    else:
        with pytest.raises(DataError, match="no image passes"):
            dataset[5]
        assert dataset.instead_of(5) == dataset.config.samples_per_visit

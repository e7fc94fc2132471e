"""What is written is what is read, and what is broken is refused by name."""

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.orbits.gobjaverse import read_captions
from datasets.orbits.layout import (
    find_objects,
    is_complete,
    read_camera,
    read_normal_depth,
    read_rgba,
    view_file,
    write_orbit,
)
from datasets.orbits.packed import PackedShard, shard_file, write_shard
from datasets.orbits.sample import orbit_sample, write_prompt
from tests.odd_pictures import absurd
from utils.cameras import camera_condition, orbit_cameras
from utils.errors import ConfigError, DataError
from utils.files import write_json
from utils.registry import DATASETS

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
NUM_VIEWS = 4
FOV_DEG = 39.6


@pytest.fixture
def orbit():
    rng = np.random.default_rng(0)
    return {
        "rgba_VHW4": rng.integers(0, 256, (NUM_VIEWS, 16, 16, 4), dtype=np.uint8),
        "c2w_V44": orbit_cameras(num_views=NUM_VIEWS, elevation_deg=15.0, radius=2.0).numpy(),
        "fov_deg": FOV_DEG,
        "bounds_23": np.array([[-0.5] * 3, [0.5] * 3]),
        "normals_VHW3": rng.normal(size=(NUM_VIEWS, 16, 16, 3)).astype(np.float32),
        "depth_VHW": rng.random((NUM_VIEWS, 16, 16), dtype=np.float32),
    }


@pytest.fixture
def folder(tmp_path, orbit):
    write_orbit(tmp_path / "0" / "10001", **orbit)
    write_json(tmp_path / "index.json", ["0/10001"])
    write_json(tmp_path / "captions.json", {"0/10001": "a red mug"})
    return tmp_path


def build(folder, **options):
    section = {
        "type": "VideoDataset",
        "data_list": [str(folder / "index.json")],
        "data_dir_list": [str(folder)],
        "caption_dir": str(folder / "captions.json"),
        "resolution": [16, 16],
        "num_views": NUM_VIEWS,
        **options,
    }
    return DATASETS.build(section)


def test_layout_round_trip(folder, orbit):
    object_dir = folder / "0" / "10001"
    for view in range(NUM_VIEWS):
        np.testing.assert_array_equal(read_rgba(view_file(object_dir, view)), orbit["rgba_VHW4"][view])
        camera = read_camera(view_file(object_dir, view, ".json"))
        np.testing.assert_allclose(camera.c2w_44, orbit["c2w_V44"][view], atol=1e-7)
        assert camera.fov_deg == pytest.approx(FOV_DEG)
        normals, depth = read_normal_depth(view_file(object_dir, view, "_nd.exr"))
        np.testing.assert_array_equal(normals, orbit["normals_VHW3"][view])
        np.testing.assert_array_equal(depth, orbit["depth_VHW"][view])
    assert is_complete(object_dir, num_views=NUM_VIEWS, normal_depth=True)
    assert list(find_objects(folder)) == ["0/10001"]


def test_published_axes_of_normals(folder, orbit):
    """Readers of the published files take (-R, -B, G) for a world with z up."""
    import OpenEXR

    with OpenEXR.File(str(view_file(folder / "0" / "10001", 0, "_nd.exr"))) as file:
        rgba = file.channels()["RGBA"].pixels
    np.testing.assert_array_equal(np.stack([-rgba[..., 0], -rgba[..., 2], rgba[..., 1]], -1), orbit["normals_VHW3"][0])


def test_sample(folder, orbit):
    sample = build(folder, background=1.0, prepare_lgm=True)[0]
    rgba = torch.from_numpy(orbit["rgba_VHW4"]).float().permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(sample["masks_V1HW"], rgba[:, 3:])
    torch.testing.assert_close(sample["views_VCHW"], rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])
    torch.testing.assert_close(sample["full_rgba_V4HW"], rgba)
    torch.testing.assert_close(sample["c2w_V44"], torch.from_numpy(orbit["c2w_V44"]))
    assert sample["caption"] == "a red mug, 3d asset"
    assert sample["object_id"] == "0/10001"
    assert sample["first_frame_CHW"].shape == (3, 224, 224)
    assert build(folder, empty_captions=True)[0]["caption"] == ""


def test_resizing_keeps_the_mean(folder, orbit):
    full, half = build(folder)[0]["views_VCHW"], build(folder, resolution=[8, 8])[0]["views_VCHW"]
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(full, 2), atol=1e-6, rtol=0)


def test_another_start_view_rolls_images_and_keeps_cameras(orbit):
    shared = {"fov_deg": FOV_DEG, "caption": "", "object_id": "a/b", "resolution": (16, 16), "background": 0.5}
    plain = orbit_sample(orbit["rgba_VHW4"], orbit["c2w_V44"], **shared)
    rolled = orbit_sample(orbit["rgba_VHW4"], orbit["c2w_V44"], **shared, start_view=3)
    torch.testing.assert_close(rolled["views_VCHW"], plain["views_VCHW"].roll(-3, 0))
    torch.testing.assert_close(rolled["masks_V1HW"], plain["masks_V1HW"].roll(-3, 0))
    torch.testing.assert_close(rolled["c2w_V44"], plain["c2w_V44"])


def test_the_image_data_set_rolls_everything_but_the_cameras(folder):
    options = {"type": "Video_I2V_Dataset", "prepare_lgm": True, "caption_dir": ""}
    rolled = build(folder, **options)
    assert (rolled.config.background, rolled.config.empty_captions) == (1.0, True)
    still = build(folder, **options, random_start_view=False)[0]
    torch.manual_seed(0)
    starts = set()
    for _ in range(12):
        sample = rolled[0]
        matches = [torch.equal(still["masks_V1HW"].roll(-k, 0), sample["masks_V1HW"]) for k in range(NUM_VIEWS)]
        start = matches.index(True)
        starts.add(start)
        for name in ("views_VCHW", "full_rgba_V4HW"):
            assert torch.equal(sample[name], still[name].roll(-start, 0))
        assert torch.equal(sample["c2w_V44"], still["c2w_V44"])
        assert sample["caption"] == ""
        if start:
            assert not torch.equal(sample["first_frame_CHW"], still["first_frame_CHW"])
    assert len(starts) > 1


def test_prompts():
    assert write_prompt("a  red mug", suffix=", 3d asset", max_words=1000) == "a red mug, 3d asset"
    assert write_prompt("a red mug, 3d asset", suffix=", 3d asset", max_words=1000) == "a red mug, 3d asset"
    assert write_prompt("one two three", suffix="", max_words=2) == "one two"


def _remove(file):
    file.unlink()


def _empty(file):
    file.write_bytes(b"")


def _cut(file):
    file.write_bytes(file.read_bytes()[:40])


def _skew(file):
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"x": record["y"]}))


@pytest.mark.parametrize(
    ("suffix", "harm"),
    [(".png", _remove), (".png", _empty), (".png", _cut), (".json", _remove), (".json", _cut), (".json", _skew)],
)
def test_broken_samples_are_refused_by_name(folder, suffix, harm):
    file = view_file(folder / "0" / "10001", 2, suffix)
    harm(file)
    with pytest.raises(DataError, match=rf"object 0/10001: .*{file.name}.*(again|index)"):
        build(folder)[0]


def test_a_missing_caption_is_refused(folder):
    write_json(folder / "captions.json", {"0/2": "another"})
    with pytest.raises(DataError, match=r"object 0/10001: no caption"):
        build(folder)[0]


def test_options_are_checked(folder):
    for option, value in (("background", 128), ("resolution", [256]), ("num_views", 0), ("data_dir_list", [])):
        with pytest.raises(ConfigError, match=option):
            build(folder, **{option: value})
    with pytest.raises(ConfigError, match="did you mean resolution"):
        build(folder, resolutoin=[8, 8])
    with pytest.raises(DataError, match=r"missing\.json"):
        build(folder, data_list=[str(folder / "missing.json")])


def test_nothing_half_written_stays(tmp_path, orbit):
    broken = {**orbit, "c2w_V44": orbit["c2w_V44"][:2]}  # fails at the third view
    with pytest.raises(IndexError):
        write_orbit(tmp_path / "0" / "1", **broken)
    assert list((tmp_path / "0").iterdir()) == []


def packed(folder, orbit, **options):
    for number, ids in enumerate((["0/1", "0/2"], ["0/3"])):
        write_shard(
            shard_file(folder, number),
            PackedShard(
                rgba_NVHW4=np.stack([np.roll(orbit["rgba_VHW4"], int(i[-1]), axis=2) for i in ids]),
                c2w_NV44=np.stack([orbit["c2w_V44"]] * len(ids)),
                fov_deg=FOV_DEG,
                object_ids=ids,
                captions=[f"object {i}" for i in ids],
                attributes=[{"kind": i} for i in ids],
            ),
        )
    section = {"type": "PackedOrbits", "data_dir_list": [str(folder)], "resolution": [16, 16], "num_views": NUM_VIEWS}
    return DATASETS.build({**section, **options})


def test_packed_samples_equal_unpacked_ones(tmp_path, orbit):
    data = packed(tmp_path, orbit, background=0.5)
    assert len(data) == 3
    for index in (2, 0, 1):
        expected = orbit_sample(
            np.roll(orbit["rgba_VHW4"], index + 1, axis=2),
            orbit["c2w_V44"],
            fov_deg=FOV_DEG,
            caption=f"object 0/{index + 1}, 3d asset",
            object_id=f"0/{index + 1}",
            resolution=(16, 16),
            background=0.5,
        )
        sample = pickle.loads(pickle.dumps(data))[index]
        assert sample.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(sample[key], value, atol=0, rtol=0)
            else:
                assert sample[key] == value
    assert data.attributes[2] == {"kind": "0/3"}
    assert data.stored(1)[0].dtype == np.uint8


def test_packed_shard_cut_in_half_is_refused(tmp_path, orbit):
    packed(tmp_path, orbit)
    _cut(shard_file(tmp_path, 1))
    with pytest.raises(DataError, match="orbits_00001"):
        DATASETS.build({"type": "PackedOrbits", "data_dir_list": [str(tmp_path)], "num_views": NUM_VIEWS})
    with pytest.raises(ConfigError, match="data_dir_list"):
        DATASETS.build({"type": "PackedOrbits"})


def test_camera_files_of_the_recorded_case(tmp_path):
    """The made-up published orbit gives the recorded UNet condition; its field of view is in radians."""
    records = json.loads((REFERENCE / "dataset_views.json").read_text())
    cameras = []
    for view, record in enumerate(records):
        (tmp_path / f"{view}.json").write_text(json.dumps(record))
        cameras.append(read_camera(tmp_path / f"{view}.json"))
    condition_V16 = camera_condition(torch.from_numpy(np.stack([camera.c2w_44 for camera in cameras])))
    expected = np.load(REFERENCE / "cameras_dataset.npz")["camera_data"]
    np.testing.assert_allclose(condition_V16.numpy(), expected, atol=1e-6)
    assert cameras[0].fov_deg == pytest.approx(49.1, abs=0.01)


@pytest.mark.parametrize("key", ["origin", "x", "x_fov"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cameras_of_no_finite_numbers_are_refused(tmp_path, key, value):
    record = json.loads((REFERENCE / "dataset_views.json").read_text())[0]
    record[key] = [*record[key][:2], value] if isinstance(record[key], list) else value
    (tmp_path / "0.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"0\.json: (not a camera file.*finite|x_fov must lie between)"):
        read_camera(tmp_path / "0.json")


def test_a_picture_of_absurd_size_is_broken(tmp_path):
    absurd(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png: broken image"):
        read_rgba(tmp_path / "0.png")


def test_a_large_index_loads_fast(tmp_path):
    """280,000 objects take 2 s (pipelines/training/README.md). No file of an object is opened: none is there."""
    object_ids = [f"{number // 1000}/{number:07d}" for number in range(20_000)]
    write_json(tmp_path / "index.json", object_ids)
    write_json(tmp_path / "captions.json", {object_id: f"object {object_id}" for object_id in object_ids})
    section = {"type": "VideoDataset", "data_list": [str(tmp_path / "index.json")], "data_dir_list": [str(tmp_path)]}
    begun = time.monotonic()
    dataset = DATASETS.build({**section, "caption_dir": str(tmp_path / "captions.json")})
    assert len(dataset) == 20_000
    assert dataset.prompt(len(object_ids) - 1).startswith("object 19/0019999")
    assert time.monotonic() - begun < 5  # 0.2 s where nothing else runs


def test_a_shard_holds_arrays_that_lie_otherwise_in_memory(tmp_path):
    rgba_NVHW4 = np.random.default_rng(0).integers(0, 255, (1, 2, 4, 6, 5), dtype=np.uint8).transpose(0, 1, 3, 4, 2)
    shard = PackedShard(
        rgba_NVHW4=rgba_NVHW4,
        c2w_NV44=np.broadcast_to(np.eye(4), (1, 2, 4, 4)),
        fov_deg=40.0,
        object_ids=["0/0"],
        captions=["a thing"],
        attributes=[{}],
    )
    write_shard(shard_file(tmp_path, 0), shard)
    dataset = DATASETS.build({"type": "PackedOrbits", "data_dir_list": [str(tmp_path)], "num_views": 2})
    assert np.array_equal(dataset.stored(0)[0], rgba_NVHW4[0])


def test_captions_of_several_files_are_joined(tmp_path):
    for name, content in {"a": {"x/1": "one"}, "b": {"x/2": "two"}, "c": {"x/1": "another"}}.items():
        write_json(tmp_path / f"{name}.json", content)
    files = {name: str(tmp_path / f"{name}.json") for name in "abc"}
    assert read_captions([files["a"], files["b"], files["a"]]) == {"x/1": "one", "x/2": "two"}
    with pytest.raises(DataError, match=r"c\.json: x/1 has another caption in an earlier file; keep only one"):
        read_captions([files["a"], files["c"]])
    with pytest.raises(ConfigError, match="caption_dir must be a file or a list of files"):
        DATASETS.resolve({"type": "VideoDataset", "caption_dir": [3]})

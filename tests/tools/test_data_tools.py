"""The data commands, as a user runs them: whole results, resumed runs, and mistakes in one line."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets.orbits.layout import is_complete, read_camera, read_normal_depth, read_rgba, view_file
from tools import index_dataset, make_zoo, render_orbit
from tools.render_orbit import STRETCH, shape_of
from utils.cameras import intrinsics, orbit_cameras, project_points
from utils.errors import ConfigError, DataError
from utils.registry import DATASETS

trimesh = pytest.importorskip("trimesh")

SMALL = ["--views", "3", "--size", "32", "--samples", "2", "--workers", "1"]


@pytest.fixture
def meshes(tmp_path):
    folder = tmp_path / "meshes"
    folder.mkdir()
    trimesh.creation.icosphere(subdivisions=2).export(folder / "ball.ply")
    trimesh.creation.box(extents=(1, 2, 3)).export(folder / "brick.glb")
    return folder


def render(meshes, out, *more):
    return render_orbit.main([str(meshes), "--out", str(out), *SMALL, *more])


def test_rendered_files_agree_with_each_other(meshes, tmp_path):
    """Each covered pixel's depth, taken back to the world by the camera file, lies on the unit ball's surface."""
    assert render(meshes, tmp_path / "out", "--size", "64") == 0
    object_dir = tmp_path / "out" / "meshes" / "ball"
    assert is_complete(object_dir, num_views=3, normal_depth=True)
    for view in range(3):
        camera = read_camera(view_file(object_dir, view, ".json"))
        normals_HW3, depth_HW = read_normal_depth(view_file(object_dir, view, "_nd.exr"))
        whole = read_rgba(view_file(object_dir, view))[..., 3] == 255
        focal = float(intrinsics(camera.fov_deg, 64)[0, 0])
        rows, columns = np.mgrid[:64, :64] + 0.5
        x, y = (columns - 32) / focal * depth_HW, (rows - 32) / focal * depth_HW
        points = np.stack([x, y, depth_HW], -1) @ camera.c2w_44[:3, :3].T + camera.c2w_44[:3, 3]
        # a faceted ball of radius 0.5, and depth averaged over the pixel, which matters towards the rim
        middle = whole & (np.einsum("hwc,c->hw", normals_HW3, -camera.c2w_44[:3, 2]) > 0.5)
        assert middle.sum() > 200
        np.testing.assert_allclose(np.linalg.norm(points[middle], axis=-1), 0.5, atol=0.012)
        agreement = (points[middle] / 0.5 * normals_HW3[middle]).sum(-1)
        assert agreement.min() > 0.97


def test_orbit_options(meshes, tmp_path):
    out = tmp_path / "out"
    assert (
        render(meshes, out, "--elevation", "30", "--distance", "1.7", "--fov", "50", "--azimuth", "20", "--no-nd") == 0
    )
    expected = orbit_cameras(num_views=3, elevation_deg=30, radius=1.7, azimuth_start_deg=20).numpy()
    for view in range(3):
        camera = read_camera(view_file(out / "meshes" / "brick", view, ".json"))
        np.testing.assert_allclose(camera.c2w_44, expected[view], atol=1e-6)
        assert camera.fov_deg == pytest.approx(50.0)
    assert not view_file(out / "meshes" / "brick", 0, "_nd.exr").exists()
    origin = project_points(np_to_tensor([[0.0, 0.0, 0.0]]), np_to_tensor(expected[0]), intrinsics(50.0, 32))
    np.testing.assert_allclose(origin.numpy(), [[16.0, 16.0]], atol=1e-4)


def np_to_tensor(values):
    import torch

    return torch.tensor(np.asarray(values))


def test_a_bad_mesh_does_not_stop_the_others(meshes, tmp_path, capfd):
    (meshes / "broken.obj").write_text("this is no mesh\n")
    assert render(meshes, tmp_path / "out") == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "broken.obj" in errors[0]
    assert sorted(p.name for p in (tmp_path / "out" / "meshes").iterdir()) == ["ball", "brick"]


def test_finished_meshes_are_skipped_and_broken_ones_done_again(meshes, tmp_path):
    out = tmp_path / "out"
    render(meshes, out)
    kept, redone = (view_file(out / "meshes" / name, 1) for name in ("ball", "brick"))
    before, content = kept.stat().st_mtime_ns, redone.read_bytes()
    redone.write_bytes(b"")
    assert render(meshes, out) == 0
    assert kept.stat().st_mtime_ns == before
    assert redone.read_bytes() == content


def test_settings_may_not_change_on_the_way(meshes, tmp_path):
    render(meshes, tmp_path / "out")
    with pytest.raises(DataError, match=r"elevation=40.*another folder"):
        render(meshes, tmp_path / "out", "--elevation", "40")
    with pytest.raises(ConfigError, match="size"):
        render(meshes, tmp_path / "out2", "--size", "0")
    with pytest.raises(DataError, match="no mesh"):
        render(tmp_path / "out", tmp_path / "out3")


def write_list(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--list", str(path)]


def packed(folder):
    return DATASETS.build(
        {"type": "PackedOrbits", "data_dir_list": [str(folder)], "resolution": [32, 32], "num_views": 3}
    )


def test_meshes_of_a_list_are_packed(meshes, tmp_path):
    (meshes / "deeper").mkdir()
    (meshes / "brick.glb").rename(meshes / "deeper" / "brick.glb")
    listed = write_list(
        tmp_path / "list.jsonl",
        {"file": "ball.ply", "caption": "a ball", "split": "train", "cut_out": False},
        {"file": "deeper/brick.glb", "caption": "a brick", "split": "train", "cut_out": False},
        {"file": "missing.glb", "caption": "a leaf", "split": "train", "cut_out": True},
    )
    chosen = [*listed, "--where", "split=train", "cut_out=false", "--packed", "--shard", "1"]
    turned = ["--elevation", "0", "40", "--azimuth", "0", "360"]
    assert render(meshes, tmp_path / "out", *chosen, *turned) == 0
    data = packed(tmp_path / "out")
    assert data.object_ids == ["meshes/ball", "meshes/brick"]
    assert data.captions == ["a ball", "a brick"]
    assert data.attributes[1]["file"] == "deeper/brick.glb"
    heights = [float(data.stored(index)[1][0, 2, 3]) / 2.0 for index in range(2)]
    assert all(0 <= height <= np.sin(np.radians(40)) for height in heights)
    assert heights[0] != pytest.approx(heights[1])
    # the same picture as in the other layout, from the same place
    assert render(meshes, tmp_path / "single", *turned) == 0
    folder = tmp_path / "single" / "meshes" / "ball"
    np.testing.assert_array_equal(data.stored(0)[0][2], read_rgba(view_file(folder, 2)))
    # another seed looks from elsewhere, and a folder keeps its settings
    assert render(meshes, tmp_path / "other", *chosen, *turned, "--seed", "1") == 0
    assert float(packed(tmp_path / "other").stored(0)[1][0, 2, 3]) / 2.0 != pytest.approx(heights[0])
    with pytest.raises(DataError, match=r"seed=1 .was 0."):
        render(meshes, tmp_path / "out", *chosen, *turned, "--seed", "1")


def test_a_bad_mesh_leaves_its_shard_without_it(meshes, tmp_path, capfd):
    (meshes / "broken.obj").write_text("this is no mesh\n")
    assert render(meshes, tmp_path / "out", "--packed") == 1
    assert packed(tmp_path / "out").object_ids == ["meshes/ball", "meshes/brick"]
    assert "broken.obj" in capfd.readouterr().err


def test_lists_that_do_not_fit_are_refused(meshes, tmp_path):
    listed = write_list(tmp_path / "list.jsonl", {"file": "ball.ply", "split": "train"})
    with pytest.raises(DataError, match=r"contains none of the meshes.*split=val"):
        render(meshes, tmp_path / "out", *listed, "--where", "split=val")
    with pytest.raises(ConfigError, match="split must be KEY=VALUE"):
        render(meshes, tmp_path / "out", *listed, "--where", "split")
    with pytest.raises(ConfigError, match="add --list"):
        render(meshes, tmp_path / "out", "--where", "split=val")
    with pytest.raises(ConfigError, match="--elevation"):
        render(meshes, tmp_path / "out", "--elevation", "40", "0")
    with pytest.raises(DataError, match="line 1"):
        render(meshes, tmp_path / "out", *write_list(tmp_path / "bad.jsonl", {"caption": "a ball"}))


def test_run_as_a_file_from_elsewhere(tmp_path):
    script = Path(render_orbit.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "missing.glb", "--out", "out", *SMALL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "missing.glb" in done.stderr
    assert "Traceback" not in done.stderr


def zoo(out, *more):
    return make_zoo.main([str(out), "--num", "5", *SMALL, *more])


def test_zoo_in_the_published_layout(tmp_path):
    assert zoo(tmp_path) == 0
    index, captions, attributes = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("index", "captions", "attributes")
    )
    assert len(index) == 5
    assert set(captions) == set(attributes) == set(index)
    data = DATASETS.build(
        {
            "type": "VideoDataset",
            "data_list": [str(tmp_path / "index.json")],
            "data_dir_list": [str(tmp_path)],
            "caption_dir": str(tmp_path / "captions.json"),
            "resolution": [32, 32],
            "num_views": 3,
        }
    )
    sample = data[3]
    assert sample["caption"] == captions[index[3]] + ", 3d asset"
    assert attributes[index[3]]["kind"] in sample["caption"]
    assert 0.02 < sample["masks_V1HW"].mean() < 0.6


def test_packed_zoo_holds_the_same_images(tmp_path):
    zoo(tmp_path / "plain", "--no-nd", "--elevation", "0", "30")
    zoo(tmp_path / "packed", "--packed", "--shard", "2", "--elevation", "0", "30", "--workers", "2")
    data = DATASETS.build(
        {"type": "PackedOrbits", "data_dir_list": [str(tmp_path / "packed")], "resolution": [32, 32], "num_views": 3}
    )
    assert len(data) == 5
    heights = set()
    for index, object_id in enumerate(data.object_ids):
        rgba_VHW4, c2w_V44, fov_deg = data.stored(index)
        for view in range(3):
            folder = tmp_path / "plain" / object_id
            np.testing.assert_array_equal(rgba_VHW4[view], read_rgba(view_file(folder, view)))
            camera = read_camera(view_file(folder, view, ".json"))
            np.testing.assert_allclose(c2w_V44[view], camera.c2w_44, atol=1e-6)
            assert camera.fov_deg == pytest.approx(fov_deg)
        heights.add(round(float(c2w_V44[0, 2, 3]), 3))
    assert len(heights) == 5  # each object has its own elevation
    assert 0 <= min(heights)
    assert max(heights) <= 1.0  # 2 sin 30


def test_packed_zoo_goes_on_where_it_stopped(tmp_path):
    zoo(tmp_path, "--packed", "--shard", "2")
    files = sorted(tmp_path.glob("*.safetensors"))
    content = [file.read_bytes() for file in files]
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    assert zoo(tmp_path, "--packed", "--shard", "2") == 0
    assert files[0].stat().st_mtime_ns == before
    assert [file.read_bytes() for file in files] == content


@pytest.fixture
def pictures(meshes, tmp_path):
    """Renders to a folder with this name; the first view of each mesh."""

    def rendered(name, *more):
        assert render(meshes, tmp_path / name, "--no-nd", *more) == 0
        return [read_rgba(view_file(tmp_path / name / "meshes" / mesh, 0)) for mesh in ("ball", "brick")]

    return rendered


def test_varied_light_depends_on_object_and_seed(meshes, pictures, tmp_path):
    fixed, varied = pictures("fixed"), pictures("varied", "--light", "varied")
    again, other = pictures("again", "--light", "varied"), pictures("other", "--light", "varied", "--seed", "1")
    for one, two, three, four in zip(fixed, varied, again, other, strict=True):
        np.testing.assert_array_equal(one[..., 3], two[..., 3])
        np.testing.assert_array_equal(two, three)
        assert not np.array_equal(one, two)
        assert not np.array_equal(two, four)
    with pytest.raises(DataError, match="light=None"):
        render(meshes, tmp_path / "varied", "--no-nd")
    # a folder of an earlier version goes on with fixed light
    settings = tmp_path / "fixed" / "render_settings.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "light"}))
    assert render(meshes, tmp_path / "fixed", "--no-nd") == 0


def test_varied_shape_depends_on_object_and_seed(meshes, pictures, tmp_path):
    true, varied = pictures("true"), pictures("varied", "--shape", "varied")
    again, other = pictures("again", "--shape", "varied"), pictures("other", "--shape", "varied", "--seed", "1")
    for one, two, three, four in zip(true, varied, again, other, strict=True):
        np.testing.assert_array_equal(two, three)
        assert not np.array_equal(one[..., 3], two[..., 3])
        assert not np.array_equal(two[..., 3], four[..., 3])
    with pytest.raises(DataError, match="shape=None"):
        render(meshes, tmp_path / "varied", "--no-nd")


def test_drawn_shapes_stay_near_the_true_one():
    options = argparse.Namespace(shape="varied", seed=0)
    factors_N3 = np.stack([shape_of(str(number), options) for number in range(200)])
    assert 1 / STRETCH <= np.abs(factors_N3).min() < 0.85 < 1.2 < np.abs(factors_N3).max() <= STRETCH
    assert 60 < (np.prod(factors_N3, axis=1) < 0).sum() < 140
    assert (shape_of("1", argparse.Namespace(shape="true", seed=0)) == 1).all()


def test_random_shapes_are_made_as_the_zoo_is(tmp_path):
    few = ["--shapes", "--num", "2"]
    assert zoo(tmp_path / "plain", "--no-nd", *few) == 0
    assert zoo(tmp_path / "packed", "--packed", *few, "--shard", "1") == 0
    captions = json.loads((tmp_path / "plain/captions.json").read_text())
    packed = DATASETS.build({"type": "PackedOrbits", "data_dir_list": [str(tmp_path / "packed")], "num_views": 3})
    assert packed.captions == list(captions.values())
    assert [one["seed"] for one in packed.attributes] == [0, 1]
    before = (tmp_path / "packed/orbits_00001.safetensors").read_bytes()
    (tmp_path / "packed/orbits_00001.safetensors").unlink()
    assert zoo(tmp_path / "packed", "--packed", *few, "--shard", "1") == 0
    assert (tmp_path / "packed/orbits_00001.safetensors").read_bytes() == before
    with pytest.raises(DataError, match=r"shapes=None \(was 1\)"):
        zoo(tmp_path / "plain", "--no-nd", "--num", "2")
    with pytest.raises(ConfigError, match="leave out one of them"):
        zoo(tmp_path / "other", "--shapes", "--kinds", "mug")


def test_zoo_options_are_checked(tmp_path):
    for option, value in (("--kinds", "unicorn"), ("--elevation", "95"), ("--num", "0")):
        with pytest.raises(ConfigError, match=option):
            zoo(tmp_path / "x", option, value)


def test_index_reports_what_is_broken(tmp_path, capsys):
    zoo(tmp_path, "--no-nd")
    whole = json.loads((tmp_path / "index.json").read_text())
    captions = json.loads((tmp_path / "captions.json").read_text())
    view_file(tmp_path / whole[0], 1).write_bytes(b"")
    view_file(tmp_path / whole[1], 2, ".json").unlink()
    view_file(tmp_path / whole[2], 0).write_bytes(b"no image")
    del captions[whole[3]]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    options = [str(tmp_path), "--views", "3", "--captions", str(tmp_path / "captions.json"), "--workers", "1"]
    assert index_dataset.main([*options, "--strict"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("object")]
    assert len(lines) == 4
    for line, (object_id, words) in zip(
        lines, zip(whole, ("zero bytes", "missing", "broken image", "no caption"), strict=False), strict=True
    ):
        assert line.startswith(f"object {object_id}:")
        assert words in line
    assert json.loads((tmp_path / "index.json").read_text()) == [whole[4]]
    assert index_dataset.main([*options, "--all"]) == 0
    assert json.loads((tmp_path / "index.json").read_text()) == whole
    with pytest.raises(DataError, match="no object"):
        index_dataset.main([str(tmp_path / "0" / "0")])

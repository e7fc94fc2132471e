"""The commands on files of Gaussians and on meshes, as a user runs them."""

import dataclasses
import errno
import json
import os

import imageio.v3
import pytest
import torch
import trimesh

from models.gaussians.files import read_ply, write_ply, write_splat
from tests.campaign import run_command
from tests.tiny_gaussians import SMALL, ball
from tools import compare_meshes, export_gaussians
from utils.errors import ConfigError, DataError
from utils.settings.assets import AssetOptions

FLAGS = [text for name, value in SMALL.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def export(*arguments):
    return export_gaussians.main([*map(str, arguments), *FLAGS])


@pytest.fixture
def ply(tmp_path):
    write_ply(tmp_path / "ball.ply", ball())
    return tmp_path / "ball.ply"


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_everything_but_the_ply_is_made_when_nothing_is_named(ply, tmp_path, capsys):
    assert export(ply, "--out", tmp_path / "out") == 0
    assert names(tmp_path / "out" / "ball") == {
        "gaussians.splat",
        "gaussians.spz",
        "mesh.glb",
        "turntable.mp4",
        "viewer.html",
    }
    assert "mesh.glb (" in capsys.readouterr().out


def test_one_kind_with_its_options(ply, tmp_path):
    line = (ply, "--out", tmp_path / "out", "--turntable", "--turntable-elevation-deg", "50")
    assert export(*line) == 0
    assert names(tmp_path / "out" / "ball") == {"turntable.mp4"}
    assert imageio.v3.imread(tmp_path / "out" / "ball" / "turntable.mp4", plugin="FFMPEG").shape == (4, 48, 48, 3)


def test_a_broken_file_does_not_stop_the_others(ply, tmp_path, capsys):
    (tmp_path / "bad.ply").write_bytes(ply.read_bytes()[:-100])
    trimesh.creation.box().export(tmp_path / "mesh.ply")
    (tmp_path / "huge.ply").write_bytes(ply.read_bytes().replace(b"vertex 1500", b"vertex 99999999999999"))
    (tmp_path / "uncounted.ply").write_bytes(ply.read_bytes().replace(b"element vertex 1500\n", b""))
    write_splat(tmp_path / "small.splat", ball(300))
    names_of_files = ("bad.ply", "mesh.ply", "huge.ply", "uncounted.ply", "ball.ply", "small.splat")
    files = [tmp_path / name for name in names_of_files]
    assert export(*files, "--out", tmp_path / "out", "--splat", "--ply") == 1
    assert names(tmp_path / "out") == {"ball", "small"}
    assert read_ply(tmp_path / "out" / "small" / "gaussians.ply").means_BN3.shape == (1, 300, 3)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    assert "bad.ply: truncated" in errors[0]
    assert "mesh.ply: the file is a mesh" in errors[1]
    assert "huge.ply: truncated" in errors[2]
    assert "uncounted.ply: its header has no number of Gaussians" in errors[3]


def test_files_of_one_name_get_folders_of_their_own(tmp_path):
    for kind in ("chair", "duck"):
        (tmp_path / kind).mkdir()
        write_ply(tmp_path / kind / "gaussians.ply", ball(50))
    files = [tmp_path / kind / "gaussians.ply" for kind in ("chair", "duck")]
    assert export(*files, "--out", tmp_path / "out", "--splat") == 0
    assert names(tmp_path / "out") == {"chair_gaussians", "duck_gaussians"}
    with pytest.raises(DataError, match="name each file once"):
        export(files[0], files[0], "--out", tmp_path / "out", "--splat")


def test_suffixes_may_be_written_large(ply, tmp_path):
    write_splat(tmp_path / "small.SPLAT", ball(300))
    ply.rename(tmp_path / "large.PLY")
    assert export(tmp_path / "small.SPLAT", tmp_path / "large.PLY", "--out", tmp_path / "out", "--ply") == 0
    assert names(tmp_path / "out") == {"small", "large"}


def test_mistakes_are_one_line(ply, tmp_path):
    out = str(tmp_path / "out")
    code, _, err = run_command("tools.export_gaussians", str(ply), "--out", out, "--turntable-size", "33")
    assert code == 2
    assert err.splitlines()[-1] == "error: assets.turntable_size must be even for the video codec, got 33"
    assert "Traceback" not in err
    with pytest.raises(ConfigError, match=r"--distance must be positive, .* got -1\.0"):
        export(ply, "--out", tmp_path / "out", "--distance", "-1")


def test_a_bad_file_does_not_stop_the_others(ply, tmp_path, capsys):
    (tmp_path / "bad.ply").write_bytes(b"junk")
    assert export(tmp_path / "bad.ply", ply, tmp_path / "none.splat", "--out", tmp_path / "out", "--splat") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"1 exported, 2 failed: {tmp_path / 'out'}"
    first, second = (line for line in err.splitlines() if line.startswith("error: "))
    assert first.startswith(f"error: {tmp_path / 'bad.ply'}: not a .ply file")
    assert second == f"error: {tmp_path / 'none.splat'}: no such file; name a .splat file"


def test_a_full_disk_is_one_line(ply, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export_gaussians, "write_assets", full)
    with pytest.raises(DataError, match=r"out cannot be written \(No space left on device\); free some space"):
        export(ply, "--out", tmp_path / "out", "--splat")
    monkeypatch.setattr(compare_meshes, "write_json", full)
    trimesh.creation.box().export(tmp_path / "box.glb")
    line = [str(tmp_path / "box.glb")] * 2
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        compare_meshes.main([*line, "--points", "200", "--json", str(tmp_path / "a.json")])


def test_the_content_decides_what_a_file_of_gaussians_is(ply, tmp_path):
    assert export(ply, "--out", tmp_path / "out", "--spz", "--gltf") == 0
    assert names(tmp_path / "out" / "ball") == {"gaussians.spz", "gaussians.glb"}
    ply.rename(tmp_path / "renamed.splat")
    (tmp_path / "out" / "ball" / "gaussians.spz").rename(tmp_path / "b.ply")
    (tmp_path / "out" / "ball" / "gaussians.glb").rename(tmp_path / "c.ply")
    files = [tmp_path / name for name in ("renamed.splat", "b.ply", "c.ply")]
    assert export(*files, "--out", tmp_path / "again", "--ply") == 0
    first, *others = (read_ply(tmp_path / "again" / file.stem / "gaussians.ply").means_BN3 for file in files)
    for other in others:
        torch.testing.assert_close(other, first, atol=2e-6, rtol=0)


NUMBERS = ["--distance", "--fov", "--elevation"]
NUMBERS += [
    f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(AssetOptions) if field.type.startswith("float")
]


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("option", NUMBERS)
def test_what_is_no_number_is_refused(ply, tmp_path, option, value):
    with pytest.raises(ConfigError, match=value):
        export_gaussians.main([str(ply), "--out", str(tmp_path / "out"), "--turntable", option, value])


def test_a_made_mesh_is_compared_with_the_true_one(ply, tmp_path, capsys):
    assert export(ply, "--out", tmp_path / "out", "--glb", "--mesh-lowest-deg", "-80") == 0
    trimesh.creation.icosphere(subdivisions=4, radius=0.4).export(tmp_path / "true.glb")
    made = tmp_path / "out" / "ball" / "mesh.glb"
    line = [str(made), str(tmp_path / "true.glb"), "--points", "5000", "--json", str(tmp_path / "found.json")]
    assert compare_meshes.main(line) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["chamfer"] < 0.03
    assert found["f_scores"]["0.05"] > 0.99
    assert "F-score at 0.05: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("radius", "shift", "warned"), [(0.7, 0, False), (0.8, 0, True), (0.5, 0.2, False), (0.5, 0.3, True)]
)
def test_other_scales_and_places_are_noticed(tmp_path, caplog, radius, shift, warned):
    trimesh.creation.icosphere(radius=0.5).export(tmp_path / "true.glb")
    trimesh.creation.icosphere(radius=radius).apply_translation((shift, 0, 0)).export(tmp_path / "made.glb")
    line = [str(tmp_path / name) for name in ("made.glb", "true.glb")]
    assert compare_meshes.main([*line, "--points", "500"]) == 0
    assert ["try --normalise-true" in record.getMessage() for record in caplog.records] == [True] * warned


def test_the_true_mesh_can_be_scaled_into_the_unit_cube(tmp_path, capsys, caplog):
    trimesh.creation.icosphere(subdivisions=4, radius=0.5).export(tmp_path / "made.glb")
    trimesh.creation.icosphere(subdivisions=4, radius=7.0).apply_translation((3, 0, 0)).export(tmp_path / "true.obj")
    line = [str(tmp_path / name) for name in ("made.glb", "true.obj")]
    assert compare_meshes.main([*line, "--points", "5000", "--normalise-true"]) == 0
    assert "F-score at 0.05: 1.0000" in capsys.readouterr().out
    assert caplog.text == ""
    with pytest.raises(ConfigError, match="--points"):
        compare_meshes.main([*line, "--points", "1"])
    with pytest.raises(DataError, match="no such file"):
        compare_meshes.main([line[0], str(tmp_path / "none.glb")])

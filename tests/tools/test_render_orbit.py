"""Rendering many meshes: bad ones are named, changed ones are done again, and every orbit shows something."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from datasets.meshes.records import SOURCE_FILE
from datasets.orbits.layout import is_complete, read_rgba, view_file
from tests.conftest import ROOT
from tests.tiny_meshes import BLUE, GREEN, Glb, box_glb, card, flat_png, write_obj
from tools import make_zoo, render_orbit
from utils.cameras import camera_elevations_deg
from utils.errors import ConfigError, DataError
from utils.files import atomic_folder

pytest.importorskip("embreex")
pytest.importorskip("trimesh")  # before the processes are forked, so that they need not import it

SMALL = ["--views", "2", "--size", "16", "--samples", "2", "--workers", "1", "--no-nd"]


def render(source, out, *more) -> int:
    return render_orbit.main([str(source), "--out", str(out), *SMALL, *more])


def color(out, name: str, view: int = 0) -> list[bool]:
    """Which of red, green and blue are seen in the middle of a view."""
    return (read_rgba(view_file(out / "meshes" / name, view))[8, 8, :3] > 60).tolist()


RED_ONLY, GREEN_ONLY, BLUE_ONLY = np.eye(3, dtype=bool).tolist()


def test_a_bad_index_is_one_line_and_the_others_are_rendered(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    bad = box_glb()
    bad.primitive()["indices"] = bad.accessor(np.array([0, 1, 9999], np.uint16))
    bad.write(tmp_path / "in" / "a_bad.glb")
    for number in range(3):
        box_glb().write(tmp_path / "in" / f"b_{number}.glb")
    assert render(tmp_path / "in", tmp_path / "out") == 1
    out, err = capfd.readouterr()
    assert [line for line in err.splitlines() if "error:" in line] == [
        f"error: {tmp_path / 'in' / 'a_bad.glb'}: a face names vertex 9999, but there are 24 vertices; "
        "repair the mesh and export it again"
    ]
    assert out == f"3 rendered, 0 already there, 1 failed: {tmp_path / 'out'}\n"


def test_what_a_mesh_loses_is_one_line(tmp_path, capfd):
    path = write_obj(tmp_path / "in" / "a.obj", "map_Kd gone.png")
    assert render(tmp_path / "in", tmp_path / "out") == 0
    out, err = capfd.readouterr()
    assert [line for line in err.splitlines() if "warning:" in line] == [
        f"warning: {path}: texture gone.png is not found"
    ]
    assert "1 rendered (1 with a warning), 0 already there, 0 failed" in out


def test_a_texture_above_the_mesh_is_read_below_the_folder_that_is_given(tmp_path, capfd):
    write_obj(tmp_path / "in" / "a" / "a.obj", "map_Kd ../t.png", texture=tmp_path / "in" / "t.png", color=BLUE)
    assert render(tmp_path / "in", tmp_path / "out") == 0
    assert color(tmp_path / "out", "a") == BLUE_ONLY
    assert render(tmp_path / "in" / "a" / "a.obj", tmp_path / "alone") == 0
    assert "texture ../t.png lies outside the folder that was given and is not read" in capfd.readouterr().err


@pytest.mark.parametrize("layout", ["folders", "packed"])
def test_a_changed_mesh_is_rendered_again(tmp_path, capfd, layout):
    more = ["--packed", "--shard", "1"] if layout == "packed" else []
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    box_glb().write(source / "kept.glb")
    thing = box_glb().write(source / "thing.glb")
    assert render(source, out, *more) == 0
    assert "2 rendered, 0 already there" in capfd.readouterr().out
    assert render(source, out, *more) == 0
    assert "0 rendered, 2 already there" in capfd.readouterr().out
    os.utime(thing)  # another time, but the same content
    assert render(source, out, *more) == 0
    assert "0 rendered, 2 already there" in capfd.readouterr().out
    old = thing.stat()
    box_glb((0, 1, 0)).write(thing)
    os.utime(thing, (old.st_atime, old.st_mtime - 1000))  # an older file that was copied here
    assert render(source, out, *more) == 0
    assert "1 rendered, 1 already there" in capfd.readouterr().out
    if not more:
        assert color(out, "thing") == GREEN_ONLY
        assert color(out, "kept") == RED_ONLY


def test_a_changed_texture_and_one_that_was_missing_are_noticed(tmp_path, capfd):
    out, source = tmp_path / "out", tmp_path / "in"
    write_obj(source / "a.obj", "map_Kd skin.png")
    assert render(source, out) == 0
    for picture, expected in ((flat_png(GREEN), GREEN_ONLY), (flat_png(BLUE), BLUE_ONLY)):
        (source / "skin.png").write_bytes(picture)
        assert render(source, out) == 0
        assert color(out, "a") == expected
    (source / "m.mtl").write_text("newmtl skin\nKd 1 0 0\n")
    assert render(source, out) == 0
    assert color(out, "a") == RED_ONLY


def test_views_of_older_versions_are_kept_unless_the_mesh_is_newer(tmp_path, capfd):
    path = box_glb().write(tmp_path / "a.glb")
    render(path, tmp_path / "out")
    (tmp_path / "out" / "meshes" / "a" / SOURCE_FILE).unlink()
    os.utime(path, (1, 1))
    render(path, tmp_path / "out")
    assert "1 already there" in capfd.readouterr().out
    box_glb((0, 1, 0)).write(path)
    render(path, tmp_path / "out")
    assert color(tmp_path / "out", "a") == GREEN_ONLY


def test_failed_meshes_of_a_packed_file_are_told_again_and_tried_when_they_changed(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    box_glb().write(tmp_path / "in" / "a.glb")
    (tmp_path / "in" / "b.glb").write_bytes(b"junk")
    for _ in range(2):
        assert render(tmp_path / "in", tmp_path / "out", "--packed") == 1
        out, err = capfd.readouterr()
        assert "b.glb: is no glTF" in err
    assert "0 rendered, 1 already there, 1 failed" in out
    box_glb().write(tmp_path / "in" / "b.glb")
    assert render(tmp_path / "in", tmp_path / "out", "--packed") == 0
    assert "2 rendered, 0 already there, 0 failed" in capfd.readouterr().out


def test_an_orbit_that_shows_nothing_has_failed(tmp_path, capfd):
    glb = box_glb()
    glb.node(0, translation=[1e4, 0, 0])
    assert render(glb.write(tmp_path / "far.glb"), tmp_path / "out") == 1
    assert "far.glb: nothing of it is seen in view 0, 1" in capfd.readouterr().err
    assert not (tmp_path / "out" / "meshes" / "far").exists()


def test_the_edge_of_a_flat_object_may_be_empty(tmp_path, capfd):
    glb = Glb()
    glb.node(glb.mesh(card()))
    assert render(glb.write(tmp_path / "card.glb"), tmp_path / "out", "--views", "4") == 0
    assert "card.glb: views 1, 3 look at the edge of a flat object and are empty" in capfd.readouterr().err
    assert is_complete(tmp_path / "out" / "meshes" / "card", num_views=4)


def test_hidden_files_and_folders_with_a_mesh_name_are_passed_over(tmp_path, capfd):
    box_glb().write(tmp_path / "a.glb")
    (tmp_path / "._b.obj").write_bytes(b"\0\5\26\7")
    (tmp_path / "c.obj").mkdir()
    (tmp_path / "d.fbx").touch()
    assert render(tmp_path, tmp_path / "out") == 0
    out, err = capfd.readouterr()
    assert "1 rendered" in out
    assert f"warning: {tmp_path}: 1 .fbx are not read; export them as .glb" in err


def test_leftovers_of_killed_runs_are_removed_but_not_those_of_a_live_one(tmp_path):
    box_glb().write(tmp_path / "a.glb")
    folder = tmp_path / "out" / "meshes"
    killed = (
        "import os\nfrom utils.files import atomic_folder\n"
        f"with atomic_folder({str(folder / 'b')!r}):\n    os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", killed], cwd=ROOT, check=False)
    [left] = folder.iterdir()
    with atomic_folder(folder / "c") as live:
        left.mkdir(exist_ok=True)  # the line above has removed it in this process
        assert render(tmp_path / "a.glb", tmp_path / "out") == 0
        assert {path.name for path in folder.iterdir()} == {"a", live.name}  # the left one is gone


@pytest.mark.parametrize("tool", ["render_orbit", "make_zoo"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, tool):
    """The processes are forked, so they see the function that fails."""

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    module = {"render_orbit": render_orbit, "make_zoo": make_zoo}[tool]
    monkeypatch.setattr(module, "write_orbit", full)
    mesh = box_glb().write(tmp_path / "a.glb")
    out = str(tmp_path / "out")
    line = {"render_orbit": [str(mesh), "--out", out], "make_zoo": [out, "--num", "3"]}[tool]
    with pytest.raises(DataError, match=r"out cannot be written \(No space left on device\); free some space"):
        module.main([*line, *SMALL])


def test_settings_that_would_do_harm_are_refused(tmp_path):
    path = box_glb().write(tmp_path / "a.glb")
    for folder in ("../../x", "a/b", "..", ""):
        with pytest.raises(ConfigError, match="--dictionary"):
            render(path, tmp_path / "out", "--dictionary", folder)
    with pytest.raises(ConfigError, match=r"--size 8192, --views 100000 .*GB for one object"):
        render(path, tmp_path / "out", "--size", "8192", "--views", "100000")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "render_settings.json").write_text("[]")
    with pytest.raises(DataError, match="not the settings of a rendering"):
        render(path, tmp_path / "out")


def test_lists_in_other_encodings(tmp_path, capfd):
    path = box_glb().write(tmp_path / "a.glb")
    row = json.dumps({"file": "a.glb", "caption": "a box"}) + "\n"
    (tmp_path / "list.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\n")
    assert render(path, tmp_path / "out", "--list", str(tmp_path / "list.jsonl")) == 0
    (tmp_path / "list.jsonl").write_bytes(row.encode("utf-16"))
    with pytest.raises(DataError, match=r"list\.jsonl: cannot be read as UTF-8 text .* save it as UTF-8"):
        render(path, tmp_path / "out", "--list", str(tmp_path / "list.jsonl"))


def test_one_mesh_named_twice_is_rendered_once(tmp_path, capfd):
    path = box_glb().write(tmp_path / "a.glb")
    assert render_orbit.main([str(path), str(tmp_path), "--out", str(tmp_path / "out"), *SMALL]) == 0
    assert "1 rendered" in capfd.readouterr().out
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b" / "a.obj")
    with pytest.raises(DataError, match="would be written to one folder; rename one of them"):
        render(tmp_path, tmp_path / "out")


def test_scattered_views_have_elevations_of_their_own(tmp_path):
    mesh = tmp_path / "box.glb"
    mesh.write_bytes(b"")
    given = [str(mesh), "--out", str(tmp_path / "out"), "--views", "12", "--elevation", "-15", "60"]
    whole, scattered = (render_orbit.parse_args([*given, *more]) for more in ([], ["--scattered"]))
    orbit, views = (torch.from_numpy(render_orbit.cameras_of("box", options)) for options in (whole, scattered))
    assert float(camera_elevations_deg(orbit).std()) < 1e-4
    elevations = camera_elevations_deg(views)
    assert -15 <= float(elevations.min()) < 5
    assert 40 < float(elevations.max()) <= 60
    azimuths = torch.rad2deg(torch.atan2(views[:, 1, 3], views[:, 0, 3])) % 360
    torch.testing.assert_close(azimuths, 30.0 * torch.arange(12), atol=1e-3, rtol=0)
    assert render_orbit.held_settings(scattered)["scattered"] != render_orbit.held_settings(whole)["scattered"]
    with pytest.raises(ConfigError, match="give --elevation two angles"):
        render_orbit.parse_args([*given[:-1], "--scattered"])

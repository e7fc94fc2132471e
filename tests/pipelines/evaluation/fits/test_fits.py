"""The table of fits: known damage, one unit of work after the other, and what was measured is kept."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import trimesh

import pipelines  # noqa: F401 - registers
from pipelines.evaluation.fits import measure
from pipelines.evaluation.fits.damage import damaged, damaged_numbers
from pipelines.evaluation.fits.measure import FitsOptions, evaluate_fits, row_of
from pipelines.evaluation.fits.methods import method_names
from tests.tiny import load, write_image_family
from tests.tiny_gaussians import ball
from tests.tiny_orbits import write_turning_orbits
from tests.tiny_views import sphere_views
from tools import make_zoo, render_orbit
from utils.errors import ConfigError, DataError
from utils.registry import FITS

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"num_steps": 2, "hull_grid": 16}
SMALL = [
    "assets.grid=16", "assets.mesh_views=6", "assets.mesh_view_size=32", "assets.faces=200", "resolution=[32,32]",
    "cameras.num_views=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    assert make_zoo.main([str(folder), "--num", "2", "--packed", "--split", "held_out", "--views", "8",
                          "--size", "32", "--samples", "2", "--workers", "1", "--seed", "3"]) == 0  # fmt: skip
    return folder


def options_of(zoo, out, **changes) -> FitsOptions:
    sections = {"gs": FITS.section({"type": "gs", "num_gaussians": 64, **QUICK})}
    sections["hull"] = sections["gs"]
    return dataclasses.replace(
        FitsOptions(held_out=zoo, sections=sections, views=["true"], num_objects=2, out=out, num_points=500), **changes
    )


def configured(folder):
    return load(folder, {"UNet": {"type": "UNetSD_T2VBase"}}, *SMALL)


class Knowing:
    """A head that makes the same object of any views."""

    def world_gaussians(self, views_BVCHW, c2w_V44):
        return ball(300)


def test_a_small_table_is_made_and_continued(tmp_path, zoo, monkeypatch):
    cfg, options = configured(tmp_path), options_of(zoo, tmp_path / "out")
    made, make = [], measure.make_object

    def stop_at_the_third(*args, **kwargs):
        made.append(kwargs["hull_only"])
        if len(made) == 3:
            raise KeyboardInterrupt
        return make(*args, **kwargs)

    monkeypatch.setattr(measure, "make_object", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate_fits(cfg, options)
    assert not (tmp_path / "out" / "fits.json").exists()
    result = evaluate_fits(cfg, options)
    assert made == [False, False, True, True, True, False, False, True, True]  # two units were kept, and one begun anew
    assert [(row["views"], row["state"], row["method"]) for row in result["rows"]] == [
        ("true", state, method) for state in ("clean", "4 damaged") for method in ("gs", "hull")
    ]
    for row in result["rows"]:
        assert row["num_failed"] == 0
        assert 0 < row["iou"] <= 1
        assert 0 < row["chamfer"] < 0.5
        assert row["psnr"] > 8
        assert row["peak_memory_mb"] > 50
    by_name = {(row["state"], row["method"]): row for row in result["rows"]}
    assert by_name["clean", "hull"]["iou"] > by_name["4 damaged", "hull"]["iou"]
    assert by_name["clean", "hull"]["named_right"] is None
    assert json.loads((tmp_path / "out" / "fits.json").read_text()) == result
    lines = (tmp_path / "out" / "fits.md").read_text().splitlines()
    assert len(lines) == 2 + 4
    assert lines[0].startswith("| views | state | method | PSNR | SSIM | Chamfer | Chamfer (SyncDreamer) | IoU |")
    assert (tmp_path / "out" / "meshes_0001.png").is_file()
    evaluate_fits(cfg, options)
    assert len(made) == 9
    (tmp_path / "out" / "fits" / "true-clean" / "hull" / "0000" / "mesh.glb").unlink()
    evaluate_fits(cfg, options)
    assert made[9:] == [True]


def test_parts_share_the_work_and_the_whole_is_the_same(tmp_path, zoo, monkeypatch):
    cfg, options = configured(tmp_path), options_of(zoo, tmp_path / "parts")
    whole = evaluate_fits(cfg, options_of(zoo, tmp_path / "whole"))
    second = evaluate_fits(cfg, dataclasses.replace(options, part=(2, 2)))
    assert [row["num_objects"] for row in second["rows"]] == [1] * 4
    assert not (tmp_path / "parts" / "fits.json").exists()
    evaluate_fits(cfg, dataclasses.replace(options, part=(1, 2)))
    monkeypatch.setattr(measure, "make_object", None)  # nothing is left to do
    merged = evaluate_fits(cfg, options)
    timed = {"seconds", "mesh_seconds", "peak_memory_mb", "by_object"}
    for one, other in zip(merged["rows"], whole["rows"], strict=True):
        assert {name: one[name] for name in one.keys() - timed} == {name: other[name] for name in one.keys() - timed}
    assert second["rows"][0]["psnr"] == whole["rows"][0]["by_object"][1]["psnr"]


def test_a_part_does_not_sample(tmp_path, zoo):
    cfg = load(tmp_path, write_image_family(tmp_path), *SMALL)
    with pytest.raises(DataError, match=r"--part needs the generated views, but .*given_1/0000"):
        evaluate_fits(cfg, options_of(zoo, tmp_path / "out", views=["generated"], part=(1, 2)))


def test_real_objects_have_the_meshes_that_were_rendered(tmp_path):
    meshes = tmp_path / "objects"
    meshes.mkdir()
    trimesh.creation.box((1.0, 0.6, 0.8)).export(meshes / "box.glb")
    opened = trimesh.creation.icosphere(subdivisions=2)
    opened.update_faces(np.arange(len(opened.faces)) > 3)
    opened.export(meshes / "open.glb")
    packed = [str(meshes), "--out", str(tmp_path / "orbits"), "--packed", "--views", "8", "--size", "32"]
    assert render_orbit.main([*packed, "--workers", "1"]) == 0
    cfg, options = configured(tmp_path), options_of(tmp_path / "orbits", tmp_path / "out", meshes=meshes)
    options = dataclasses.replace(options, sections={"hull": options.sections["hull"]})
    rows = evaluate_fits(cfg, options)["rows"]
    box, ball_with_hole = rows[0]["by_object"]
    assert 0.5 < box["iou"] == rows[0]["iou"]
    assert ball_with_hole["iou"] is None
    assert rows[0]["chamfer"] < 0.1
    (meshes / "box.glb").unlink()
    with pytest.raises(DataError, match="no mesh of meshes/box"):
        evaluate_fits(cfg, options)


def test_the_head_is_a_row(tmp_path, zoo, monkeypatch):
    monkeypatch.setattr(measure, "load_head_alone", lambda cfg, device: Knowing())
    result = evaluate_fits(configured(tmp_path), options_of(zoo, tmp_path / "out", sections={"head": None}))
    clean, hurt = result["rows"]
    assert (clean["psnr"], clean["chamfer"], clean["num_failed"]) == (hurt["psnr"], hurt["chamfer"], 0)
    assert (clean["method"], hurt["state"]) == ("head", "4 damaged")
    names = method_names(with_head=True)  # of all that is registered, also by other tests
    assert [name for name in names if name in ("hull", "gs", "nerf", "neus", "head")] == [
        "hull", "gs", "nerf", "neus", "head"
    ]  # fmt: skip


def test_what_cannot_be_measured_is_refused(tmp_path, zoo):
    cfg = configured(tmp_path)
    with pytest.raises(ConfigError, match="needs at least 2 objects, got 1"):
        evaluate_fits(cfg, options_of(zoo, tmp_path / "out", num_objects=1))
    with pytest.raises(ConfigError, match="generated needs an image model"):
        evaluate_fits(cfg, options_of(zoo, tmp_path / "out", views=["generated"]))
    discs = write_turning_orbits(tmp_path / "discs", elevations=(10.0, 20.0))
    with pytest.raises(DataError, match="has no true meshes"):
        evaluate_fits(cfg, options_of(discs, tmp_path / "out"))


def test_four_views_are_damaged_and_the_others_are_not():
    assert list(damaged_numbers(24).values()) == [4, 10, 15, 20]
    good, other = (sphere_views(num_views=24, size=32, radius=radius) for radius in (0.5, 0.3))
    bad = damaged(good, other)
    same = [view for view in range(24) if torch.equal(bad.colors_V3HW[view], good.colors_V3HW[view])]
    assert [view for view in range(24) if view not in same] == [4, 10, 15, 20]
    assert torch.equal(bad.masks_V1HW[4], other.masks_V1HW[4])
    assert torch.equal(bad.masks_V1HW[10], good.masks_V1HW[10].roll(2, dims=-1))
    torch.testing.assert_close(bad.colors_V3HW[15], 0.8 * good.colors_V3HW[15].flip(0))
    assert torch.equal(bad.masks_V1HW[15], good.masks_V1HW[15])
    sharp, soft = ((views.masks_V1HW[20].diff(dim=-1).abs().amax()) for views in (good, bad))
    assert float(soft) < 0.8 * float(sharp)


def test_means_leave_out_what_an_object_does_not_have():
    whole = {"psnr": 20.0, "ssim": 0.5, "chamfer": 0.1, "iou": 0.5, "seconds": 1.0, "named_right": True}
    row = row_of([whole, {"error": "empty"}, {**whole, "psnr": 30.0, "named_right": False}])
    assert (row["psnr"], row["named_right"], row["num_failed"], row["num_objects"]) == (25.0, 1, 1, 3)
    assert row["chamfer_all"] is None
    assert np.isclose(row["chamfer"], 0.1)

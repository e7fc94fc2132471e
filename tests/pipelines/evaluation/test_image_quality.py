"""An image model against the truth, on untrained tiny models: rows, views, resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.orbits.layout import write_orbit
from pipelines.evaluation.held_out import TrueOrbits
from pipelines.evaluation.image_metrics import ViewScores, join
from pipelines.evaluation.image_quality import CEILING, QualityOptions, best_of, evaluate_quality
from pipelines.evaluation.quality_report import (
    FIRST_STEP,
    MODEL_ROW,
    REPEATED,
    gain,
    quality_sheet,
    quality_table,
    spread_by_psnr,
    summary,
)
from pipelines.evaluation.samples import given_views, read_views
from tests.tiny import load, write_family, write_image_family
from tests.tiny_orbits import SIZE, write_turning_orbits
from utils.cameras import orbit_cameras
from utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")
OTHERS = "mean image of the other held-out objects (floor)"


def family_of(tmp_path):
    auto_encoder = write_image_family(tmp_path)["auto_encoder"] | {"posterior": "mode"}
    config = write_image_family(tmp_path) | {"auto_encoder": auto_encoder, "cameras": {"num_views": 8}}
    return config | {"sampler": {"type": "DPMSolver++", "num_steps": 2}, "batch_size": 2}


@pytest.fixture
def family(tmp_path):
    return family_of(tmp_path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with an evaluation of 1, 2 and 4 given views, and what it found."""
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, evaluate_quality(load(folder, family_of(folder)), options(folder, known=(2, 4)))


def options(tmp_path, **changes):
    held_out = tmp_path / "held_out"
    if "held_out" not in changes and not held_out.is_dir():
        write_turning_orbits(held_out, elevations=(10.0, 10.0, 25.0))
    values = {"held_out": held_out, "train": None, "num_objects": 3, "known": (), "start_seed": None, "num_sheet": 2}
    return QualityOptions(**values | {"out": tmp_path / "eval"} | changes)


def test_rows_and_files(evaluated):
    tmp_path, result = evaluated
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text()) == result
    names = [MODEL_ROW, f"{MODEL_ROW}, 2 given views", f"{MODEL_ROW}, 4 given views"]
    names += [FIRST_STEP, REPEATED, OTHERS, CEILING]
    assert list(result["rows"]) == names
    assert result["views"] == {"unseen": [1, 3, 5, 7], "back": [3, 5], "all": list(range(8))}
    assert result["given_views"] == {"1": [0], "2": [0, 4], "4": [0, 2, 4, 6]}
    assert (result["num_objects"], result["lpips_network"]) == (3, None)
    repeated = result["rows"][REPEATED]["by_view"]
    assert repeated["psnr"][0] == 60
    assert max(repeated["psnr"][1:]) < 30
    # the views that are given come out as the autoencoder shows them, but for 8 bits
    ceiling, given = result["rows"][CEILING]["by_view"]["psnr"], result["rows"][names[2]]["by_view"]["psnr"]
    assert [given[view] for view in (2, 4, 6)] == pytest.approx([ceiling[view] for view in (2, 4, 6)], abs=0.1)
    assert set(result["psnr_over_one_given_view"]) == set(names[1:3])
    assert result["psnr_over_repeated_input"][REPEATED]["mean_db"] == 0
    sheet = Image.open(tmp_path / "eval" / "sheet.png")
    assert sheet.size == (8 * (SIZE + 2) - 2, 2 * 3 * (SIZE + 2) - 2)
    assert len(result["sheet"]) == 2
    assert Image.open(tmp_path / "eval" / "azimuth.png").width > 500
    text = quality_table(result)
    assert "4 views that were not given (1, 3, 5, 7)" in text
    assert all(name in text for name in names)


def test_each_object_has_its_own_cameras_and_known_views_their_place(evaluated):
    tmp_path, _ = evaluated
    folders = sorted((tmp_path / "eval" / "given_2").iterdir())
    assert [folder.name for folder in folders] == [f"000{n}-0-{n}_seed11" for n in range(3)]
    for folder, elevation in zip(folders, (10, 10, 25), strict=True):
        c2w = torch.tensor(json.loads((folder / "result.json").read_text())["c2w"])
        expected = orbit_cameras(num_views=8, elevation_deg=elevation, radius=2)
        torch.testing.assert_close(c2w, expected, atol=1e-6, rtol=0)
        assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 8
        assert read_views(folder / "views").shape == (8, 3, SIZE, SIZE)


def test_what_is_there_is_kept_and_what_changed_is_made_again(tmp_path, evaluated, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.image_quality._write_pictures", lambda *args, **options: [])
    made, first = evaluated
    shared = {"held_out": made / "held_out"}
    shutil.copytree(made / "eval" / "given_1", tmp_path / "eval" / "given_1")

    def stamps():
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("eval/given_1/*/result.json")}

    cfg = load(made, family_of(made))
    before = stamps()
    assert len(before) == 3
    (tmp_path / "eval" / "given_1" / "0001-0-1_seed11" / "result.json").write_text("{")
    again = evaluate_quality(cfg, options(tmp_path, **shared))
    # in a batch of another size, rounding to 8 bits may fall otherwise here and there
    assert again["rows"][MODEL_ROW]["all"] == pytest.approx(first["rows"][MODEL_ROW]["all"], abs=1e-3)
    assert [name for name, stamp in stamps().items() if stamp != before[name]] == ["0001-0-1_seed11"]
    before = stamps()
    second = evaluate_quality(cfg, options(tmp_path, **shared, start_seed=1))
    starts = TrueOrbits(shared["held_out"], cfg, limit=3, scratch=tmp_path, option="--held-out", start_seed=1).starts
    assert any(starts)
    assert [name for name, stamp in sorted(stamps().items()) if stamp != before[name]] == [
        name for name, start in zip(sorted(before), starts, strict=True) if start
    ]
    assert second["rows"][REPEATED]["by_view"] != first["rows"][REPEATED]["by_view"]
    sampler = cfg.sampler.changed(num_steps=3)
    other = evaluate_quality(dataclasses.replace(cfg, sampler=sampler), options(tmp_path, **shared))
    assert other["rows"][MODEL_ROW]["by_view"] != first["rows"][MODEL_ROW]["by_view"]
    assert other["rows"][REPEATED]["by_view"] == first["rows"][REPEATED]["by_view"]


def test_a_random_start_rolls_pictures_and_not_cameras(tmp_path, family):
    cfg, folder = load(tmp_path, family), write_turning_orbits(tmp_path / "held_out", elevations=(10.0,) * 5)
    shared = {"limit": 5, "scratch": tmp_path, "option": "--held-out"}
    plain, rolled = TrueOrbits(folder, cfg, **shared), TrueOrbits(folder, cfg, start_seed=3, **shared)
    assert len(set(rolled.starts)) > 1
    for index, start in enumerate(rolled.starts):
        assert rolled[index].start_view == start
        assert rolled[index].views_VCHW[0].equal(plain[index].views_VCHW[start])
        assert rolled[index].masks_V1HW[1].equal(plain[index].masks_V1HW[(start + 1) % 8])
        assert rolled[index].c2w_V44.equal(plain[index].c2w_V44)


def test_rendered_meshes_need_no_index_and_opaque_pictures_no_mask(tmp_path, family):
    rgba = np.random.default_rng(0).integers(0, 255, (8, SIZE, SIZE, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    camera = {"c2w_V44": orbit_cameras(num_views=8, elevation_deg=5, radius=2).numpy(), "fov_deg": 39.6}
    write_orbit(tmp_path / "meshes" / "real" / "cow", rgba_VHW4=rgba, **camera, bounds_23=np.zeros((2, 3)))
    train = write_turning_orbits(tmp_path / "train", elevations=(10.0, 20.0))
    changes = {"held_out": tmp_path / "meshes", "train": train}
    result = evaluate_quality(load(tmp_path, family), options(tmp_path, **changes))
    assert result["psnr_by_object"][0]["object"] == "real/cow"
    assert "mean image of 2 training objects (floor)" in result["rows"]
    assert all(row["all"]["masked_psnr"] is None for row in result["rows"].values())
    assert result["psnr_over_repeated_input"][MODEL_ROW]["standard_error_db"] is None
    alone = evaluate_quality(load(tmp_path, family), options(tmp_path, held_out=tmp_path / "meshes"))
    assert list(alone["rows"]) == [MODEL_ROW, FIRST_STEP, REPEATED, CEILING]  # one object has no others


def test_gains_are_counted_object_by_object():
    found = gain(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0]))
    assert found == pytest.approx({"mean_db": 3.0, "standard_error_db": 1.0})
    psnr_OV = torch.arange(24.0)[None].repeat(3, 1) + torch.tensor([[2.0], [0.0], [1.0]])
    row = ViewScores(psnr_OV=psnr_OV, masked_psnr_OV=None, ssim_OV=psnr_OV, lpips_OV=None)
    losses = {"losses_OT": torch.zeros(3, 1), "timesteps": [5]}
    result = summary({MODEL_ROW: row, REPEATED: row}, ["a", "b", "c"], {1: (0,)}, **losses)
    assert result["views"]["back"] == list(range(9, 16))
    assert result["views"]["unseen"] == list(range(1, 24))
    assert spread_by_psnr(result, count=3) == [1, 2, 0]
    assert spread_by_psnr(result, count=1) == [1]
    white = torch.ones(24, 3, 4, 4)
    assert quality_sheet([(white, white)]).shape == (3, 3 * 6 - 2, 8 * 6 - 2)
    assert quality_sheet([(white, white * 0)])[:, 12:].max() == 1  # the gap


def rows_of(*psnr_db):
    """Scores of objects whose four views all have the same PSNR."""
    psnr_OV = torch.tensor(psnr_db)[:, None].expand(-1, 4)
    return ViewScores(psnr_OV=psnr_OV, masked_psnr_OV=psnr_OV - 5, ssim_OV=psnr_OV / 100, lpips_OV=None)


def test_means_over_seeds_and_groups_in_closed_form():
    by_seed = [[rows_of(20.0), rows_of(10.0)], [rows_of(24.0), rows_of(8.0)]]
    best = join(best_of(by_seed, [1, 2, 3]))
    assert best.psnr_OV[:, 0].tolist() == [24.0, 10.0]
    scores = {MODEL_ROW: rows_of(20.0, 10.0, 24.0, 8.0), f"{MODEL_ROW}, best of 2 seeds": best}
    scores[REPEATED] = rows_of(15.0, 9.0)
    losses = {"losses_OT": torch.tensor([[1.0, 3.0], [2.0, 8.0]]), "timesteps": [5, 9]}
    groups = {"source": {"a": [0], "b": [1]}}
    result = summary(scores, ["one", "two"], {1: (0,)}, groups=groups, **losses)
    assert result["rows"][MODEL_ROW]["unseen"]["psnr"] == pytest.approx(15.5)
    assert result["psnr_over_repeated_input"][MODEL_ROW]["mean_db"] == pytest.approx((22 + 9) / 2 - 12)
    assert result["psnr_over_repeated_input"][MODEL_ROW]["standard_error_db"] == pytest.approx(3.5)  # of 7 and 0 dB
    assert result["psnr_by_object"][0] == {
        "object": "one", MODEL_ROW: 22.0, f"{MODEL_ROW}, best of 2 seeds": 24.0, REPEATED: 15.0
    }  # fmt: skip
    assert result["loss"] == {"mean": 3.5, "by_timestep": {"5": 1.5, "9": 5.5}}
    second = result["by"]["source"]["b"]
    assert second["num_objects"] == 1
    assert second["rows"][MODEL_ROW]["unseen"]["psnr"] == pytest.approx(9.0)
    assert second["rows"][MODEL_ROW]["unseen"]["masked_psnr"] == pytest.approx(4.0)
    assert second["psnr_over_repeated_input"][MODEL_ROW]["mean_db"] == pytest.approx(0.0)
    assert second["loss"]["mean"] == 5.0
    text = quality_table(result)
    assert "loss of training: 3.5000 (1.5000 at 5, 5.5000 at 9)" in text
    assert "b, 1 objects, loss 5.0000" in text


def test_several_seeds_and_sources_end_to_end(tmp_path, family):
    records = [{"source": "toys", "style": "flat"}, {"source": "tools", "style": "flat"}]
    held_out = write_turning_orbits(tmp_path / "held_out", elevations=(10.0, 10.0), attributes=records)
    cfg = load(tmp_path, family, "sampler.num_steps=1")
    result = evaluate_quality(cfg, options(tmp_path, held_out=held_out, num_seeds=2))
    names = {path.name for path in (tmp_path / "eval" / "given_1").iterdir()}
    assert names == {f"000{number}-0-{number}_seed{seed}" for number in (0, 1) for seed in (11, 12)}
    best = f"{MODEL_ROW}, best of 2 seeds"
    assert list(result["rows"])[:3] == [MODEL_ROW, best, FIRST_STEP]
    assert all(row[best] >= row[MODEL_ROW] - 1e-3 for row in result["psnr_by_object"])
    assert {key: list(values) for key, values in result["by"].items()} == {"source": ["tools", "toys"]}
    tools, toys = (result["by"]["source"][name]["rows"][MODEL_ROW]["unseen"]["psnr"] for name in ("tools", "toys"))
    assert (tools + toys) / 2 == pytest.approx(result["rows"][MODEL_ROW]["unseen"]["psnr"])
    assert len(result["loss"]["by_timestep"]) == 8
    with pytest.raises(ConfigError, match=r"--by kind: no object has this attribute; use one of: source, style"):
        evaluate_quality(cfg, options(tmp_path, held_out=held_out, by=["kind"]))


@pytest.mark.parametrize(("num", "views"), [(1, (0,)), (2, (0, 12)), (4, (0, 6, 12, 18))])
def test_given_views_are_even(num, views):
    assert given_views(num, 24) == views


@pytest.mark.parametrize("num", [0, 5, 24])
def test_uneven_given_views_are_refused(num):
    with pytest.raises(ConfigError, match=f"--known {num}"):
        given_views(num, 24)


def test_refusals_come_before_any_weight_is_read(tmp_path, family):
    cfg = load(tmp_path, family | {"test_model": "nowhere.pth"})
    (tmp_path / "empty").mkdir()
    for changes, kind, message in (
        ({"held_out": tmp_path / "empty"}, DataError, "--held-out .*/empty: contains no orbits"),
        ({"train": tmp_path / "gone"}, DataError, "--train .*/gone: contains no orbits"),
        ({"known": (3,)}, ConfigError, "--known 3 is not valid; use a divisor of the 8 views"),
    ):
        with pytest.raises(kind, match=message):
            evaluate_quality(cfg, options(tmp_path, **changes))
    text = tmp_path / "text"
    text.mkdir()
    with pytest.raises(ConfigError, match="has no true views to compare with"):
        evaluate_quality(load(text, write_family(text)), options(tmp_path))

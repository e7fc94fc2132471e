"""The head against the truth: a known object comes out right, and a folder of the zoo becomes figures and files."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from datasets.meshes.renderer import render_views
from datasets.meshes.scene import RenderMesh
from models.gaussians.rendering import render
from models.weights import save_safetensors
from pipelines.evaluation.head_quality import HeadOptions, Measure, evaluate_head, inputs_of_rows, true_meshes
from pipelines.evaluation.head_report import head_table
from pipelines.evaluation.held_out import TrueOrbit, TrueOrbits
from pipelines.evaluation.samples import write_sample
from tests.tiny import load, write_family, write_head
from tests.tiny_gaussians import SMALL, ball
from tests.tiny_orbits import write_turning_orbits
from tools import make_zoo
from utils.cameras import intrinsics, orbit_cameras
from utils.errors import ConfigError, DataError
from utils.registry import MODEL
from utils.settings.assets import AssetOptions

pytestmark = pytest.mark.usefixtures("one_thread")

FOV, SIZE, RADIUS = 39.6, 48, 0.4


class Knowing:
    """A head that makes the same object of any views."""

    config = SimpleNamespace(fov=FOV)

    def world_gaussians(self, views_BVCHW, c2w_V44):
        return ball()


def test_a_known_object_comes_out_as_it_is(tmp_path):
    c2w_V44 = orbit_cameras(num_views=4, elevation_deg=15, radius=2)
    drawn = render(ball(), c2w_V44[None], intrinsics(FOV, SIZE), size=(SIZE, SIZE), background=1.0)
    orbit = TrueOrbit(
        object_id="0/1",
        start_view=0,
        views_VCHW=drawn.colors_BV3HW[0],
        masks_V1HW=drawn.alphas_BV1HW[0],
        c2w_V44=c2w_V44,
        fov_deg=FOV,
    )
    triangles = np.asarray(trimesh.creation.icosphere(subdivisions=4, radius=RADIUS).triangles)
    true = RenderMesh(points_F33=triangles, normals_F33=triangles, colors_F33=triangles)
    cfg = SimpleNamespace(assets=AssetOptions(**SMALL), rasterizer="auto", vid_dataset={})
    measure = Measure(cfg, Knowing(), lpips=None)
    found = measure(orbit.views_VCHW, orbit, true_mesh=true, glb=tmp_path / "ball.glb")
    assert float(found.scores.psnr_OV.min()) > 55
    assert found.surface.chamfer < 0.03
    assert found.surface.f_scores[0.05] > 0.95
    assert measure(orbit.views_VCHW, orbit, true_mesh=None, glb=tmp_path / "none.glb").surface is None
    assert not (tmp_path / "none.glb").exists()


@pytest.fixture
def zoo(tmp_path):
    assert make_zoo.main([str(tmp_path / "zoo"), "--num", "2", "--packed", "--split", "held_out", "--views", "8",
                          "--size", "32", "--samples", "1", "--workers", "1", "--seed", "3"]) == 0  # fmt: skip
    return tmp_path / "zoo"


def configured(folder, *overrides):
    return load(folder, write_family(folder) | write_head(folder), *overrides)


def test_a_folder_of_the_zoo_is_measured(tmp_path, zoo):
    """Without meshes: those of an untrained head fill the box and take long."""
    cfg = configured(tmp_path, "assets.glb=false")
    orbits = TrueOrbits(zoo, cfg, limit=2, scratch=tmp_path, option="--held-out")
    record = {"object": orbits[1].object_id, "start_view": 0}
    write_sample(tmp_path / "run" / "one", {"views": orbits[1].views_VCHW}, orbit=orbits[1], record=record)
    options = HeadOptions(held_out=zoo, runs=[tmp_path / "run"], num_objects=2, out=tmp_path / "out")
    result = evaluate_head(cfg, options)
    assert (result["inputs"], result["unseen"]) == ([0, 2, 4, 6], [1, 3, 5, 7])
    true, sampled = result["rows"].values()
    assert (true["num_objects"], sampled["num_objects"]) == (2, 1)
    # the sample's views are the true ones
    assert sampled["by_object"][0]["psnr"] == pytest.approx(true["by_object"][1]["psnr"], abs=0.1)
    assert true["mesh"] is None
    assert json.loads((tmp_path / "out" / "head.json").read_text())["rows"].keys() == result["rows"].keys()
    assert (tmp_path / "out" / "head" / "true-views" / "sheet.png").is_file()
    assert "true views" in head_table(result)


def test_a_head_of_any_number_of_views_has_a_row_for_each_number(tmp_path, zoo):
    sizes = {"width": 16, "head_dim": 8, "num_layers": 2, "grid": 16, "depths": 8}
    head = {"type": "DenseReconstruction", "head": sizes, "render_size": 32}
    network = MODEL.build({"type": "DenseHead", **head["head"]})
    save_safetensors(tmp_path / "dense.safetensors", network.state_dict())
    head["pretrained"] = str(tmp_path / "dense.safetensors")
    family = write_family(tmp_path) | {"reconstruction": head, "cameras": {"num_views": 8}}
    cfg = load(tmp_path, family, "assets.glb=false")
    options = HeadOptions(held_out=zoo, runs=[], num_objects=1, out=tmp_path / "out", inputs=[2, 4])
    result = evaluate_head(cfg, options)
    assert result["unseen"] == [1, 3, 5, 7]
    assert list(result["rows"]) == ["2 true views", "4 true views"]
    assert inputs_of_rows(cfg, [2, 4]) == {"2 true views": [0, 4], "4 true views": [0, 2, 4, 6]}
    first, second = (row["unseen"]["psnr"] for row in result["rows"].values())
    assert first != second
    with pytest.raises(ConfigError, match="--inputs 5 must lie between 1 and 4"):
        evaluate_head(cfg, dataclasses.replace(options, inputs=[5]))


def test_true_meshes_are_those_that_were_rendered(tmp_path, zoo):
    cfg = configured(tmp_path)
    orbits = TrueOrbits(zoo, cfg, limit=2, scratch=tmp_path, option="--held-out")
    meshes = true_meshes(zoo, cfg, object_ids=orbits.object_ids)
    for number, orbit in enumerate(orbits):
        seen = render_views(meshes[number], orbit.c2w_V44.numpy(), fov_deg=orbit.fov_deg, size=32, samples=1)
        masks_VHW = torch.from_numpy(seen.rgba_VHW4[..., 3] / 255).float()
        torch.testing.assert_close(masks_VHW, orbit.masks_V1HW[:, 0], atol=1e-6, rtol=0)


def test_what_cannot_be_measured_is_refused(tmp_path, zoo):
    cfg = configured(tmp_path)
    options = HeadOptions(held_out=zoo, runs=[tmp_path / "run"], num_objects=1, out=tmp_path / "out")
    orbit = TrueOrbits(zoo, cfg, limit=1, scratch=tmp_path, option="--held-out")[0]
    for record in ({"object": "7/7"}, {"object": orbit.object_id, "start_view": 3}, {"prompt": "a cat"}):
        write_sample(tmp_path / "run" / "one", {"views": orbit.views_VCHW}, orbit=orbit, record=record)
        with pytest.raises(DataError, match="does not show an object of --held-out from its view 0"):
            evaluate_head(cfg, options)
    with pytest.raises(ConfigError, match="--measure head needs a section reconstruction"):
        evaluate_head(dataclasses.replace(cfg, reconstruction={}), options)
    with pytest.raises(ConfigError, match=re.escape("set reconstruction.pretrained")):
        evaluate_head(
            dataclasses.replace(cfg, reconstruction=cfg.reconstruction.changed(pretrained=None)),
            dataclasses.replace(options, runs=[]),
        )


def test_other_data_has_no_true_mesh(tmp_path, caplog):
    caplog.set_level("INFO")
    held_out = write_turning_orbits(tmp_path / "held_out", elevations=(10.0,))
    options = HeadOptions(held_out=held_out, runs=[], num_objects=1, out=tmp_path / "out")
    result = evaluate_head(configured(tmp_path), options)
    assert result["rows"]["true views"]["mesh"] is None
    assert result["rows"]["true views"]["unseen"]["psnr"] > 0

"""The 3D files of a sample: all there, as asked for, and one that fails does not take the others with it."""

from __future__ import annotations

import dataclasses
import json
import types

import imageio.v3
import numpy as np
import pytest
import torch
from PIL import Image

from models.gaussians.files import read_ply
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from pipelines.assets import ASSET_FILES, GLTF_FILE, SPZ_FILE, files
from pipelines.assets.files import MESH_FILE, PLY_FILE, SPLAT_FILE, TURNTABLE_FILE, VIEWER_FILE, write_assets
from pipelines.assets.turntable import write_turntable
from pipelines.assets.viewer import write_viewer
from pipelines.sampling.sample_folder import VisualGeneratedVideos
from tests.tiny_gaussians import SMALL, SMALL_OPTIONS, ball, transparent
from utils.cameras import intrinsics, orbit_cameras
from utils.config import load_config
from utils.errors import ConfigError, WriteError
from utils.settings.assets import AssetOptions

ORBIT = orbit_cameras(num_views=2, elevation_deg=15, radius=2.0)
ALL = {PLY_FILE, SPLAT_FILE, MESH_FILE, TURNTABLE_FILE, VIEWER_FILE}


def write(folder, gaussians, **options):
    folder.mkdir(exist_ok=True)
    options = dataclasses.replace(SMALL_OPTIONS, **options)
    return write_assets(folder, gaussians, options=options, c2w_44=ORBIT[0], fov_deg=39.6, title="a ball")


def test_every_file_is_written_and_described(tmp_path):
    facts = write(tmp_path, ball())
    assert {path.name for path in tmp_path.iterdir()} == ALL == set(facts)
    for name in ALL:
        assert facts[name]["bytes"] == (tmp_path / name).stat().st_size
    assert facts[PLY_FILE]["gaussians"] == 1500
    assert facts[MESH_FILE]["watertight"] is True


def test_only_what_is_asked_for_is_written(tmp_path):
    none = {"glb": False, "turntable": False, "html": False, "splat": False}
    write(tmp_path / "one", ball(50), **none)
    assert [path.name for path in (tmp_path / "one").iterdir()] == [PLY_FILE]
    facts = write(tmp_path / "more", ball(50), **none, ply=False, spz=True, gltf=True)
    assert {path.name for path in (tmp_path / "more").iterdir()} == {SPZ_FILE, GLTF_FILE} == set(facts)
    assert {*ALL, SPZ_FILE, GLTF_FILE} == {*ASSET_FILES}


def test_no_surface_does_not_lose_the_rest(tmp_path, caplog):
    facts = write(tmp_path, transparent())
    assert {path.name for path in tmp_path.iterdir()} == {PLY_FILE, TURNTABLE_FILE}
    assert "opaque enough" in facts[MESH_FILE]["error"]
    assert "transparent" in facts[SPLAT_FILE]["error"]
    assert [
        record.message
        for record in caplog.records
        if record.message.startswith("mesh.glb was not written: fewer than 4")
    ]


def test_a_full_disk_ends_the_call_whichever_file_meets_it(tmp_path, monkeypatch):
    def full(path, gaussians):
        raise WriteError(f"{path} cannot be written")

    monkeypatch.setattr(files, "write_splat", full)  # in a thread
    with pytest.raises(WriteError, match=SPLAT_FILE):
        write(tmp_path, ball())
    assert SPLAT_FILE not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("made", ["glb", "turntable"])
def test_the_rasterizer_that_was_chosen_draws(tmp_path, made):
    wanted = {name: name == made for name in ("glb", "turntable", "ply", "splat", "html")}
    options = dataclasses.replace(SMALL_OPTIONS, **wanted)
    given = {"options": options, "c2w_44": ORBIT[0], "fov_deg": 39.6, "title": "a ball"}
    with pytest.raises(ConfigError, match="rasterizer=gsplat needs a CUDA device"):
        write_assets(tmp_path, ball(), rasterizer="gsplat", **given)


@pytest.mark.parametrize("what", ["means", "colors", "scales"])
def test_one_number_that_is_none_makes_every_file_an_error(tmp_path, what, caplog):
    broken = ball()
    {"means": broken.means_BN3, "colors": broken.colors_BN3, "scales": broken.scales_BN3}[what][0, 3] = torch.nan
    facts = write(tmp_path, broken)
    assert {name: fact["error"].split(";")[0] for name, fact in facts.items()} == dict.fromkeys(
        ALL, f"the Gaussians: {what} are not finite"
    )
    assert list(tmp_path.iterdir()) == []
    assert len(caplog.records) == len(ALL)


@pytest.mark.parametrize("length", [1.0, 0.5])
def test_gaussians_that_are_no_numbers_are_still_moved(length):
    """They come from the head that way; what writes files says so."""
    broken = ball(20)
    broken = dataclasses.replace(broken, quats_BN4=length * broken.quats_BN4)
    broken.scales_BN3[0, 3] = torch.inf
    broken.quats_BN4[0, 4] = torch.nan
    moved = broken.moved(torch.eye(4))
    assert moved.means_BN3.isfinite().all()
    assert not moved.scales_BN3[0, 3].isfinite().any()


@pytest.mark.parametrize("elevation_deg", [-40.0, 0.0, 75.0])
def test_the_turntable_shows_the_gaussians_at_any_elevation(tmp_path, elevation_deg):
    options = dataclasses.replace(
        SMALL_OPTIONS, turntable_elevation_deg=elevation_deg, turntable_size=64, background=0.5, turntable_distance=1.5
    )

    def draw(c2w_V44, K_33, size, background):
        return render(ball(), c2w_V44[None], K_33, size=size, background=background)

    write_turntable(tmp_path / "turn.mp4", draw, options, distance=2.0, fov_deg=39.6, device=torch.device("cpu"))
    frames = imageio.v3.imread(tmp_path / "turn.mp4", plugin="FFMPEG").astype(np.float64) / 255
    assert frames.shape == (4, 64, 64, 3)
    c2w = orbit_cameras(num_views=4, elevation_deg=elevation_deg, radius=1.5)
    expected = render(ball(), c2w[None], intrinsics(39.6, 64), size=(64, 64), background=0.5).colors_BV3HW[0]
    # the codec's colours have half the resolution
    assert np.abs(frames - expected.permute(0, 2, 3, 1).numpy()).mean() < 0.03


def sample(gaussians):
    """What the writer reads of an orbit, with an object."""
    return types.SimpleNamespace(
        views_BVCHW=torch.rand(2, 2, 3, 32, 32),
        refined_views_BVCHW=None,
        input_views_B3HW=None,
        c2w_V44=ORBIT,
        fov_deg=39.6,
        gaussians=gaussians,
        gaussians_fov_deg=None,
    )


def test_a_sample_with_gaussians_gets_their_files(tmp_path):
    pair = [ball(), ball(1500, center=(0.0, 0.3, 0.0))]
    both = Gaussians(**{name: torch.cat([one.tensors()[name] for one in pair]) for name in pair[0].tensors()})
    writer = VisualGeneratedVideos(VisualGeneratedVideos.Config(), assets=SMALL_OPTIONS)
    writer.write(tmp_path / "ball", sample(both), 1, fps=8, record={"prompt": "a </script> ball"})
    result = json.loads((tmp_path / "ball" / "result.json").read_text())
    assert set(result["assets"]) == ALL
    assert "a &lt;/script&gt; ball" in (tmp_path / "ball" / VIEWER_FILE).read_text()
    torch.testing.assert_close(read_ply(tmp_path / "ball" / PLY_FILE).means_BN3, pair[1].means_BN3)
    assert Image.open(tmp_path / "ball" / "views" / "001.png").size == (32, 32)


def test_a_title_may_have_the_words_of_the_template(tmp_path):
    title = "__SPLATS__ __SCENE__ __TITLE__"
    write_viewer(tmp_path / "a.html", ball(), c2w_44=ORBIT[0], fov_deg=39.6, background=1.0, title=title)
    write_viewer(tmp_path / "b.html", ball(), c2w_44=ORBIT[0], fov_deg=39.6, background=1.0, title="TITLE")
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text().replace(">TITLE<", f">{title}<")


def test_a_failed_mesh_is_named_in_the_result(tmp_path):
    writer = VisualGeneratedVideos(VisualGeneratedVideos.Config(), assets=SMALL_OPTIONS)
    writer.write(tmp_path / "none", sample(transparent()), 0, fps=8, record={})
    result = json.loads((tmp_path / "none" / "result.json").read_text())
    assert "error" in result["assets"][MESH_FILE]
    assert (tmp_path / "none" / "orbit.mp4").is_file()


def test_a_sample_without_gaussians_is_as_before(tmp_path):
    writer = VisualGeneratedVideos(VisualGeneratedVideos.Config())
    writer.write(tmp_path / "views", sample(None), 0, fps=8, record={})
    assert "assets" not in json.loads((tmp_path / "views" / "result.json").read_text())
    assert not {path.name for path in (tmp_path / "views").iterdir()} & ALL


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("assets.turntable_size=33", "assets.turntable_size must be even"),
        ("assets.turntable_elevation_deg=90", r"assets.turntable_elevation_deg must lie in \(-90, 90\), got 90"),
        ("assets.faces=0", r"assets.faces must lie in \[4, 10000000\], got 0"),
        ("assets.texture=7", r"assets.texture must be 0 or lie in \[64, 4096\], got 7"),
        ("assets.turntable_distance=-1", "assets.turntable_distance must be positive"),
        ("assets.face=3", "assets.face is unknown .*did you mean faces"),
    ],
)
def test_settings_are_checked_before_work_starts(tmp_path, option, message):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml", [option])


def test_settings_reach_the_options(tmp_path):
    (tmp_path / "run.yaml").write_text("assets: {faces: 300}\n")
    cfg = load_config(tmp_path / "run.yaml", ["assets.glb=false", f"assets.grid={SMALL['grid']}"])
    assert cfg.assets == AssetOptions(faces=300, glb=False, grid=48)


@pytest.mark.gpu
def test_files_are_made_on_a_gpu_as_on_the_cpu(tmp_path):
    here, there = (write(tmp_path / device, ball().to(device)) for device in ("cpu", "cuda"))
    assert set(there) == ALL
    assert not [fact for fact in there.values() if "error" in fact]
    assert there[MESH_FILE]["watertight"] == here[MESH_FILE]["watertight"]
    for name in (PLY_FILE, SPLAT_FILE, VIEWER_FILE):
        assert (tmp_path / "cuda" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes()

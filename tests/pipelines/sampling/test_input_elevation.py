"""input_elevation_deg=auto: the orbit of a picture has the estimated elevation."""

from __future__ import annotations

import json

import pytest
import torch

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from models.weights import save_safetensors
from pipelines.sampling.finished import sample_settings
from pipelines.sampling.inference import batches_of
from pipelines.sampling.input_elevation import estimate_elevations, load_estimator
from pipelines.sampling.inputs import sources_of
from pipelines.sampling.pipeline import ViewsPipeline
from tests.tiny import load, run, write_family, write_image_family
from utils.cameras import camera_elevations_deg
from utils.errors import ConfigError, DataError
from utils.object_image import input_view
from utils.registry import MODEL

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")

NETWORK = {"type": "ElevationNetwork", "width": 8, "size": 32}


def write_estimator(folder):
    """Write weights whose estimates differ between the red square and the blue disc of the tiny family."""
    torch.manual_seed(2)
    network = MODEL.build(NETWORK)
    torch.nn.init.normal_(network.hidden.weight)
    torch.nn.init.normal_(network.angles.weight, std=0.1)
    save_safetensors(folder / "elevation.safetensors", network.state_dict())
    return {**NETWORK, "pretrained": str(folder / "elevation.safetensors")}


@pytest.fixture
def family(tmp_path):
    config = write_image_family(tmp_path)
    return config | {"elevation": write_estimator(tmp_path), "input_elevation_deg": "auto"}


def elevation_of(folder):
    result = json.loads((folder / "result.json").read_text())
    found_deg = camera_elevations_deg(torch.tensor(result["c2w"]))
    torch.testing.assert_close(found_deg.float(), found_deg[:1].float().expand(3), atol=1e-3, rtol=0)
    return result["input_elevation_deg"], float(found_deg[0])


def test_each_orbit_has_the_elevation_of_its_picture(tmp_path, family, caplog):
    caplog.set_level("INFO")
    cfg = load(tmp_path, family, "batch_size=2")
    folders = run(cfg)
    size = {"resolution": (32, 32), "recenter": True, "object_share": cfg.object_share}
    views = torch.stack([input_view(tmp_path / name, **size) for name in ("square.png", "disc.png")])
    expected = [round(angle, 1) for angle in load_estimator(cfg).estimate(views).tolist()]
    assert abs(expected[0] - expected[1]) > 1
    for folder, angle in zip(folders, expected, strict=True):
        recorded, found = elevation_of(folder)
        assert recorded == pytest.approx(angle, abs=0.11)
        assert found == pytest.approx(recorded, abs=1e-3)
    assert f"square.png: elevation estimated as {expected[0]:.1f} degrees" in caplog.text
    assert "instead of cameras.elevation_deg=15" in caplog.text


def test_samples_are_kept_until_the_elevation_changes(tmp_path, family):
    one = family | {"images": [str(tmp_path / "square.png")]}
    [folder] = run(load(tmp_path, one))
    stamp = (folder / "result.json").stat().st_mtime_ns
    assert run(load(tmp_path, one)) == [folder]
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    run(load(tmp_path, one | {"input_elevation_deg": None}))
    result = json.loads((folder / "result.json").read_text())
    assert "input_elevation_deg" not in result
    assert float(camera_elevations_deg(torch.tensor(result["c2w"]))[0]) == pytest.approx(15)
    angle = load(tmp_path, one | {"input_elevation_deg": 15.0})
    assert sample_settings(angle) == result["settings"]  # an angle is only compared with the cameras


def test_a_batch_has_one_elevation(tmp_path, family):
    sources = sources_of(load(tmp_path, family), kind="image")
    jobs = [type("Job", (), {"source": source, "seed": 0}) for source in (*sources[:1] * 3, *sources[1:] * 2)]
    assert [len(batch) for batch in batches_of(jobs, 2)] == [2, 1, 2]


def test_a_call_estimates_too(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    orbits = pipeline(tmp_path / "disc.png")
    options = {"recenter": True, "object_share": pipeline.cfg.object_share}
    [expected] = estimate_elevations(load_estimator(pipeline.cfg), [tmp_path / "disc.png"], **options)
    assert float(camera_elevations_deg(orbits.c2w_V44)[0]) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ConfigError, match="a call with 2 images has one orbit of cameras"):
        pipeline([tmp_path / "disc.png", tmp_path / "square.png"])
    pipeline.save(tmp_path / "saved")
    again = ViewsPipeline.from_folder(tmp_path / "saved")
    assert again.cfg.elevation.pretrained == str(tmp_path / "saved" / "elevation.safetensors")
    assert torch.equal(again(tmp_path / "disc.png").c2w_V44, orbits.c2w_V44)


def test_a_picture_in_memory_is_read_in_the_size_of_the_network(tmp_path, family):
    network = load_estimator(load(tmp_path, family))
    image_3HW = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    large, small = (
        estimate_elevations(network, [one], recenter=True, object_share=0.7)
        for one in (image_3HW.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2), image_3HW)
    )
    assert large == pytest.approx(small, abs=0.5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"elevation": {}},
            ConfigError,
            r"input_elevation_deg=auto needs weights in elevation\.pretrained; train them",
        ),
        ({"elevation": NETWORK}, ConfigError, r"needs weights in elevation\.pretrained"),
        (
            {"elevation": {**NETWORK, "pretrained": "none.safetensors"}},
            DataError,
            r"elevation\.pretrained=none\.safetensors: no such file; train it with configs/mini/elevation\.yaml",
        ),
        ({"cameras": {"views": [{"azimuth_deg": 0.0}]}}, ConfigError, r"but cameras\.views has its own cameras"),
        (
            {"elevation": {"type": "ViewClassifier", "pretrained": "x"}},
            ConfigError,
            r"elevation\.type=ViewClassifier estimates no elevation",
        ),
    ],
)
def test_what_cannot_be_estimated_is_refused_before_anything_is_loaded(
    tmp_path, family, monkeypatch, changes, error, message
):
    monkeypatch.setattr(ViewsPipeline, "from_config", None)
    with pytest.raises(error, match=message):
        run(load(tmp_path, family | changes))


def test_only_pictures_have_an_elevation_to_estimate(tmp_path, family, caplog):
    with pytest.raises(ConfigError, match="input_elevation_deg=soon is not a finite number, nor auto or null"):
        load(tmp_path, family | {"input_elevation_deg": "soon"})
    (tmp_path / "text").mkdir()
    text = write_family(tmp_path / "text") | {"input_elevation_deg": "auto"}
    with pytest.raises(ConfigError, match=r"input_elevation_deg \(--image\) is only for image models"):
        run(load(tmp_path, text))
    caplog.set_level("INFO")
    cfg = load(tmp_path, family | {"takes_prompts": True, "prompts": ["a mug"], "elevation": {}})
    assert [source.prompt for source in sources_of(cfg, kind="image")] == ["a mug"]
    assert "input_elevation_deg=auto: prompts alone have no picture to estimate from" in caplog.text

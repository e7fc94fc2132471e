"""Training of the elevation network, on discs that lie on the ground: their height in the picture is sin(elevation)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.orbits.packed import PackedShard, shard_file, write_shard
from pipelines.evaluation.networks.elevation import elevation_table, measure_elevations
from pipelines.training.objectives.elevation import EstimateElevations
from pipelines.training.trainer import train
from tests.tiny import write_config
from tests.tiny_orbits import SIZE, training_config
from tools import evaluate_elevation
from utils.cameras import orbit_cameras
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.registry import ENGINE

ELEVATIONS = tuple(range(0, 45, 3))

pytestmark = pytest.mark.usefixtures("one_thread")


def write_discs(folder, *, elevations=ELEVATIONS, size=SIZE):
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / size
    images = np.zeros((len(elevations), 2, size, size, 4), dtype=np.uint8)
    for number, angle in enumerate(elevations):
        flat = max(0.05, np.sin(np.deg2rad(angle)))
        images[number][:, (x / 0.4) ** 2 + (y / 0.4 / flat) ** 2 < 1] = (40, 80, 120, 255)
    cameras = [orbit_cameras(num_views=2, elevation_deg=angle, radius=2).numpy() for angle in elevations]
    shard = PackedShard(
        rgba_NVHW4=images,
        c2w_NV44=np.stack(cameras),
        fov_deg=39.6,
        object_ids=[f"0/{number}" for number in range(len(elevations))],
        captions=["a disc"] * len(elevations),
        attributes=[{"source": "low" if angle < 20 else "high"} for angle in elevations],
    )
    write_shard(shard_file(folder, 0), shard)
    return folder


def settings(tmp_path, **changes):
    config = training_config(tmp_path, TASK_TYPE="train_elevation_entrance")
    config["vid_dataset"] |= {"num_views": 2, "background": 1.0}
    config["elevation"] = {"type": "ElevationNetwork", "width": 8, "size": SIZE}
    config |= {"num_steps": 100, "lr": 5e-3, "batch_sizes": {"1": 32}, "cameras": {"num_views": 2}}
    return load_config(write_config(tmp_path / "run.yaml", config | changes))


def objective(tmp_path, options=None, **changes):
    cfg = settings(tmp_path, **changes)
    return ENGINE.build({"type": cfg.TASK_TYPE, **(options or {})}, cfg=cfg, device=torch.device("cpu"))


def test_it_learns_and_is_measured_by_source(tmp_path, capsys):
    write_discs(tmp_path / "orbits")
    weights = train(settings(tmp_path))
    assert weights.name == "elevation.safetensors"
    given = {"type": "ElevationNetwork", "width": 8, "size": SIZE, "pretrained": str(weights)}
    cfg = settings(tmp_path, elevation=given)
    rows = measure_elevations(cfg, [tmp_path / "orbits"], num_objects=100).rows(by="source")
    assert list(rows) == ["orbits", "orbits, source high", "orbits, source low"]
    assert (rows["orbits"]["objects"], rows["orbits"]["views"]) == (15, 30)
    assert rows["orbits"]["constant_median_deg"] == 12  # of 0, 3, ..., 42 from 21
    assert rows["orbits"]["rendered_median_deg"] < 6
    assert "orbits, source low" in elevation_table(rows)
    assert evaluate_elevation.main(["--cfg", str(tmp_path / "run.yaml"), "--data", str(tmp_path / "orbits")]) == 0
    assert f"{'orbits':6} " in capsys.readouterr().out


def test_augmentation_keeps_white_outside_and_only_moves_the_object(tmp_path):
    write_discs(tmp_path / "orbits")
    quiet = {"zoom": 1.0, "exposure": 0.0, "noise": 0.0, "ramp_steps": 0}
    task = objective(tmp_path, {**quiet, "shift": 0.2})
    assert isinstance(task, EstimateElevations)
    images = torch.ones(32, 3, SIZE, SIZE)
    assert torch.equal(task.disturb(images), images)
    images[:, :, 14:18, 12:16] = 0.0
    moved = task.disturb(images)
    y, x = (1 - moved[:, 0]).sum(dim=2).argmax(dim=1), (1 - moved[:, 0]).sum(dim=1).argmax(dim=1)
    assert 8 <= int(y.min()) < 14 < 18 < int(y.max()) <= 24  # up to a fifth of 32 pixels
    assert int(x.min()) < 10
    assert int(x.max()) > 17
    torch.testing.assert_close((1 - moved).sum(dim=(1, 2, 3)), torch.full((32,), 3 * 16.0), rtol=1e-3, atol=0)
    mirrored = objective(tmp_path, {**quiet, "shift": 0.0}).disturb(images)
    places = {int(one.sum(dim=0).argmax()) for one in 1 - mirrored[:, 0]}
    assert places <= {12, 13, 14, 15, 16, 17, 18, 19}
    assert min(places) < 16 <= max(places)  # some are mirrored


def test_changes_grow_over_the_first_steps(tmp_path):
    write_discs(tmp_path / "orbits")
    task = objective(tmp_path, {"ramp_steps": 10, "noise": 0.5})
    images = torch.rand(32, 3, SIZE, SIZE)
    errors = []
    for number in (0, 5, 10, 20):
        task.global_batch.begin(number, 0)
        mirrored_or_not = torch.stack([images, images.flip(-1)])
        changed = (task.disturb(images) - mirrored_or_not).abs().amax(dim=(2, 3, 4)).amin(dim=0)
        errors.append(changed.mean().item())
    assert errors[0] < 1e-4  # only mirrored
    assert 0.05 < errors[1] < errors[2]
    assert task.strength == 1.0


def test_each_view_has_the_elevation_of_its_own_camera(tmp_path):
    write_discs(tmp_path / "orbits")
    task = objective(tmp_path)
    torch.testing.assert_close(
        task.elevation_deg_NV, torch.tensor(ELEVATIONS).float()[:, None].expand(-1, 2), atol=1e-3, rtol=0
    )
    images, elevation_deg_B = next(task.batches())
    assert (images.shape, elevation_deg_B.shape) == ((32, 3, SIZE, SIZE), (32,))
    task.network.angles.weight.data.zero_()
    task.network.angles.bias.data.zero_()
    loss, figures = task.forward((images, elevation_deg_B))
    assert loss.item() == pytest.approx(np.log(len(task.network.angles_deg_A)), abs=1e-4)  # of the uniform distribution
    assert figures["error_deg"].item() == pytest.approx((elevation_deg_B - 17.5).abs().mean().item(), abs=1e-3)


def test_data_that_do_not_fit_are_refused(tmp_path):
    write_discs(tmp_path / "orbits", elevations=(10, 60))
    with pytest.raises(ConfigError, match=r"highest_deg=45, but vid_dataset has views from 10\.0 to 60\.0 degrees"):
        objective(tmp_path)
    with pytest.raises(ConfigError, match=r"elevation\.size=64, but vid_dataset\.resolution is \[32, 32\]"):
        objective(tmp_path, elevation={"type": "ElevationNetwork", "size": 64})
    with pytest.raises(ConfigError, match=r"shift must lie in \[0, 0\.5\)"):
        objective(tmp_path, {"shift": 0.5})
    with pytest.raises(ConfigError, match=r"input_elevation_deg=auto needs weights in elevation\.pretrained"):
        measure_elevations(settings(tmp_path), [tmp_path / "orbits"], num_objects=1)
    given = {"type": "ElevationNetwork", "pretrained": "missing.safetensors"}
    with pytest.raises(DataError, match=r"missing\.safetensors: no such file; train it with"):
        measure_elevations(settings(tmp_path, elevation=given), [tmp_path / "orbits"], num_objects=1)
    with pytest.raises(ConfigError, match="--num must be at least 1, got 0"):
        evaluate_elevation.main(["--cfg", str(tmp_path / "run.yaml"), "--data", "x", "--num", "0"])

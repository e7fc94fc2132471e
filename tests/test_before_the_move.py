"""What was written before the files moved is still read: states, checkpoints, caches, samples, objects.

tests/reference/before_the_move/make.py says how the files were made.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
import torch
import yaml

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from models.gaussians.files import read_ply, read_splat
from models.weights import load_head, load_strict, read_weights
from pipelines.parts import load_unet
from pipelines.sampling.finished import with_defaults
from pipelines.sampling.pipeline import ViewsPipeline
from pipelines.training.trainer import train
from tests.reference_cases import REFERENCE
from tests.tiny import run
from utils.config import load_config
from utils.registry import DATASETS, MODEL
from utils.settings.original import with_present_names

pytestmark = pytest.mark.usefixtures("one_thread", "here")
TRAININGS = ("t2v", "lora", "head_tune", "classifier")
SAMPLES = {"t2v_sample": "a-red-mug_seed1", "i2v_sample": "disc_seed1"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    checked = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later
    with tarfile.open(REFERENCE / "before_the_move" / "files.tar.xz") as tar:
        tar.extractall(folder, **checked)
    return folder


@pytest.fixture
def here(unpacked, monkeypatch):
    """Settings name files relative to where a run is started."""
    monkeypatch.chdir(unpacked)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def settings(name):
    """As a user wrote them."""
    return yaml.safe_load(Path(f"cfg/{name}.yaml").read_text())


def read_image(path):
    return torch.from_numpy(imageio.v3.imread(path)) / 255


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_goes_on_from_its_state(name, tmp_path, caplog):
    caplog.set_level("INFO")
    cfg, cache = load_config(f"cfg/{name}.yaml"), stamps("latents")
    shutil.copytree(f"runs/{name}", tmp_path / name)
    train(load_config(f"cfg/{name}.yaml", [f"num_steps={cfg.num_steps + 2}", f"log_dir={tmp_path / name}"]))
    losses = [float(found[1]) for found in re.finditer(r"step \d+: loss ([\d.]+)", caplog.text)]
    # four digits were logged, and other processors round differently
    assert losses == pytest.approx(json.loads(Path("went_on.json").read_text())[name], abs=2e-3)
    assert f"from step {cfg.num_steps}" in caplog.text
    assert "encoding" not in caplog.text
    assert stamps("latents") == cache


@pytest.mark.parametrize("name", [*TRAININGS, *SAMPLES])
def test_the_configuration_that_a_run_wrote_is_its_own(name):
    assert load_config(f"runs/{name}/config.yaml") == load_config(f"cfg/{name}.yaml")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_finished_sample_is_not_made_again(name, monkeypatch):
    before = stamps(f"runs/{name}/{SAMPLES[name]}")
    monkeypatch.setattr(ViewsPipeline, "from_config", None)
    assert run(load_config(f"cfg/{name}.yaml")) == [Path(f"runs/{name}/{SAMPLES[name]}")]
    assert stamps(f"runs/{name}/{SAMPLES[name]}") == before


@pytest.mark.parametrize("name", SAMPLES)
def test_the_same_settings_make_the_same_sample(name, tmp_path):
    [made] = run(load_config(f"cfg/{name}.yaml", [f"log_dir={tmp_path}"]))
    old = Path(f"runs/{name}/{SAMPLES[name]}")
    newer = {"input.png", "beside.png"} if name == "i2v_sample" else set()
    assert {path.name for path in made.iterdir()} == {path.name for path in old.iterdir()} | newer
    for picture in old.rglob("000.png"):
        both = read_image(picture), read_image(made / picture.relative_to(old))
        torch.testing.assert_close(*both, atol=2 / 255, rtol=0)
    before, now = (json.loads((folder / "result.json").read_text())["settings"] for folder in (old, made))
    assert with_defaults({"refine": False, **with_present_names(before)}) == now


@pytest.mark.parametrize(
    ("name", "path", "step"),
    [
        ("t2v", "runs/t2v/checkpoints/t2v_00000008.pth", 8),
        ("t2v", "runs/t2v/checkpoints/non_ema_t2v_00000008.pth", 8),
        ("t2v", "runs/t2v/t2v.safetensors", 8),
        ("head_tune", "runs/head_tune/checkpoints/head_00000001.pth", 1),
        ("i2v_sample", "w/i2v_00000005.pth", 5),
    ],
)
def test_weights_load_strictly(name, path, step):
    network = MODEL.build(settings(name)["UNet"])
    assert load_strict(network, path, option="test") == step
    expected = {key: value.float() for key, value in read_weights(path, option="test").state.items()}
    torch.testing.assert_close(dict(network.state_dict()), expected, atol=0, rtol=0)


@pytest.mark.parametrize("path", ["runs/head_tune/checkpoints/head_00000001.pth", "runs/head_tune/head.safetensors"])
def test_a_tuned_head_loads_strictly(path):
    head = MODEL.build({"type": "LGM", **settings("head_tune")["reconstruction"]["head"]})
    assert load_head(head, path, option="test") == 1
    assert head.conv.weight.abs().sum() > 0  # it began with zeros


def test_a_classifier_loads_strictly():
    given = {**settings("classifier")["classifier"], "pretrained": "runs/classifier/classifier.safetensors"}
    model = MODEL.build(given)
    assert (sorted(model.kinds), sorted(model.colors)) == (["disc", "square"], ["blue", "red"])


@pytest.mark.parametrize("path", ["t2v_lora.safetensors", "checkpoints/t2v_lora_00000003.pth"])
def test_a_lora_is_added_to_the_weights(path):
    plain, added = (
        load_unet(load_config("cfg/t2v_sample.yaml", overrides)).state_dict()
        for overrides in ([], [f"lora.path=runs/lora/{path}", "lora.weight=1.0"])
    )
    changed = {name.split(".")[-2] for name in plain if not torch.equal(plain[name], added[name])}
    assert changed <= {"to_q", "to_v", "proj_out"}
    assert "proj_out" in changed


def test_a_saved_pipeline_opens():
    pipeline = ViewsPipeline.from_folder("saved")
    orbits = pipeline("a red mug", seeds=1)
    expected = read_image(f"runs/t2v_sample/{SAMPLES['t2v_sample']}/views/000.png")
    assert orbits.refined_views_BVCHW is not None  # UNet.use_lgm_refine
    # saved in half precision
    torch.testing.assert_close(orbits.views_BVCHW[0, 0].permute(1, 2, 0), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(("name", "read"), [("gaussians.ply", read_ply), ("gaussians.splat", read_splat)])
def test_gaussians_are_read_as_before(name, read):
    scene = read(f"runs/t2v_sample/{SAMPLES['t2v_sample']}/{name}")
    with np.load(f"{name}.npz") as expected:
        assert len(expected) == 5
        for field in expected:
            torch.testing.assert_close(getattr(scene, field), torch.from_numpy(expected[field]), atol=1e-6, rtol=1e-6)


def test_a_packed_shard_is_read():
    dataset = DATASETS.build(settings("t2v")["vid_dataset"])
    assert [dataset[number]["caption"] for number in range(4)] == [
        "a red square", "a blue square", "a red disc", "a blue disc",
    ]  # fmt: skip
    middle_VC = dataset[2]["views_VCHW"][:, :, 16, 16]
    torch.testing.assert_close(middle_VC, torch.tensor([[220, 30, 32]] * 4) / 255, atol=1e-6, rtol=0)

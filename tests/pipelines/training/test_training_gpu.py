"""Training on CUDA devices: goes on where it stood, in reduced precision too, and on all devices by itself."""

from __future__ import annotations

import re

import pytest
import torch

from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train
from tests.conftest import ROOT
from tests.pipelines.training.test_processes import config_file, gradients
from tests.pipelines.training.test_processes import train as train_by_command
from tests.pipelines.training.test_training import load
from tests.tiny import AUTOENCODER, UNET
from tests.tiny_images import write_shards
from tests.tiny_orbits import write_orbits
from utils.registry import ENGINE

pytestmark = pytest.mark.gpu

T2V = {"TASK_TYPE": "train_t2v_entrance", "device": "cuda", "decay_mode": "constant", "use_ema": True}


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_four_steps_are_nearly_two_and_two_more(folder, precision):
    """On a GPU sums are made in any order, and AdamW divides by tiny gradients; so not bit for bit."""
    given = {**T2V, "precision": precision}
    train(load(folder, **given, num_steps=4, log_dir=str(folder / "whole")))
    for steps in (2, 4):
        train(load(folder, **given, num_steps=steps, log_dir=str(folder / "halves")))
    one, two = (read_state(latest(folder / name / "state")) for name in ("whole", "halves"))
    assert one.num_samples == two.num_samples == 16
    assert one.scaler == two.scaler
    assert bool(one.scaler) == (precision == "float16")
    for name, value in one.model.items():
        # a step is 2e-3: other data or a lost moment would be of that size
        assert float((value - two.model[name]).abs().mean()) < 5e-4, name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(
    ("precision", "use_ddp", "tolerance"),
    [("float32", None, 5e-3), ("bfloat16", True, 2e-2), ("bfloat16", None, 2e-2)],
)
def test_every_device_is_used_and_one_global_batch_gives_one_gradient(folder, precision, use_ddp, tolerance):
    """In bfloat16 the passes are CUDA graphs, unless DDP is asked for."""
    num = torch.cuda.device_count()
    given = {"device": "cuda", "precision": precision, "num_steps": 1, "grad_clip": 0.1}
    one = config_file(folder, "one", **given, num_processes=1, batch_sizes={"3": 2 * num})
    # num_processes is left at 0: all devices
    all_ = config_file(folder, "all", **given, batch_sizes={"3": 2}, use_ddp=use_ddp)
    output = train_by_command(ROOT / "train_net.py", "--cfg", all_, folder=folder)
    assert ("replayed as CUDA graphs" in output) == (precision == "bfloat16" and not use_ddp)
    train_by_command(ROOT / "train_net.py", "--cfg", one, folder=folder)
    assert read_state(latest(folder / "all" / "state")).num_samples == 2 * num
    expected = gradients(folder, "one")
    largest = max(float(value.abs().max()) for value in expected.values())
    # convolutions may use TensorFloat-32, which rounds by up to 5e-4; bfloat16 rounds by up to 4e-3
    torch.testing.assert_close(gradients(folder, "all"), expected, atol=tolerance * largest, rtol=2 * tolerance)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("float32", False), ("bfloat16", False), ("bfloat16", True)],
    ids=["float32", "bfloat16-fused", "bfloat16-compiled"],
)
def test_a_divided_network_trains_as_a_whole_one_and_takes_over_from_it(folder, precision, compiled):
    """Two steps of DDP, or one of them by FSDP2 from the state of the other; logged memory included."""
    # With one channel in a group of a norm, gradients of what comes before it are rounding, which AdamW makes to steps.
    unet = {**UNET, "dim": 64, "use_checkpoint": True}
    unet |= {"dim_mult": [1]} if compiled else {}  # each shape of a block takes long
    given = T2V | {"UNet": unet, "num_processes": 2, "batch_sizes": {"3": 2}, "grad_clip": 0.1, "log_interval": 1}
    given |= {"precision": precision, "use_ddp": True}
    for name, steps, more in (
        ("whole", 2, {}),
        ("first", 1, {}),
        ("second", 2, {"use_fsdp": True, "resume": str(folder / "first"), "compile": compiled}),
    ):
        file = config_file(folder, name, **(given | more | {"num_steps": steps}))
        output = train_by_command(ROOT / "train_net.py", "--cfg", file, folder=folder)
        assert re.search(r"step \d+: .* views/s, peak memory \d+\.\d+ GB", output)
    one, two = (read_state(latest(folder / name / "state")) for name in ("whole", "second"))
    assert one.num_samples == two.num_samples == 8
    for name in ("model", "average"):
        first, second = getattr(one, name), getattr(two, name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            # a step is 2e-3: other data or a lost moment would be of that size
            assert float((value - second[key]).abs().mean()) < 4e-4, (name, key)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("use_fsdp", [False, True], ids=["ddp", "fsdp"])
def test_one_device_trains_on_images_and_the_other_on_orbits(folder, use_fsdp):
    given = T2V | {"num_processes": 2, "frame_lens": [1, 3], "batch_sizes": {"1": 6, "3": 2}, "log_interval": 1}
    given |= {"img_dataset": write_shards(folder / "shards"), "num_steps": 3, "use_fsdp": use_fsdp}
    output = train_by_command(ROOT / "train_net.py", "--cfg", config_file(folder, "run", **given), folder=folder)
    assert output.count(" image_batches 0.5000 loss_images ") == 3
    assert read_state(latest(folder / "run" / "state")).step == 3


def test_a_cache_gives_the_same_batches_from_the_device_and_from_its_files(folder):
    batches = []
    for limit in (8, 0):
        sampled = {**AUTOENCODER, "scale_factor": 1.0, "posterior": "sample"}
        cfg = load(folder, **T2V, cache_latents=True, cache_memory_gb=limit, auto_encoder=sampled)
        torch.manual_seed(0)  # one autoencoder
        task = ENGINE.build({"type": cfg.TASK_TYPE}, cfg=cfg, device=torch.device("cuda"))
        task.global_batch.begin(3, 0)
        batches.append(next(task.batches(3)))
    for kept, read in zip(*batches, strict=True):
        assert kept is read is None or (kept.is_cuda and torch.equal(kept, read))

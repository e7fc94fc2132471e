"""Gradients averaged after the backward pass are those of DDP and of one process, whatever their layout."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, multiprocessing, nn

from pipelines import gradient_exchange
from pipelines.gradient_exchange import average_gradients
from pipelines.trainer import train as train_here
from tests.conftest import ROOT
from tests.pipelines.test_processes import config_file, gradients, train
from tests.pipelines.test_training import load
from tests.tiny_images import write_shards
from tests.tiny_orbits import write_orbits
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "image": (6, 4, 3, 3),
    "views": (4, 4, 3, 1, 1),
    "matrix": (40, 30),
    "gain": (7,),
    "scalar": (),
    "unused": (2,),
}


def made_by(rank):
    """Parameters with gradients, laid out in several ways."""
    generator = torch.Generator().manual_seed(rank)
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    for name, parameter in parameters.items():
        if name != "unused":
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    parameters["image"].grad = parameters["image"].grad.contiguous(memory_format=torch.channels_last)
    parameters["views"].grad = parameters["views"].grad.contiguous(memory_format=torch.channels_last_3d)
    parameters["matrix"].grad = parameters["matrix"].grad.T.contiguous().T
    return parameters


def average(rank, out):
    """One of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    gradient_exchange.LARGE = 200  # some above it, some below
    parameters = made_by(rank)
    average_gradients(parameters.values())
    torch.save({name: parameter.grad for name, parameter in parameters.items()}, out / f"{rank}.pt")
    distributed.destroy_process_group()


def test_each_becomes_the_mean(tmp_path):
    multiprocessing.spawn(average, args=(tmp_path,), nprocs=2)
    first, second = made_by(0), made_by(1)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.pop("unused") is None
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, (first[name].grad + second[name].grad) / 2)


def test_two_processes_train_as_one(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    given = {"num_steps": 1, "grad_clip": 0.1}
    one = config_file(tmp_path, "one", **given, batch_sizes={"3": 8})
    parts = {"batch_sizes": {"3": 2}, "grad_accumulation": 2, "num_processes": 2}
    two = config_file(tmp_path, "two", **given, **parts, use_ddp=False)
    for file in (one, two):
        train(ROOT / "train_net.py", "--cfg", file, folder=tmp_path)
    expected = gradients(tmp_path, "one")
    largest = max(float(value.abs().max()) for value in expected.values())
    torch.testing.assert_close(gradients(tmp_path, "two"), expected, atol=1e-5 * largest, rtol=1e-3)


def test_images_beside_orbits_are_refused(tmp_path):
    write_orbits(tmp_path / "orbits")
    images = {"img_dataset": write_shards(tmp_path / "shards"), "frame_lens": [1, 3], "batch_sizes": {"1": 2, "3": 2}}
    with pytest.raises(ConfigError, match="use_ddp=false does not go with frame_lens"):
        train_here(load(tmp_path, TASK_TYPE="train_t2v_entrance", **images, use_ddp=False))

"""Gradients that are averaged after the backward pass; tests/pipelines/training/test_processes.py trains with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipelines.training import parallel
from pipelines.training.network_setup import exchanges_afterwards
from pipelines.training.parallel import average_gradients
from pipelines.training.trainer import train
from tests.pipelines.training.test_training import load
from tests.tiny_images import write_shards
from tests.tiny_orbits import write_orbits
from utils.errors import ConfigError


def test_each_is_exchanged_once_whatever_its_layout(monkeypatch):
    """As if the other process had gradients three times as large."""
    sent = []

    class Done:
        def wait(self):
            sent.append("waited")

    def all_reduce(tensor, async_op):
        assert async_op
        assert tensor.is_contiguous()
        sent.append(len(tensor))
        tensor.mul_(4)
        return Done()

    monkeypatch.setattr(parallel.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(parallel, "num_processes", lambda: 2)
    monkeypatch.setattr(parallel, "BUCKET", 200)
    torch.manual_seed(0)
    image, views = torch.randn(6, 4, 3, 3), torch.randn(4, 4, 3, 1, 1)
    layouts = [
        image.contiguous(memory_format=torch.channels_last),
        views.contiguous(memory_format=torch.channels_last_3d),
        torch.randn(30, 40).T,
        torch.randn(7),
        torch.randn(()),
    ]
    parameters = [nn.Parameter(torch.zeros(gradient.shape)) for gradient in layouts]
    for parameter, gradient in zip(parameters, layouts, strict=True):
        parameter.grad = gradient.clone()
    average_gradients([*parameters, nn.Parameter(torch.zeros(2))])
    for parameter, gradient in zip(parameters, layouts, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
        assert parameter.grad.stride() == gradient.stride()
    assert sent == [216, 48 + 1200, "waited", 7 + 1, "waited", "waited"]


@pytest.mark.parametrize(
    ("processes", "changes", "afterwards"),
    [
        (2, {}, True),
        (1, {}, False),
        (2, {"use_ddp": True}, False),
        (2, {"use_fsdp": True}, False),
        (2, {"use_ddp": False, "cuda_graph": False}, True),
        (2, {"cuda_graph": False}, False),
        (2, {"fused": False}, False),
        (2, {"compile": True}, False),
        (2, {"grad_accumulation": 2}, False),
        (4, {}, False),  # two of them on another machine
    ],
)
def test_left_open_it_follows_the_pass_where_that_can_be_a_graph(tmp_path, monkeypatch, processes, changes, afterwards):
    """DDP would keep the passes from being graphs; between machines its overlap is worth more."""
    monkeypatch.setattr("utils.processes.num_processes", lambda: processes)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    objective = SimpleNamespace(can_be_graphed=True)
    on_gpus = SimpleNamespace(num_processes=processes, mixed_precision="bf16", device=torch.device("cuda"))
    cfg = load(tmp_path, TASK_TYPE="train_t2v_entrance", **changes)
    assert exchanges_afterwards(cfg, objective, on_gpus) is afterwards
    if not changes:
        on_gpus.mixed_precision = "no"
        assert not exchanges_afterwards(cfg, objective, on_gpus)


def test_images_beside_orbits_are_refused(tmp_path):
    write_orbits(tmp_path / "orbits")
    images = {"img_dataset": write_shards(tmp_path / "shards"), "frame_lens": [1, 3], "batch_sizes": {"1": 2, "3": 2}}
    with pytest.raises(ConfigError, match="use_ddp=false does not support frame_lens"):
        train(load(tmp_path, TASK_TYPE="train_t2v_entrance", **images, use_ddp=False))

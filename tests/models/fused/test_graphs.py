"""Where a graph does not apply, a training pass runs as it is; what cannot be captured is said."""

import pytest
import torch

import models  # noqa: F401
from models.fused.graphs import graph_for_training
from utils.errors import ConfigError
from utils.registry import MODEL

TINY = {"dim": 32, "head_dim": 16, "dim_mult": [1], "num_res_blocks": 1, "context_dim": 24, "y_dim": 24}


def test_a_pass_on_the_cpu_runs_as_it_is():
    torch.manual_seed(0)
    unet = MODEL.build({"type": "UNetSD_T2VBase", **TINY, "dropout": 0.0})
    torch.nn.init.normal_(unet.out[-1].weight, std=0.1)
    given = torch.randn(1, 4, 2, 4, 4), torch.tensor([5]), torch.randn(1, 3, 24)
    expected = unet(*given)
    graph_for_training(unet)
    found = unet(*given, camera_data=None)
    assert torch.equal(found, expected)
    found.square().mean().backward()
    assert unet.out[-1].weight.grad.any()


def test_what_cannot_be_captured_is_said(monkeypatch):
    unet = MODEL.build({"type": "UNetSD_T2VBase", **TINY})
    graph_for_training(unet)
    monkeypatch.setattr(unet.forward, "_fits", lambda given: True)

    def fails(*_args, **_options):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    with pytest.raises(ConfigError, match=r"capturing\); set cuda_graph=false"):
        unet(torch.randn(1, 4, 2, 4, 4), torch.tensor([5]), torch.randn(1, 3, 24))


@pytest.mark.parametrize(
    ("options", "can"),
    [
        ({"use_checkpoint": False}, True),
        ({"use_checkpoint": True}, False),
        ({"use_checkpoint": True, "dropout": 0.0}, True),
        ({"use_checkpoint": True, "checkpoint_level": "transformers"}, True),
    ],
)
def test_generators_cannot_be_set_back_in_a_graph(options, can):
    assert MODEL.build({"type": "UNetSD_T2VBase", **TINY, **options}).can_be_graphed is can

"""Compiling by region shares code between blocks of one shape."""

import pytest
import torch
from torch import nn

import models  # noqa: F401
from tests.tiny import TWO_LEVELS, UNET
from utils import torch_settings
from utils.registry import MODEL


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "sizes",
    [UNET, pytest.param(TWO_LEVELS, marks=pytest.mark.slow)],
    ids=["one-level", "two-levels"],
)
def test_unet_blocks_share_compiled_code(monkeypatch, sizes):
    counters = pytest.importorskip("torch._dynamo.utils").counters
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_(self, backend="eager", **options))
    unet = MODEL.build({**sizes, "num_res_blocks": 2})
    nn.init.normal_(unet.out[-1].weight, std=0.1)
    x, y, t = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 24), torch.tensor([500])
    eager = unet(x, t, y)
    torch._dynamo.reset()
    counters.clear()
    parts = unet.parts_to_compile()
    torch_settings.compile_parts(parts)
    torch.testing.assert_close(unet(x, t, y), eager, atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] < len(parts) / 2
    torch._dynamo.reset()

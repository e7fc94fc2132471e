"""The precision that a card computes in hardware."""

from __future__ import annotations

import pytest
import torch

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from models.fused.kernels.choice import has_kernels
from tests.conftest import ROOT
from utils.config import load_config
from utils.devices import fast_dtype, pick_dtype

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "expected", "kernels"),
    [((7, 0), torch.float16, False), ((7, 5), torch.float16, False), ((8, 0), torch.bfloat16, True),
     ((8, 9), torch.bfloat16, True), ((9, 0), torch.bfloat16, True), ((12, 0), torch.bfloat16, True)],
)  # fmt: skip
def test_old_cards_compute_in_float16_without_kernels(monkeypatch, capability, expected, kernels):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr("utils.devices.pick_device", lambda name: CUDA)
    assert fast_dtype(CUDA) == expected
    cfg = load_config(ROOT / "configs" / "mini" / "t2v_infer.yaml")
    assert pick_dtype(cfg) == expected
    assert has_kernels(CUDA, torch.float16) is kernels
    assert not has_kernels(CUDA, torch.float32)


def test_a_cpu_computes_in_float32():
    assert fast_dtype(torch.device("cpu")) == torch.float32
    assert not has_kernels(torch.device("cpu"), torch.bfloat16)

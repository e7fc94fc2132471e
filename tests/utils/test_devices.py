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
from utils.devices import cpu_instructions, fast_dtype, pick_dtype

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


READ_INSTRUCTIONS = cpu_instructions  # before conftest.py replaces it


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx2", "fma"}, torch.float32),
        ({"avx512f", "avx512_bf16"}, torch.float32),
        ({"avx512_bf16", "amx_bf16", "amx_tile"}, torch.bfloat16),
        (set(), torch.float32),
    ],
)
def test_a_cpu_samples_in_bfloat16_only_if_it_multiplies_matrices_in_it(monkeypatch, instructions, expected):
    monkeypatch.setattr("utils.devices.cpu_instructions", lambda: frozenset(instructions))
    path = ROOT / "configs" / "mini" / "t2v_infer.yaml"
    assert pick_dtype(load_config(path, ["device=cpu"])) == expected
    assert pick_dtype(load_config(path, ["device=cpu", "precision=float32"])) == torch.float32
    assert pick_dtype(load_config(path, ["device=cpu", "precision=bfloat16"])) == torch.bfloat16
    assert fast_dtype(torch.device("cpu")) == torch.float32  # of training


def test_instructions_are_read_from_linux(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 avx2\nprocessor\t: 1\nflags\t\t: fpu\n")
    for name, expected in (("cpuinfo", {"fpu", "amx_bf16", "avx2"}), ("gone", set())):
        monkeypatch.setattr("utils.devices.Path", lambda _, name=name: tmp_path / name)
        READ_INSTRUCTIONS.cache_clear()
        assert READ_INSTRUCTIONS() == expected
    READ_INSTRUCTIONS.cache_clear()


def test_a_cpu_has_no_kernels():
    assert not has_kernels(torch.device("cpu"), torch.bfloat16)

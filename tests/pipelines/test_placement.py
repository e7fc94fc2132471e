"""Low-memory mode: which networks are on the device when; results stay."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from pipelines.placement import Placement
from pipelines.sampling.pipeline import ViewsPipeline
from tests.tiny import UNET, load, write_family, write_head

pytestmark = pytest.mark.usefixtures("one_thread")


class Elsewhere(Placement):
    """A device whose tensors are numbers above 1000."""

    def __init__(self, **options):
        super().__init__(torch.device("cpu"), **options)

    def _copied(self, tensor):
        return tensor + 1000


def test_moving_one_in_moves_the_others_out():
    placement = Elsewhere(one_at_a_time=True)
    modules = first, second, third = [nn.BatchNorm1d(2) for _ in range(3)]
    before = {name: value.clone() for name, value in first.state_dict().items()}

    def present():
        return [[bool(value.min() >= 1000) for value in (m.weight, m.running_mean)] for m in modules]

    placement.bring(first, second)
    placement.bring(second, third)
    assert present() == [[False] * 2, [True] * 2, [True] * 2]
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert float(second.weight.detach().max()) == 1001  # it stayed, and was not copied again
    placement.bring(first)
    assert present() == [[True] * 2, [False] * 2, [False] * 2]


def test_without_low_memory_nothing_moves():
    placement, module = Elsewhere(), nn.BatchNorm1d(2)
    placement.bring(module)
    assert float(module.weight.detach().max()) == 1


def refining(tmp_path, *overrides):
    config = write_family(tmp_path) | write_head(tmp_path) | {"UNet": {**UNET, "use_lgm_refine": True}}
    return ViewsPipeline.from_config(load(tmp_path, config, *overrides))


@pytest.mark.usefixtures("kept_networks")
def test_networks_move_in_as_they_are_needed_and_results_stay(tmp_path, monkeypatch):
    seen, bring = [], Placement.bring

    def noting(placement, *modules):
        names = tuple(type(module).__name__ for module in modules)
        if placement.one_at_a_time and seen[-1:] != [names]:
            seen.append(names)
        bring(placement, *modules)

    monkeypatch.setattr(Placement, "bring", noting)
    plain, saving = (refining(tmp_path, *overrides) for overrides in ((), ("low_memory=true",)))
    assert (plain.placement.one_at_a_time, saving.placement.one_at_a_time) == (False, True)
    expected, orbits = plain("a red mug", results="refined"), saving("a red mug", results="refined")
    assert torch.equal(orbits.views_BVCHW, expected.views_BVCHW)
    assert torch.equal(orbits.gaussians.means_BN3, expected.gaussians.means_BN3)
    steps = [("OrbitUNet",), ("LGM", "AutoencoderKL")] * 3  # of 5, the third, fourth and fifth refine
    embed = ("FrozenOpenCLIPTtxtVisualEmbedder", "AutoencoderKL")
    assert seen == [embed, *steps, ("AutoencoderKL",), ("LGM",)]


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_low_memory_needs_less_and_gives_the_same(tmp_path, compiled):
    """Without `kept_networks`, which would hold the networks of the first pipeline on the GPU beside the second."""
    # not compiled, the low-memory mode fuses less than the other, and in half precision that is seen
    options = ["device=cuda", "precision=bfloat16", f"fused={compiled}"]
    refining(tmp_path, *options)("a red mug", results="refined")  # workspaces of libraries stay in memory from here on
    needs, views = [], []
    for low_memory in (False, True):
        held = collected_memory()
        pipeline = refining(tmp_path, *options, f"low_memory={low_memory}", f"compile={compiled}")
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            views.append(pipeline("a red mug", results="refined").views_BVCHW.cpu())
        needs.append(torch.cuda.max_memory_allocated() - held)
        if low_memory:
            pipeline.placement.bring()
            assert {parameter.device.type for parameter in pipeline.unet.parameters()} == {"cpu"}
        del pipeline
    assert needs[1] < needs[0]
    for one in views[1:]:
        torch.testing.assert_close(one, views[0], atol=2 / 255, rtol=0)


def collected_memory() -> int:
    """Bytes of all tensors on the GPU, without garbage."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()

import pytest
import torch
from torch import nn

from models.unet.blocks import TemporalConv
from tests.tiny import AUTOENCODER, HEAD, UNET
from utils.registry import AUTO_ENCODER, MODEL
from utils.torch_settings import GroupNorm, channels_last, replace_group_norms


def test_layout_changes_and_nothing_else():
    module = nn.Sequential(nn.Conv2d(4, 6, 3), TemporalConv(6))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    channels_last(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    # the slice that runs as a 2D convolution is laid out like its input too
    assert module[1].weight[..., 0].is_contiguous(memory_format=torch.channels_last)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


@pytest.mark.parametrize("size", [8, 32])  # below and above the number of pixels that forward passes ask for
@pytest.mark.parametrize("width", [64, 256])  # groups of 2 and of 8 channels
def test_group_norms_are_those_of_torch_and_keep_the_layout(width, size):
    plain, ours = nn.GroupNorm(32, width, eps=1e-6), GroupNorm(32, width, eps=1e-6)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ours.load_state_dict(plain.state_dict())
    x_BCHW = torch.randn(2, width, size, size).contiguous(memory_format=torch.channels_last)
    found = []
    for norm in (plain, ours):
        given_BCHW = x_BCHW.clone().requires_grad_()
        normed_BCHW = norm(given_BCHW)
        assert normed_BCHW.is_contiguous(memory_format=torch.channels_last)
        (normed_BCHW * x_BCHW.roll(1)).sum().backward()
        found.append([normed_BCHW.detach(), given_BCHW.grad, norm.weight.grad, norm.bias.grad])
        found[-1].append(norm(x_BCHW).detach())
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)  # sums of 4,096 numbers in another order


@pytest.mark.parametrize(
    ("width", "size", "trained", "copied"),
    [(64, 8, False, True), (64, 32, False, False), (64, 32, True, True), (256, 8, True, False)],
)
def test_only_slow_group_norms_copy_their_images(width, size, trained, copied):
    seen, norm = [], GroupNorm(32, width)
    x_BCHW = torch.randn(2, width, size, size).contiguous(memory_format=torch.channels_last)
    with _NormInputs(seen):
        norm(x_BCHW.requires_grad_(trained))
    assert [image.is_contiguous() for image in seen] == [copied]


class _NormInputs(torch.overrides.TorchFunctionMode):
    """Notes what PyTorch's group norm gets."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.group_norm:
            self.seen.append(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("registry", "section"), [(MODEL, UNET), (MODEL, {"type": "LGM", **HEAD}), (AUTO_ENCODER, AUTOENCODER)]
)
def test_networks_have_no_other_group_norms(registry, section):
    norms = [module for module in registry.build(section).modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert {type(norm) for norm in norms} == {GroupNorm}


def test_replaced_group_norms_have_the_same_values():
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Sequential(nn.GroupNorm(4, 8, eps=0.5)))
    nn.init.normal_(module[1][0].weight)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    replace_group_norms(module)
    assert (type(module[1][0]), module[1][0].eps) == (GroupNorm, 0.5)
    assert list(module.state_dict()) == list(before)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())

import torch
from torch import nn

from models.unet.blocks import TemporalConv
from utils.torch_settings import channels_last


def test_layout_changes_and_nothing_else():
    module = nn.Sequential(nn.Conv2d(4, 6, 3), TemporalConv(6))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    channels_last(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    # the slice that runs as a 2D convolution is laid out like its input too
    assert module[1].weight[..., 0].is_contiguous(memory_format=torch.channels_last)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)

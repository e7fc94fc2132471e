"""Untrained weights that keep activations bounded, to measure a machine or to try a configuration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.gaussians.lgm import FIRST_GUESS, LGM


def random_value(name: str, like: Tensor, *, generator: torch.Generator) -> Tensor:
    """A random parameter on the generator's device: matrices with deviation 0.7 / sqrt(fan in), gains near one.

    The deviation keeps activations of residual networks bounded. No parameter is zero.
    """
    scale = 0.7 / like[0].numel() ** 0.5 if like.dim() > 1 else 0.1
    value = torch.randn(like.shape, generator=generator, device=generator.device) * scale
    return value + 1.0 if like.dim() == 1 and name.endswith(".weight") else value


def random_state(module: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """A float32 state dict of the module's names and shapes, on the CPU; the module may be on the meta device.

    The Gaussians of a head get about the size of trained ones, so that rendering takes the same time.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: random_value(name, like, generator=generator) for name, like in module.state_dict().items()}
    if isinstance(module, LGM):
        state |= {"conv.bias": torch.tensor(FIRST_GUESS), "conv.weight": 0.3 * state["conv.weight"]}
    return state


@torch.no_grad()
def fill_randomly(module: nn.Module, *, seed: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Give a module on the meta device memory and random values on its final device, without files or copies.

    In every dtype the values are those of float32, rounded.

    Returns:
        The module.
    """
    module = module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.copy_(random_value(name, parameter, generator=generator))
    if isinstance(module, LGM):
        module.conv.bias.copy_(torch.tensor(FIRST_GUESS))
        module.conv.weight.mul_(0.3)
    return module

"""Measure a step of diffusers' video UNet of the same size. It has no cameras and other temporal layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.unet.config import UNetConfig
from pipelines.benchmark.case import Bench, Case
from pipelines.benchmark.steps import unet_arguments
from pipelines.benchmark.timing import median_ms, peak_gib, reset_peak
from utils.devices import pick_dtype
from utils.settings.run import RunConfig


@torch.no_grad()
def measure_diffusers(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Measure one call with both guidance branches, random weights and inputs; `compile=true` compiles all of it."""
    if case.takes_images or not isinstance(case.cfg.UNet.options, UNetConfig):
        return []  # diffusers' image model has another kind of condition, and other backbones have other sizes
    bench.clear()
    dtype = pick_dtype(case.cfg)
    with torch.device(bench.device):
        network = diffusers_unet(case.cfg).to(dtype).eval()
        arguments = unet_arguments(case.cfg, batch=2)
        inputs = [torch.randn(arguments[name].shape).to(dtype) for name in ("x", "y")]
        t_B = torch.full((2,), 500)
    run = torch.compile(network, dynamic=False) if case.cfg.compile else network
    held = reset_peak(bench.device)
    ms = median_ms(lambda: run(inputs[0], t_B, inputs[1]), device=bench.device, repeats=bench.repeats)
    row = {**case.row, "model": f"diffusers, sizes of {case.model}", "weights": "random", "step_ms": ms}
    return [row | {"held_gib": held, "peak_gib": peak_gib(bench.device)}]


def diffusers_unet(cfg: RunConfig) -> nn.Module:
    """Build diffusers' UNet3DConditionModel with the widths, depth and heads of `cfg.UNet`."""
    from diffusers import UNet3DConditionModel

    options = cfg.UNet.options
    attends = [0.5**level in options.attn_scales for level in range(len(options.dim_mult))]
    return UNet3DConditionModel(
        in_channels=options.in_dim,
        out_channels=options.out_dim,
        down_block_types=tuple("CrossAttnDownBlock3D" if here else "DownBlock3D" for here in attends),
        up_block_types=tuple("CrossAttnUpBlock3D" if here else "UpBlock3D" for here in reversed(attends)),
        block_out_channels=tuple(options.dim * mult for mult in options.dim_mult),
        layers_per_block=options.num_res_blocks,
        cross_attention_dim=options.context_dim,
        attention_head_dim=options.head_dim,
    )

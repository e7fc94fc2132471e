"""Measure a denoising step of the UNet with guidance: time, fraction of the ceiling, memory, error against float32."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipelines.benchmark.case import Bench, Case, sample, warm_up, with_sampler
from pipelines.benchmark.ceiling import ceiling_for
from pipelines.benchmark.timing import Marks, peak_gib, reset_peak
from pipelines.sampling.pipeline import ViewsPipeline
from utils.errors import ConfigError
from utils.settings.run import RunConfig

MIN_STEPS = 3


def measure_step(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Sample one orbit like inference, after a warm-up.

    Columns: median time of a step; time from the prompt to the last latents; TFLOP of a step, and the fraction of the
    measured matmul ceiling; memory before sampling and at the peak (all parts except the Gaussian head); relative
    errors against float32 with the same weights and noise: of x0 after one guided step from pure noise, and of the
    latents at the end. The reference always has the sampler of the configuration without the setting.
    """
    if case.cfg.sampler.options.num_steps < MIN_STEPS:
        raise ConfigError(f"sampler.num_steps must be at least {MIN_STEPS} to measure a step")
    reference_1, reference_end = reference_latents(bench, case)
    pipeline = bench.pipeline(case.cfg)
    first = one_step(pipeline)
    warm_up(pipeline)
    held, marks = reset_peak(bench.device), Marks(bench.device)
    orbits = sample(pipeline, on_step=marks.mark)
    step_ms = statistics.median(marks.intervals_ms())
    tflop = step_flops(case.cfg) / 1e12
    ceiling = ceiling_for(bench, next(pipeline.unet.parameters()).dtype)
    return [
        {
            **case.row,
            "steps": pipeline.sampler.config.num_steps,
            "step_ms": step_ms,
            "denoise_s": orbits.seconds["conditions"] + orbits.seconds["denoise"],
            "tflop": tflop,
            "share": ceiling and 1000 * tflop / step_ms / ceiling,
            "held_gib": held,
            "peak_gib": peak_gib(bench.device),
            "error_1": relative_error(first, reference_1),
            "error_end": relative_error(orbits.latents_BCVHW, reference_end),
        }
    ]


def reference_latents(bench: Bench, case: Case) -> tuple[Tensor, Tensor]:
    """Return x0 after one step and the final latents, in float32 and not compiled; computed once per model."""
    if case.model not in bench.references:
        pipeline = bench.pipeline(case.reference_cfg)
        bench.references[case.model] = (one_step(pipeline), sample(pipeline).latents_BCVHW)
    return bench.references[case.model]


def one_step(pipeline: ViewsPipeline) -> Tensor:
    """Predict x0 from pure noise with one guided call of the network."""
    solver = "Euler" if pipeline.diffusion.is_flow else "DDIM"
    return sample(with_sampler(pipeline, type=solver, num_steps=1, spacing="trailing")).latents_BCVHW


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Divide the norm of the difference by the norm of the reference."""
    return float((value - reference).norm() / reference.norm())


def step_flops(cfg: RunConfig) -> int:
    """Count the floating-point operations of a step from shapes only: convolutions, products and attention."""
    branches = 1 if cfg.guide_scale == 1 else 2
    with torch.device("meta"), torch.no_grad():
        unet = cfg.UNet.build().eval()
        arguments = unet_arguments(cfg, batch=branches)
        with FlopCounterMode(display=False) as counter:
            unet(**arguments)
    return counter.get_total_flops()


def unet_arguments(cfg: RunConfig, *, batch: int, num_views: int | None = None) -> dict[str, Tensor]:
    """Make empty arguments of the UNet on the default device. `num_views`: None means that of sampling."""
    autoencoder = cfg.auto_encoder.options
    V = num_views or len(cfg.cameras.views) or cfg.cameras.num_views
    width, height = (side // autoencoder.reduction for side in cfg.resolution)
    latents_BCVHW = torch.empty(batch, autoencoder.latent_channels, autoencoder.layout.num_frames(V), height, width)
    arguments = {
        "x": latents_BCVHW,
        "t": torch.empty(batch, dtype=torch.long),
        "y": torch.empty(batch, *cfg.embedder.options.words_shape()),
        "camera_data": torch.empty(batch, V, 16),
        "fps": torch.empty(batch, dtype=torch.long),
    }
    if cfg.UNet.options.takes_image_embedding:
        arguments |= {"image": torch.empty(batch, 1, cfg.UNet.options.image_width), "local_image": latents_BCVHW}
    return arguments

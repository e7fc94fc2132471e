"""Examine single predictions of an image model on held-out objects, without sampling.

The loss at fixed noise and timesteps compares trainings with little noise of its own. The first step from pure noise
shows what the model knows about the object before any of its own errors can grow.

Letters: B batch, T timesteps, C channels, V views, H W pixels or latent pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pipelines.evaluation.held_out import TrueOrbit, TrueOrbits
from pipelines.sampling.pipeline import ViewsPipeline
from pipelines.sampling.sampler import Denoising
from pipelines.training.data.global_batch import mixed_seed

NUM_TIMESTEPS = 8  # evenly spaced, so that their mean is close to the loss of training with uniform timesteps


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for one object.

    Attributes:
        loss_T: loss of training at each of `fixed_timesteps`, the mean over the views that are not given.
        first_VCHW: decoded x0 of the first step, from pure noise, without guidance; in [0, 1].
    """

    loss_T: Tensor
    first_VCHW: Tensor


def fixed_timesteps(num_timesteps: int) -> list[int]:
    """Return the middle of each eighth of the timesteps of a diffusion process."""
    return sorted({int((place + 0.5) / NUM_TIMESTEPS * num_timesteps) for place in range(NUM_TIMESTEPS)})


def examine(pipeline: ViewsPipeline, orbits: TrueOrbits, *, seed: int) -> Iterator[Predictions]:
    """Yield the predictions for each object, with view 0 given, in order.

    The noise depends only on the seed and the timestep, so it is the same for every object, model and batch size.

    Args:
        seed: seed of the noise; the first step has the noise that sampling with this seed starts from.
    """
    for batch in _batches(orbits, pipeline.cfg.batch_size):
        yield from _examine_batch(pipeline, batch, seed=seed)


def _batches(orbits: TrueOrbits, size: int) -> Iterator[list[TrueOrbit]]:
    """Yield consecutive objects with equal cameras, because a call has one set of cameras."""
    for _, alike in groupby(orbits, key=lambda orbit: orbit.c2w_V44.numpy().tobytes()):
        batch: list[TrueOrbit] = []
        for orbit in alike:
            batch.append(orbit)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch


@torch.no_grad()
def _examine_batch(pipeline: ViewsPipeline, batch: Sequence[TrueOrbit], *, seed: int) -> list[Predictions]:
    seeds = [seed] * len(batch)
    images, c2w_V44 = [orbit.views_VCHW[0] for orbit in batch], batch[0].c2w_V44
    run = pipeline.prepare(images, seeds=seeds, c2w_V44=c2w_V44)
    x0 = _true_latents(pipeline, batch, seed=seed)
    losses_BT = torch.stack(
        [_loss(run, x0, t=t, seed=mixed_seed(seed, "loss", t)) for t in fixed_timesteps(run.diffusion.num_timesteps)],
        dim=1,
    )
    size = tuple(reversed(batch[0].views_VCHW.shape[-2:]))
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    noise = pipeline.draw_noise(generators, num_views=len(c2w_V44), resolution=size).to(x0)
    first = run.mixed(run.predict_x0(noise, run.diffusion.num_timesteps - 1, guided=False))
    views_BVCHW = pipeline.decode(first).float().cpu()
    pairs = zip(losses_BT.cpu(), views_BVCHW, strict=True)
    return [Predictions(loss_T=loss_T, first_VCHW=views_VCHW) for loss_T, views_VCHW in pairs]


def _true_latents(pipeline: ViewsPipeline, batch: Sequence[TrueOrbit], *, seed: int) -> Tensor:
    """Encode the true views: (B, C, V, h, w) float32."""
    pipeline.placement.bring(pipeline.autoencoder)
    parameter = next(pipeline.autoencoder.parameters())
    views_BVCHW = torch.stack([orbit.views_VCHW for orbit in batch]).to(parameter.device, parameter.dtype)
    generators = [torch.Generator().manual_seed(seed) for _ in batch]
    return pipeline.autoencoder.encode_views(views_BVCHW, generator=generators, chunk=pipeline.cfg.chunk_size).float()


def _loss(run: Denoising, x0: Tensor, *, t: int, seed: int) -> Tensor:
    """Compute the loss of each sample at a timestep, over the views that the network does not receive clean: (B,)."""
    noise = run.diffusion.make_noise(x0[:1].cpu(), generator=torch.Generator().manual_seed(seed)).to(x0).expand_as(x0)
    t_B = torch.full((len(x0),), t, device=x0.device, dtype=torch.long)
    x_t = run.shown(run.diffusion.add_noise(x0, noise, t_B))
    errors = run.network(x_t, t_B, **run.conditions.conditional).float() - run.diffusion.training_target(x0, noise, t_B)
    clean = run.known_views.views if run.known_views and run.known_views.clean else ()
    unknown = [view for view in range(x0.shape[2]) if view not in clean]
    return errors.square()[:, :, unknown].flatten(1).mean(dim=1)

"""Losses at fixed noise and the first step, with networks whose predictions are known."""

from __future__ import annotations

import pytest
import torch

from pipelines.evaluation.denoising import examine, fixed_timesteps
from pipelines.evaluation.held_out import TrueOrbits
from pipelines.evaluation.image_quality import through_autoencoder
from pipelines.sampling.pipeline import ViewsPipeline
from tests.tiny import V_DIFFUSION, load, write_image_family
from tests.tiny_orbits import write_turning_orbits

pytestmark = pytest.mark.usefixtures("one_thread")

EPS_DIFFUSION = {"type": "DiffusionDDIM", "mean_type": "eps"}


def opened(tmp_path, *, elevations=(10.0,), **changes):
    family = write_image_family(tmp_path)
    family["auto_encoder"] = {**family["auto_encoder"], "posterior": "mode"}
    cfg = load(tmp_path, family | {"cameras": {"num_views": 8}} | changes)
    write_turning_orbits(tmp_path / "held_out", elevations=elevations)
    orbits = TrueOrbits(tmp_path / "held_out", cfg, limit=9, scratch=tmp_path, option="--held-out")
    return ViewsPipeline.from_config(cfg), orbits


class Oracle:
    """Predicts what leads to the true latents, plus an error at some views."""

    dtype = torch.float32

    def __init__(self, pipeline, orbit, *, error=0.0, at=()):
        with torch.no_grad():
            self.x0 = pipeline.autoencoder.encode_views(orbit.views_VCHW[None]).float()
        self.diffusion, self.error, self.at = pipeline.diffusion, error, list(at)

    def __call__(self, x, t, **_):
        signal, sigma = (
            value.float().view(-1, 1, 1, 1, 1) for value in self.diffusion._signal_and_noise(t, t.double())
        )
        noise = (x - signal * self.x0) / sigma
        prediction = noise if self.diffusion.config.mean_type == "eps" else signal * noise - sigma * self.x0
        prediction[:, :, self.at] += self.error
        return prediction


@pytest.mark.parametrize("diffusion", [V_DIFFUSION, EPS_DIFFUSION], ids=["v", "eps"])
def test_a_perfect_network_has_no_loss_and_finds_the_views_at_once(tmp_path, diffusion):
    pipeline, orbits = opened(tmp_path, Diffusion=diffusion)
    pipeline.network = Oracle(pipeline, orbits[0])
    [found] = examine(pipeline, orbits, seed=3)
    torch.testing.assert_close(found.loss_T, torch.zeros(8), atol=1e-4, rtol=0)
    # at the last timestep of eps, x0 is what is left after division by a signal of 0.07
    expected = through_autoencoder(pipeline, orbits[0], seed=3)
    torch.testing.assert_close(found.first_VCHW, expected, atol=2e-2 if diffusion is EPS_DIFFUSION else 1e-3, rtol=0)


def test_only_views_that_are_not_given_count(tmp_path):
    pipeline, orbits = opened(tmp_path, Diffusion=V_DIFFUSION, hold_views="clean")
    pipeline.network = Oracle(pipeline, orbits[0], error=2.0, at=[0])
    [given] = examine(pipeline, orbits, seed=3)
    torch.testing.assert_close(given.loss_T, torch.zeros(8), atol=1e-4, rtol=0)
    pipeline.network = Oracle(pipeline, orbits[0], error=2.0, at=[0, 5])
    [found] = examine(pipeline, orbits, seed=3)
    torch.testing.assert_close(found.loss_T, torch.full((8,), 4.0 / 7), atol=1e-4, rtol=1e-4)


def test_noise_and_loss_do_not_depend_on_the_batch(tmp_path):
    pipeline, orbits = opened(tmp_path, elevations=(10.0, 10.0, 20.0), batch_size=2)
    together = list(examine(pipeline, orbits, seed=3))
    alone, _ = opened(tmp_path, elevations=(10.0, 10.0, 20.0))
    for one, other in zip(examine(alone, orbits, seed=3), together, strict=True):
        torch.testing.assert_close(one.loss_T, other.loss_T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.first_VCHW, other.first_VCHW, atol=1e-3, rtol=0)
    assert len(together) == 3
    assert not torch.allclose(together[0].loss_T, together[1].loss_T, atol=1e-4, rtol=0)
    other_seed = next(iter(examine(alone, orbits, seed=4)))
    assert not torch.allclose(together[0].loss_T, other_seed.loss_T, atol=1e-5, rtol=0)


def test_timesteps_are_the_middles_of_eighths():
    assert fixed_timesteps(1000) == [62, 187, 312, 437, 562, 687, 812, 937]
    assert fixed_timesteps(4) == [0, 1, 2, 3]

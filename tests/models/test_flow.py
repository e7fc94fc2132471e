"""Flow matching: the line from latents to noise, its timesteps, and the solvers that follow it."""

from __future__ import annotations

import itertools

import pytest
import torch

import pipelines  # noqa: F401 - registers
from models.flow import FlowMatching
from tests.tiny import V_DIFFUSION
from utils.errors import ConfigError
from utils.registry import DIFFUSION, SAMPLERS


def flow(**options):
    return DIFFUSION.build({"type": "FlowMatching", **options})


class Uniform:
    """Evenly spaced numbers instead of random ones."""

    def rand(self, size):
        return (torch.arange(size) + 0.5) / size


def test_x0_and_noise_are_the_ends_of_the_line():
    x0, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    t_B = torch.tensor([0.0, 1000.0])
    x_t = flow().add_noise(x0, noise, t_B)
    torch.testing.assert_close(x_t, torch.stack([x0[0], noise[1]]), atol=0, rtol=0)


def test_the_target_leads_back_to_x0():
    x0, noise, t_B = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2), torch.tensor([250.0, 999.5])
    process = flow()
    x_t, target = process.add_noise(x0, noise, t_B), process.training_target(x0, noise, t_B)
    torch.testing.assert_close(process.to_x0(target, x_t, t_B), x0, atol=1e-5, rtol=0)


def test_the_shift_moves_the_drawn_timesteps_towards_noise():
    even_B = flow(shift=1.0).draw_timesteps(Uniform(), 100)
    torch.testing.assert_close(even_B, 1000 * Uniform().rand(100))
    # sigma = 1/2 becomes 3/2 / (1 + 2/2) = 3/4
    assert float(flow(shift=3.0).draw_timesteps(Uniform(), 101)[50]) == pytest.approx(750.0)


@pytest.mark.parametrize("name", ["Euler", "UniPC", "DPMSolver++"])
def test_solvers_follow_a_straight_line_exactly(name):
    """With a constant x0 the path is a straight line, so x_t is known at every timestep."""
    process = flow()
    scheduler = SAMPLERS.build({"type": name, "num_steps": 6}).scheduler(process)
    x0, noise = torch.randn(1, 2, 3, 4, 4).double(), torch.randn(1, 2, 3, 4, 4).double()
    timesteps = [*scheduler.timesteps.tolist(), 0.0]
    x_t = process.add_noise(x0, noise, torch.tensor(timesteps[:1]))
    for t, following in itertools.pairwise(timesteps):
        x_t = scheduler.step(x0, t, x_t).prev_sample
        expected = process.add_noise(x0, noise, torch.tensor([following]))
        torch.testing.assert_close(x_t.double(), expected, atol=2e-4, rtol=0)


def test_the_euler_steps_are_even_before_the_shift():
    scheduler = SAMPLERS.build({"type": "Euler", "num_steps": 4}).scheduler(flow(shift=3.0))
    even = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(scheduler.timesteps / 1000, 3 * even / (1 + 2 * even), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "diffusion", "message"),
    [
        ({"type": "DDIM"}, {"type": "FlowMatching"}, "sampler.solver=ddim does not solve Diffusion.type=FlowMatching"),
        ({"type": "Euler"}, V_DIFFUSION, "sampler.solver=euler does not solve Diffusion.type=DiffusionDDIM"),
        ({"type": "UniPC", "spacing": "angle"}, {"type": "FlowMatching"}, "sampler.spacing=angle"),
    ],
)
def test_a_solver_for_another_process_is_refused(sampler, diffusion, message):
    with pytest.raises(ConfigError, match=message):
        SAMPLERS.build(sampler).check(DIFFUSION.build(diffusion))


@pytest.mark.parametrize("options", [{"shift": 0.0}, {"num_timesteps": 1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"Diffusion.{next(iter(options))}"):
        FlowMatching.Config(**options)

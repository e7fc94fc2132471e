"""Schedules, targets and sampling against the recorded cases; solvers against each other."""

import math

import pytest
import torch

import models  # noqa: F401 - registers
from pipelines.sampling.conditioner import Conditions
from pipelines.sampling.guidance import ClassifierFreeGuidance
from pipelines.sampling.sampler import Denoising, Sampler
from pipelines.sampling.solvers import SOLVERS, solver_named
from tests.reference_cases import assert_matches, case_input, load_case
from tests.tiny import V_DIFFUSION
from utils.errors import ConfigError
from utils.registry import DIFFUSION, SAMPLERS


def build_case(name: str):
    spec, expected = load_case(name)
    diffusion = DIFFUSION.build({"type": "DiffusionDDIM", **spec["config"]})
    return spec["inputs"], expected, diffusion


def case_network(name: str, inputs: dict):
    A = case_input(name, "A", inputs["A"], inputs["A_scale"])

    def network(x, t, *, y):
        mixed = torch.einsum("ij,bjvhw->bivhw", A, x) + y.view(-1, 1, 1, 1, 1)
        return torch.tanh(mixed) * (0.5 + 0.5 * torch.cos(math.pi * t / 1000)).view(-1, 1, 1, 1, 1) + 0.3 * x

    conditions = Conditions(
        {"y": case_input(name, "y_cond", inputs["y_cond"])}, {"y": case_input(name, "y_uncond", inputs["y_uncond"])}
    )
    return network, conditions


class MeanOverViews:
    """The reconstruction of the recorded cases."""

    after_guidance = False

    def __init__(self):
        self.seen = []

    def steps(self, num_steps):
        return {round(num_steps * fraction) for fraction in (0.4, 0.6, 0.8)}

    def __call__(self, x0, step):
        self.seen.append(step)
        return 0.8 * x0 + 0.2 * x0.mean(dim=2, keepdim=True)


def run(name: str, *, refiner=None, options=None, noise=None):
    inputs, _, diffusion = build_case(name)
    network, conditions = case_network(name, inputs)
    sampler = SAMPLERS.build({"type": "DDIM", **(options or {})})
    noise = case_input(name, "noise", inputs["noise"]) if noise is None else noise
    guidance = ClassifierFreeGuidance(scale=inputs["guide_scale"])
    return sampler(noise, running(network, conditions, diffusion=diffusion, guidance=guidance, refiner=refiner))


def running(network, conditions, **options):
    return Denoising(network=network, conditions=conditions, **options)


@pytest.mark.parametrize("name", ["ddim_eps", "ddim_v"])
def test_reference_sampling(name):
    _, expected, diffusion = build_case(name)
    torch.testing.assert_close(diffusion.betas, torch.from_numpy(expected["betas"]), atol=1e-12, rtol=0)
    scheduler = SAMPLERS.build({"type": "DDIM"}).scheduler(diffusion)
    assert scheduler.timesteps.tolist() == expected["timesteps"].tolist()
    assert_matches(run(name), expected["sample"])


@pytest.mark.parametrize("name", ["ddim_eps", "ddim_v"])
def test_reference_sampling_with_reconstruction(name):
    _, expected, diffusion = build_case(name)
    refiner = MeanOverViews()
    assert_matches(run(name, refiner=refiner), expected["sample_3d"])
    timesteps = SAMPLERS.build({"type": "DDIM"}).scheduler(diffusion).timesteps.tolist()
    assert [timesteps[step] for step in sorted(set(refiner.seen))] == expected["reconstructed_at"].tolist()


@pytest.mark.parametrize("name", ["training_eps", "training_v"])
def test_reference_training_target(name):
    inputs, expected, diffusion = build_case(name)
    x0, noise = (case_input(name, key, inputs[key]) for key in ("x0", "noise"))
    t = torch.tensor(inputs["t"])
    x_t, target = diffusion.add_noise(x0, noise, t), diffusion.training_target(x0, noise, t)
    assert_matches(x_t, expected["xt"])
    assert_matches(target, expected["target"])
    torch.testing.assert_close(diffusion.to_x0(target, x_t, t), x0, atol=1e-4, rtol=0)


class GaussianNetwork:
    """The exact predictor when every x0 value is normal with mean 0.5 and deviation 0.5."""

    def __init__(self, diffusion):
        self.diffusion = diffusion

    def __call__(self, x, t, *, y):
        alpha_bar = self.diffusion.alpha_bar[t].view(-1, 1, 1, 1, 1)
        signal, noise_var = alpha_bar.sqrt(), 1 - alpha_bar
        gain = signal * 0.25 / (alpha_bar * 0.25 + noise_var)
        x0 = 0.5 + gain * (x - signal * 0.5)
        epsilon = (x - signal * x0) / noise_var.sqrt()
        return (
            epsilon if self.diffusion.config.mean_type == "eps" else signal * epsilon - noise_var.sqrt() * x0
        ).float()


@pytest.mark.parametrize("name", ["ddim_eps", "ddim_v"])
@pytest.mark.parametrize("solver", ["DDIM", "DPMSolver++", "UniPC"])
def test_every_solver_reaches_the_data(name, solver):
    _, _, diffusion = build_case(name)
    sampler = SAMPLERS.build({"type": solver, "num_steps": 30, "spacing": "trailing"})
    noise = torch.randn(1, 4, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    y = {"y": torch.zeros(1)}
    guidance = ClassifierFreeGuidance(scale=1.0)
    run = running(GaussianNetwork(diffusion), Conditions(y, y), diffusion=diffusion, guidance=guidance)
    x0 = sampler(noise, run)
    assert float(x0.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(x0.std()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["ddim_eps", "ddim_v"])
@pytest.mark.parametrize("num_steps", [1, 20, 1000])
def test_angles_are_spaced_as_powers(name, num_steps):
    _, _, diffusion = build_case(name)
    options = {"type": "UniPC", "num_steps": num_steps, "spacing": "angle", "warp": 2.0}
    scheduler = SAMPLERS.build(options).scheduler(diffusion)
    t = scheduler.timesteps
    assert (len(t), int(t[0]), len(scheduler.sigmas)) == (num_steps, 999, num_steps + 1)
    assert bool((t.diff() < 0).all())
    assert int(t[-1]) >= 0
    torch.testing.assert_close(scheduler.sigmas[1:-1], (1 / diffusion.alpha_bar[t[1:]] - 1).sqrt().float())
    if num_steps == 20:
        angle = diffusion.alpha_bar.sqrt().acos()
        gone = (angle[-1] - angle[t]) / (angle[-1] - angle[0])
        torch.testing.assert_close(gone, (torch.arange(20) / 20.0).double() ** 2, atol=3e-3, rtol=0)


@pytest.mark.parametrize("solver", ["DPMSolver++", "UniPC"])
@pytest.mark.parametrize("name", ["ddim_eps", "ddim_v"])
def test_angle_spacing_is_nearer_to_many_steps_than_ddim(name, solver):
    """The exact network of normal data turns smoothly, and its solution is known."""
    _, _, diffusion = build_case(name)
    noise = torch.randn(1, 4, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    y = {"y": torch.zeros(1)}
    guidance = ClassifierFreeGuidance(scale=1.0)
    run = running(GaussianNetwork(diffusion), Conditions(y, y), diffusion=diffusion, guidance=guidance)

    def sample(**options):
        return SAMPLERS.build(options)(noise, run)

    true = sample(type="DDIM", num_steps=500, spacing="trailing")
    fast = sample(type=solver, num_steps=20, spacing="angle", warp=1.5)
    slow = sample(type="DDIM", num_steps=20, spacing="trailing")
    assert (fast - true).norm() < (slow - true).norm()


def test_guidance_of_one_calls_one_branch():
    inputs, _, diffusion = build_case("ddim_eps")
    sizes = []

    def network(x, t, *, y):
        sizes.append(len(x))
        return torch.zeros_like(x)

    _, conditions = case_network("ddim_eps", inputs)
    sampler = SAMPLERS.build({"type": "DDIM", "num_steps": 2})
    for scale in (1.0, 2.0):
        guidance = ClassifierFreeGuidance(scale=scale)
        run = running(network, conditions, diffusion=diffusion, guidance=guidance)
        sampler(torch.zeros(1, 4, 1, 2, 2), run)
    assert sizes == [1, 1, 2, 2]


def test_guidance_acts_in_its_part_of_the_way():
    inputs, _, diffusion = build_case("ddim_v")
    network, conditions = case_network("ddim_v", inputs)
    noise, calls, sizes = case_input("ddim_v", "noise", inputs["noise"]), [], []

    def counted(x, t, *, y):
        sizes.append(len(x))
        return network(x, t, y=y)

    def sample(between, scale=3.0):
        sizes.clear()
        run = running(
            counted, conditions, diffusion=diffusion, on_step=lambda: calls.append(1), refiner=MeanOverViews(),
            guidance=ClassifierFreeGuidance(scale=scale, between=between),
        )  # fmt: skip
        plain, refined = sampler.both(noise, run)
        return refined

    sampler = SAMPLERS.build({"type": "DDIM", "num_steps": 10})
    part = sample((0.1, 0.4))
    assert sizes == [1, 2, 2, 2] + [1] * 11  # ten steps, and five more after the fork at step 4
    assert len(calls) == sampler.num_calls(refiner_steps={4, 6, 8}, both=True) == len(sizes)
    whole, none = sample((0.0, 1.0)), sample((0.0, 1.0), scale=1.0)
    assert sizes == [1] * 15
    assert torch.equal(sample((0.3, 0.34)), none)  # no step begins there
    assert not torch.equal(part, whole)
    assert not torch.equal(part, none)


def test_eta_takes_its_noise_from_the_sample_not_the_batch():
    inputs, _, diffusion = build_case("ddim_eps")
    network, _ = case_network("ddim_eps", inputs)
    sampler = SAMPLERS.build({"type": "DDIM", "num_steps": 4, "eta": 1.0})
    guidance = ClassifierFreeGuidance(scale=1.0)
    noise, y = torch.randn(2, 4, 2, 4, 4), torch.tensor([0.1, 0.7])

    def sample(rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        conditions = Conditions({"y": y[rows]}, {"y": y[rows]})
        run = running(network, conditions, diffusion=diffusion, guidance=guidance, generators=generators)
        return sampler(noise[rows], run)

    torch.testing.assert_close(sample([0, 1])[1:], sample([1]), atol=1e-5, rtol=0)


def test_offset_noise_is_constant_inside_a_view():
    diffusion = DIFFUSION.build({"type": "DiffusionDDIM", "noise_strength": 100.0})
    noise = diffusion.make_noise(torch.zeros(2, 3, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    assert float(noise.std(dim=(3, 4)).mean()) == pytest.approx(1.0, abs=0.05)
    assert float(noise.mean(dim=(3, 4)).std()) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must lie"),
        ({"num_stpes": 5}, "num_steps"),
        ({"type": "DDMI"}, "did you mean DDIM"),
        ({"type": "UniPC", "eta": 0.5}, "is only for DDIM"),
        ({"type": "DDIM", "spacing": "angle"}, "sampler.spacing=angle is for DPMSolver"),
        ({"type": "UniPC", "warp": 0}, "sampler.warp must be positive"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        SAMPLERS.build({"type": "DDIM", **options}, where="sampler")


def fork_arguments(*, eta=0.0):
    inputs, _, diffusion = build_case("ddim_v")
    network, conditions = case_network("ddim_v", inputs)
    calls = []

    def counted(x, t, *, y):
        calls.append(len(x))
        return network(x, t, y=y)

    options = {
        "diffusion": diffusion,
        "guidance": ClassifierFreeGuidance(scale=3.0),
        "generators": [torch.Generator().manual_seed(7)] if eta else None,
    }
    noise = case_input("ddim_v", "noise", inputs["noise"])
    return noise, lambda **more: running(counted, conditions, **options, **more), calls


@pytest.mark.parametrize(
    "options",
    [
        {"type": "DDIM", "num_steps": 10},
        {"type": "DDIM", "num_steps": 10, "eta": 1.0},
        {"type": "DPMSolver++", "num_steps": 10},
        {"type": "UniPC", "num_steps": 10},
    ],
    ids=lambda options: f"{options['type']}-{options.get('eta', 0)}",
)
def test_both_results_are_those_of_two_runs_to_the_bit(options):
    sampler, eta = SAMPLERS.build(options), options.get("eta", 0.0)
    noise, run_of, calls = fork_arguments(eta=eta)
    plain, refined = sampler.both(noise, run_of(refiner=MeanOverViews()))
    assert len(calls) == sampler.num_calls(refiner_steps={4, 6, 8}, both=True) == 10 + 5  # steps 0 to 4 are shared
    assert not torch.equal(plain, refined)
    for result, refiner in ((plain, None), (refined, MeanOverViews())):
        noise, run_of, _ = fork_arguments(eta=eta)
        assert torch.equal(sampler(noise, run_of(refiner=refiner)), result)


def test_guidance_before_the_reconstruction_refines_once():
    class Once(MeanOverViews):
        after_guidance = True

    inputs, _, diffusion = build_case("ddim_eps")
    each, once = MeanOverViews(), Once()
    # this refiner is linear, so the order does not change the result
    torch.testing.assert_close(run("ddim_eps", refiner=each), run("ddim_eps", refiner=once), atol=1e-4, rtol=0)
    assert (each.seen, once.seen) == ([20, 20, 30, 30, 40, 40], [20, 30, 40])


def test_the_inner_part_of_the_network_runs_at_every_nth_step():
    fresh = []

    def network(x, t, y, deep=None):
        fresh.append(deep.value is None)
        deep.value = x if deep.value is None else deep.value
        return torch.zeros_like(x)

    run = Denoising(
        network=network,
        conditions=Conditions({"y": torch.ones(1)}, {"y": torch.zeros(1)}),
        diffusion=DIFFUSION.build(V_DIFFUSION),
        guidance=ClassifierFreeGuidance(scale=3.0, between=(0.0, 0.6)),
    )
    SAMPLERS.build({"type": "DDIM", "num_steps": 10, "reuse_steps": 4})(torch.randn(1, 4, 3, 4, 4), run)
    # guidance ends after 6 of 10 steps: what was kept for two branches is of no use for one
    assert [step for step, new in enumerate(fresh) if new] == [0, 4, 6, 8]
    with pytest.raises(ConfigError, match=r"sampler.reuse_steps must be at least 1, got 0"):
        SAMPLERS.build({"type": "DDIM", "reuse_steps": 0})


def test_another_scheduler_is_one_function_and_one_name(monkeypatch):
    """As README says; taken out again, because registries are for a whole process."""
    monkeypatch.setitem(SOLVERS, "deis", None)
    monkeypatch.setattr(SAMPLERS, "_entries", dict(SAMPLERS._entries))

    @solver_named("deis")
    def deis(**options):
        from diffusers import DEISMultistepScheduler

        return DEISMultistepScheduler(solver_order=2, **options)

    SAMPLERS.register(name="DEIS", solver="deis", spacing="trailing", num_steps=20)(Sampler)
    other = SAMPLERS.build({"type": "DEIS", "num_steps": 4})
    scheduler = other.scheduler(DIFFUSION.build({"type": "DiffusionDDIM"}))
    assert type(scheduler).__name__ == "DEISMultistepScheduler"
    assert len(scheduler.timesteps) == 4

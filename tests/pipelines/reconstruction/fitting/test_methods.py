"""Every method fits a sphere, names a wrong view, and continues from its state bit for bit."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import pipelines  # noqa: F401 - registers
from datasets.views.posed_views import PosedViews
from models.gaussians.scene import rotation_formula
from pipelines.reconstruction.fitting import loop, rays
from pipelines.reconstruction.fitting.gaussians import shared, turned_to
from pipelines.reconstruction.fitting.hull import carve
from pipelines.reconstruction.fitting.loop import FittedObject, fit_object
from pipelines.reconstruction.fitting.rays import distortion, visible
from tests.tiny_views import sphere_views
from utils.cameras import cameras_at
from utils.errors import DataError
from utils.images import psnr_db
from utils.registry import FITS

RADIUS = 0.5
SMALL = {"hull_grid": 24, "structural_from": 0.7}
FIELD = {"rays_per_step": 512, "samples_per_ray": 12, "resolutions": [8, 24], "channels": 4, "hidden": 32}
OPTIONS = {
    "gs": {"num_gaussians": 250, "num_steps": 50, "relocate_every": 10},
    "nerf": {**FIELD, "num_steps": 80},
    "neus": {**FIELD, "distance_resolutions": [8, 24], "num_steps": 60},
}
DEPTH_ERROR = {"gs": 0.15, "nerf": 0.08, "neus": 0.04}  # half-transparent Gaussians show what is behind them
LEAST_PSNR = {"gs": 26.0, "nerf": 27.0, "neus": 27.0}


def views(**changes) -> PosedViews:
    return sphere_views(num_views=8, size=32, radius=RADIUS, **changes)


def unseen() -> PosedViews:
    angles = torch.tensor([20.0, 110.0, 250.0])
    cameras = cameras_at(angles, torch.tensor([5.0, 25.0, 15.0]), torch.full((3,), 2.0))
    return sphere_views(num_views=3, size=32, radius=RADIUS, c2w_V44=cameras)


def section(method: str, **changes):
    return FITS.section({"type": method, **SMALL, **OPTIONS[method], **changes})


@cache
def fitted(method: str) -> FittedObject:
    return fit_object(section(method), views(), seed=0)


def psnr(result: FittedObject, true: PosedViews) -> float:
    drawn = result.model.render(true.c2w_V44, true.K_V33, size=true.size, background=1.0)
    return float(psnr_db((drawn.colors_BV3HW[0] - true.over(1.0)).square().mean()))


@pytest.mark.parametrize("method", OPTIONS)
def test_unseen_views_of_a_sphere_are_right(method):
    result = fitted(method)
    assert psnr(result, unseen()) > LEAST_PSNR[method]
    assert float(result.psnr_V.min()) > LEAST_PSNR[method] - 2
    assert result.disagreeing == []
    assert [view["view"] for view in result.record()["views"]] == list(views().names)


@pytest.mark.gpu
@pytest.mark.parametrize("method", OPTIONS)
def test_a_fit_on_a_gpu_is_as_good(method):
    """There, a step computes samples outside the hull too, and Adam is fused."""
    result = fit_object(section(method), views().to("cuda"), seed=0)
    assert psnr(result, unseen().to("cuda")) > LEAST_PSNR[method]


@pytest.mark.parametrize("method", OPTIONS)
def test_depth_and_opacity_are_those_of_the_sphere(method):
    camera = cameras_at(torch.tensor([37.0]), torch.tensor([15.0]), torch.tensor([2.0]))
    drawn = fitted(method).model.render(camera, views().K_V33[:1], size=(32, 32), background=0.0)
    assert float(drawn.alphas_BV1HW[0, 0, 0, 16, 16]) > 0.9
    assert float(drawn.depths_BV1HW[0, 0, 0, 16, 16]) == pytest.approx(2 - RADIUS, abs=DEPTH_ERROR[method])
    assert float(drawn.alphas_BV1HW[0, 0, 0, 1, 1]) < 0.01


def test_the_surface_field_is_a_signed_distance():
    model = fitted("neus").model
    volume = model.volume(grid=24)
    inside = volume.values_XYZ < 0
    assert inside.sum() * volume.voxel**3 == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.1)
    distance, *slope = model.distances_and_normals()[0]
    near = distance.abs() < 2
    assert float(torch.stack(slope).norm(dim=0)[near].mean().detach()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_fit_continues_bit_for_bit(method, tmp_path, monkeypatch):
    few = section(method, num_steps=8, **({"relocate_every": 2} if method == "gs" else {}))
    whole = fit_object(few, views(), seed=3)
    state = tmp_path / "state.safetensors"
    step = loop._step

    def stop_after_five(run, given, *, step: int, of=step):
        if step == 5:
            raise KeyboardInterrupt
        return of(run, given, step=step)

    monkeypatch.setattr(loop, "_step", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        fit_object(few, views(), seed=3, state=state, save_every_s=0.0)
    monkeypatch.setattr(loop, "_step", step)
    again = fit_object(few, views(), seed=3, state=state)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert torch.equal(whole.weight_V, again.weight_V)


def test_a_state_of_another_fit_is_not_used(tmp_path, caplog):
    state = tmp_path / "state.safetensors"
    few = section("gs", num_steps=2)
    fit_object(few, views(), seed=0, state=state, save_every_s=0.0)
    one = fit_object(few, views(), seed=1, state=state)
    assert "belongs to other views or options" in caplog.text
    state.write_bytes(b"no state")
    two = fit_object(few, views(), seed=1, state=state)
    assert "cannot be read" in caplog.text
    assert torch.equal(one.model.values["means"], two.model.values["means"])


def damaged(kind: str) -> PosedViews:
    good = sphere_views(num_views=12, size=32, radius=RADIUS)
    colors, masks = good.colors_V3HW.clone(), good.masks_V1HW.clone()
    for view in (3, 9):
        if kind == "shifted":
            colors[view], masks[view] = colors[view].roll(6, dims=-1), masks[view].roll(6, dims=-1)
        else:
            colors[view] = 0.9 - 0.8 * colors[view].flip(0)
    return replace(good, colors_V3HW=colors, masks_V1HW=masks)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("shifted", "gs"),
        pytest.param("recoloured", "neus", marks=pytest.mark.slow),
        pytest.param("shifted", "nerf", marks=pytest.mark.slow),
    ],
)
def test_wrong_views_are_named_and_do_less_harm(kind, method):
    robust = fit_object(section(method), damaged(kind), seed=0)
    assert robust.disagreeing == [3, 9]
    plain = {"charbonnier": 0.0, "affine_color": False, "reweight_at": [], "hull_tolerance": 0.0}
    trusting = fit_object(section(method, **plain), damaged(kind), seed=0)
    assert psnr(robust, unseen()) > psnr(trusting, unseen()) + 1.5


def test_colours_may_depend_on_the_direction_of_view():
    """The sphere is brighter for cameras on the side of +x: degree 1 finds that, along x alone."""
    few = {"affine_color": False, "reweight_at": [], "num_steps": 25, "num_gaussians": 150, "relocate_every": 0}
    true = sphere_views(num_views=6, size=24, radius=RADIUS)
    bright = 0.5 + 0.5 * true.c2w_V44[:, 0, 3] / 2
    shaded = replace(true, colors_V3HW=true.colors_V3HW * bright[:, None, None, None])
    assert fitted("gs").model.gaussians().harmonics_BNK3 is None
    found = fit_object(section("gs", sh_degree=1, **few), shaded, seed=0).model.gaussians()
    # all cameras have one height, so that along z nothing tells the direction from the constant colour
    along_y, _, along_x = found.harmonics_BNK3[0].mean(dim=(0, 2)).tolist()
    assert along_x > max(0.002, 2 * abs(along_y))


@pytest.mark.parametrize("method", ["gs", "nerf"])
def test_views_without_weight_are_not_drawn(method):
    model = section(method).build(views=views(), hull=fitted(method).model.hull)
    model.trust(torch.tensor([1.0, 0, 1, 0, 0.5, 0, 0, 0]))
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([model.draw(0, generator).view_R for _ in range(20)])
    assert seen.unique().tolist() == [0, 2, 4]


def test_values_that_are_not_finite_end_the_fit():
    wrong = views()
    wrong = replace(wrong, colors_V3HW=wrong.colors_V3HW.clone().fill_(torch.nan))
    with pytest.raises(DataError, match="not finite"):
        fit_object(section("nerf", num_steps=30), wrong, seed=0)


def test_copies_of_a_gaussian_render_like_it():
    opacity, copies = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([1, 2, 5])
    each, shrink = shared(opacity, copies)
    assert torch.allclose(1 - (1 - each) ** copies, opacity)
    assert float(shrink[0]) == pytest.approx(1)
    assert bool((shrink[1:] < 1).all())


def test_flat_gaussians_lie_on_the_surface():
    normals = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    normals = torch.cat([normals, torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])])
    turned = rotation_formula(turned_to(normals)) @ torch.tensor([0.0, 0.0, 1.0])
    assert torch.allclose(turned, normals, atol=1e-5)


@pytest.mark.parametrize("method", ["nerf", "neus"])
def test_a_step_is_the_same_with_samples_outside_the_hull(method, monkeypatch):
    """A GPU computes them too, instead of choosing the others."""
    found = []
    options = section(method, **({"eikonal_penalty": 0.0} if method == "neus" else {}))  # a mean over the samples
    for everything in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = options.build(views=views(), hull=carve(views(), grid=24))
        monkeypatch.setattr(type(model), "shades_all", lambda self, points, everything=everything: everything)
        generator = torch.Generator().manual_seed(1)
        # the structural term looks at patches, in which rays pass the object
        pixels = model.draw(model.config.num_steps - 1, generator)
        shown = model.predict(pixels, 1, generator)
        (shown.colors_R3.square().sum() + shown.alphas_R1.sum() + shown.penalty).backward()
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        found.append([shown.colors_R3, shown.alphas_R1, *gradients])
    assert float((found[0][1] == 0).float().mean()) > 0.05  # some rays of the patches see nothing
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_weights_of_samples_are_what_passes_times_what_stops():
    alphas = torch.tensor([[0.5, 0.25, 1.0, 0.3], [0.0, 0.0, 0.2, 0.0]], requires_grad=True)
    weights = visible(alphas)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.125, 0.375, 0.0], [0.0, 0.0, 0.2, 0.0]]))
    weights[1].sum().backward()
    torch.testing.assert_close(alphas.grad[1], torch.tensor([0.8, 0.8, 1.0, 0.8]))


def test_renders_do_not_depend_on_the_size_of_chunks(monkeypatch):
    result, c2w_V44 = fitted("nerf"), unseen().c2w_V44
    whole = result.model.render(c2w_V44, views().K_V33[:1], size=(32, 32), background=0.5)
    monkeypatch.setitem(rays.RENDER_RAYS, "cpu", 700)
    parts = result.model.render(c2w_V44, views().K_V33[:1], size=(32, 32), background=0.5)
    for name in ("colors_BV3HW", "alphas_BV1HW", "depths_BV1HW"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))
    assert float(whole.colors_BV3HW[0, :, :, 0, 0].std()) == 0  # a corner that no ray of the object meets
    assert float(whole.colors_BV3HW[0, 0, 0, 0, 0]) == 0.5


def test_distortion_is_zero_for_one_thin_sample():
    edges = torch.tensor([[0.0, 0.1, 0.2, 0.3]])
    assert float(distortion(torch.tensor([[0.0, 1.0, 0.0]]), edges)) == pytest.approx(0.1 / 3)
    both = float(distortion(torch.tensor([[0.5, 0.0, 0.5]]), edges))
    assert both == pytest.approx(0.5 * 0.2 + 0.5 * 0.1 / 3)

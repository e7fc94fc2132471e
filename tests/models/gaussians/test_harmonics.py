"""View-dependent colours: the functions are orthonormal, turn with the object, and reach every picture."""

import dataclasses
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from models.gaussians.harmonics import NUM_COEFFICIENTS, SH_C0, basis, turned, view_colors
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from tests.models.gaussians.test_splatting import one_ball, random_gaussians
from utils.cameras import intrinsics, orbit_cameras, sphere_directions
from utils.errors import DataError

SIZE = (24, 24)
K = intrinsics(39.6, 24)


def colored(num: int, degree: int, *, size: float = 0.3) -> Gaussians:
    generator = torch.Generator().manual_seed(1)
    rest = size * (torch.rand(1, num, NUM_COEFFICIENTS[degree], 3, generator=generator) - 0.5)
    return dataclasses.replace(random_gaussians(num, scale=0.1), harmonics_BNK3=rest)


def drawn(gaussians: Gaussians, c2w_V44, **options):
    return render(gaussians, c2w_V44[None], K, size=SIZE, background=0.5, **{"backend": "torch"} | options).colors_BV3HW


def test_the_functions_are_orthonormal():
    directions = sphere_directions(20000)
    all_functions = torch.cat([torch.full((20000, 1), SH_C0), basis(directions, num=15)], dim=1)
    products = 4 * math.pi / 20000 * all_functions.T @ all_functions
    torch.testing.assert_close(products, torch.eye(16, dtype=torch.float64), atol=1e-3, rtol=0)


def test_colours_of_degree_1_are_those_of_the_formula():
    """A camera on +x looks along -x, so the function of order 1 is +0.4886 there; on +y that of order -1 is."""
    c2w = orbit_cameras(num_views=4, elevation_deg=0.0, radius=2.0)
    rest = torch.zeros(1, 1, 3, 3)
    rest[0, 0, 0, 0], rest[0, 0, 2, 1] = 0.5, 1.0  # order -1 is red, order 1 green
    ball = one_ball(0.1, 0.9, harmonics_BNK3=rest, colors_BN3=torch.full((1, 1, 3), 0.3))
    shown = view_colors(ball.colors_BN3, ball.harmonics_BNK3, ball.means_BN3, c2w[None])[0, :, 0]
    step = 0.4886025
    expected = torch.tensor(
        [[0.3, 0.3 + step, 0.3], [0.3 + step / 2, 0.3, 0.3], [0.3, 0.0, 0.3], [0.3 - step / 2, 0.3, 0.3]]
    )
    torch.testing.assert_close(shown, expected, atol=1e-6, rtol=0)
    flat = dataclasses.replace(ball, harmonics_BNK3=None)
    for view in range(4):
        alone = dataclasses.replace(flat, colors_BN3=expected[None, None, view])
        torch.testing.assert_close(drawn(ball, c2w)[0, view], drawn(alone, c2w[view : view + 1])[0, 0])


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_an_object_that_turns_with_its_cameras_looks_the_same(degree):
    scene, c2w = colored(60, degree), orbit_cameras(num_views=3, elevation_deg=20.0, radius=2.0)
    move = torch.eye(4)
    move[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix())
    move[:3, 3] = torch.tensor([0.1, 0.2, -0.3])
    torch.testing.assert_close(drawn(scene.moved(move), move @ c2w), drawn(scene, c2w), atol=2e-4, rtol=0)
    assert turned(scene.harmonics_BNK3, torch.eye(3)).allclose(scene.harmonics_BNK3, atol=1e-6)


def test_scenes_of_a_batch_keep_their_colours():
    one, two = colored(40, 1), colored(40, 1, size=-0.5)
    both = Gaussians(**{name: torch.cat([values, two.tensors()[name]]) for name, values in one.tensors().items()})
    c2w = orbit_cameras(num_views=2, elevation_deg=10.0, radius=2.0)
    found = render(both, torch.stack([c2w, c2w]), K, size=SIZE, background=0.5, backend="torch").colors_BV3HW
    torch.testing.assert_close(found[1], drawn(two, c2w)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(both.scene(1).harmonics_BNK3, two.harmonics_BNK3)
    assert both.only(torch.arange(7)).harmonics_BNK3.shape == (2, 7, 3, 3)
    assert (both.degree, one_ball(0.1, 0.9).degree) == (1, 0)


def test_coefficients_have_gradients():
    scene = colored(30, 1)
    rest = scene.harmonics_BNK3.double().requires_grad_()
    double = Gaussians(**{name: value.double() for name, value in scene.tensors().items()} | {"harmonics_BNK3": rest})
    c2w = orbit_cameras(num_views=1, elevation_deg=10.0, radius=2.0).double()
    (found,) = torch.autograd.grad(drawn(double, c2w).square().sum(), rest)
    step = torch.zeros_like(rest)
    step[0, 5, 2, 1] = 1e-4
    ends = [
        float(drawn(dataclasses.replace(double, harmonics_BNK3=rest + sign * step), c2w).square().sum().detach())
        for sign in (1, -1)
    ]
    assert float(found[0, 5, 2, 1]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-8)


def test_wrong_shapes_and_values_are_refused():
    ball = one_ball(0.1, 0.9)
    with pytest.raises(ValueError, match=r"harmonics_BNK3 has shape \(1, 1, 4, 3\)"):
        dataclasses.replace(ball, harmonics_BNK3=torch.zeros(1, 1, 4, 3))
    with pytest.raises(DataError, match="harmonics are not finite"):
        dataclasses.replace(ball, harmonics_BNK3=torch.full((1, 1, 3, 3), torch.nan)).check_values(name="a")


@pytest.mark.gpu
def test_gsplat_shows_the_same_colours():
    pytest.importorskip("gsplat")
    scene, c2w = colored(200, 3).to("cuda"), orbit_cameras(num_views=3, elevation_deg=20.0, radius=2.0).cuda()
    # alpha is capped differently: see models.gaussians.rendering
    torch.testing.assert_close(drawn(scene, c2w, backend="gsplat"), drawn(scene, c2w), atol=0.02, rtol=0)

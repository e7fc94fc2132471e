"""gswarp: what it is given, read as its kernels read it; and its pictures and gradients on a GPU."""

import importlib.util
import sys
import types
from dataclasses import replace

import pytest
import torch

from models.gaussians import warp_rasterizer
from models.gaussians.rendering import pick_rasterizer, render
from models.gaussians.scene import Gaussians
from models.gaussians.splatting import LOW_PASS, MIN_ALPHA, NEAR
from tests.models.gaussians.test_rasterizers import NAMES, ORBIT_V44, SCENES, join
from tests.models.gaussians.test_splatting import random_gaussians
from utils.cameras import intrinsics, orbit_cameras
from utils.errors import ConfigError

CAMERAS_BV44 = torch.stack([ORBIT_V44, orbit_cameras(num_views=3, elevation_deg=-20.0, radius=1.2)])


class Rasterizer:
    """All Gaussians at all pixels, by the formulas of gswarp 1.1 (its file preprocess_kernels.py)."""

    def __init__(self, settings):
        self.settings = settings

    def __call__(self, *, means3D, means2D, opacities, colors_precomp, cov3D_precomp):
        given, height, width = self.settings, self.settings.image_height, self.settings.image_width
        view, proj = given.viewmatrix.flatten(), given.projmatrix.flatten()
        x, y, z = ((view[[k, 4 + k, 8 + k]] * means3D).sum(-1) + view[12 + k] for k in range(3))
        hom_x, hom_y, hom_w = ((proj[[k, 4 + k, 8 + k]] * means3D).sum(-1) + proj[12 + k] for k in (0, 1, 3))
        column = ((hom_x / (hom_w + 1e-7) + 1) * width - 1) / 2
        row = ((hom_y / (hom_w + 1e-7) + 1) * height - 1) / 2
        focal_x, focal_y = width / (2 * given.tanfovx), height / (2 * given.tanfovy)
        x, y = ((x / z).clamp(-1.3 * given.tanfovx, 1.3 * given.tanfovx) * z,
                (y / z).clamp(-1.3 * given.tanfovy, 1.3 * given.tanfovy) * z)  # fmt: skip
        zero = torch.zeros_like(z)
        jacobian = torch.stack(
            [focal_x / z, zero, -focal_x * x / z**2, zero, focal_y / z, -focal_y * y / z**2], -1
        ).view(-1, 2, 3)
        affine = jacobian @ given.viewmatrix[:3, :3].T
        full = cov3D_precomp[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)
        spread = affine @ full @ affine.mT + LOW_PASS * torch.eye(2)
        columns, rows = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
        away = torch.stack([columns.flatten() - column[:, None], rows.flatten() - row[:, None]], dim=-1)
        power = -0.5 * (away * torch.linalg.solve(spread, away.mT).mT).sum(-1)
        alpha = (opacities * power.exp()).clamp_max(0.99)
        alpha = alpha * (alpha >= MIN_ALPHA) * (z > NEAR)[:, None]
        order = z.argsort()
        alpha, colors, depth = alpha[order], colors_precomp[order], z[order]
        after = (1 - alpha).cumprod(0)
        weight = alpha * after / (1 - alpha) * (after >= 1e-4)
        image = torch.cat([colors.T @ weight, (depth[:, None] * weight).sum(0)[None], weight.sum(0)[None]])
        color, depth, alpha = image.view(5, height, width).split([3, 1, 1])
        return color + (1 - alpha) * given.bg[:, None, None], None, types.SimpleNamespace(depth=depth, alpha=alpha)


@pytest.fixture
def gswarp(monkeypatch):
    module = types.SimpleNamespace(GaussianRasterizationSettings=types.SimpleNamespace, GaussianRasterizer=Rasterizer)
    monkeypatch.setitem(sys.modules, "gswarp", module)
    monkeypatch.setattr("models.gaussians.rendering.pick_rasterizer", lambda name, device: name)


@pytest.mark.usefixtures("gswarp")
@pytest.mark.parametrize("harmonics", [False, True])
def test_its_inputs_describe_the_same_picture(harmonics):
    """Two scenes of three cameras, a wide picture with its own focal lengths and principal point.

    No Gaussian is so far outside that the limits of linearisation, which differ then, matter.
    """
    away_BV44 = torch.stack([orbit_cameras(num_views=3, elevation_deg=angle, radius=3.5) for angle in (15.0, -20.0)])
    scene = join(random_gaussians(60, scale=0.08), random_gaussians(60, seed=1, scale=0.08))
    if harmonics:
        scene = replace(
            scene, harmonics_BNK3=0.2 * torch.randn(2, 60, 3, 3, generator=torch.Generator().manual_seed(0))
        )
    K_V33 = torch.stack([torch.tensor([[60.0 + view, 0, 22.0], [0, 55.0, 15.5], [0, 0, 1]]) for view in range(3)])
    drawn = {
        backend: render(scene, away_BV44, K_V33, size=(32, 45), background=0.3, backend=backend)
        for backend in ("torch", "gswarp")
    }
    for part, tolerance in (("colors_BV3HW", 2e-5), ("alphas_BV1HW", 2e-5), ("depths_BV1HW", 2e-4)):
        plain, fast = (getattr(drawn[backend], part) for backend in ("torch", "gswarp"))
        assert plain.std() > 0.05
        # an alpha that rounds to the other side of 1/255 is seen by one of them only
        assert float((plain - fast).abs().quantile(0.999)) < tolerance


def test_it_is_used_by_its_name_only_and_says_what_is_missing(monkeypatch):
    with pytest.raises(ConfigError, match="rasterizer=gswarp needs a CUDA device, but device=cpu"):
        pick_rasterizer("gswarp", torch.device("cpu"))
    warp_rasterizer.lack.cache_clear()
    monkeypatch.setitem(sys.modules, "gswarp", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "warp", types.SimpleNamespace(__version__="1.8.1"))
    with pytest.raises(ConfigError, match=r"needs warp-lang 1\.10 or later, but 1\.8\.1 is installed"):
        pick_rasterizer("gswarp", torch.device("cuda"))
    warp_rasterizer.lack.cache_clear()
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(ConfigError, match=r"gswarp cannot be imported .*pip install gswarp"):
        pick_rasterizer("gswarp", torch.device("cuda"))
    warp_rasterizer.lack.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("gswarp") is None, reason="gswarp is not installed")
@pytest.mark.parametrize("name", SCENES)
def test_gswarp_agrees(name):
    """The tolerances are those of its rules, as the head of warp_rasterizer.py has them."""
    torch.manual_seed(0)
    make = SCENES[name][0]
    scene, cameras_BV44 = join(make(), make()), CAMERAS_BV44.cuda()
    target = torch.rand(2, 3, 3, 100, 100, device="cuda")
    results = {}
    for backend in ("torch", "gswarp"):
        inputs = {part: getattr(scene, part).cuda().requires_grad_() for part in NAMES}
        options = {"size": (100, 100), "background": 0.3, "backend": backend}
        drawn = render(Gaussians(**inputs), cameras_BV44, intrinsics(39.6, 100), **options)
        loss = (drawn.colors_BV3HW - target).square().sum() + drawn.alphas_BV1HW.square().sum()
        (loss + 0.1 * drawn.depths_BV1HW.square().sum()).backward()
        results[backend] = drawn, {part: value.grad for part, value in inputs.items()}
    (plain, plain_grads), (fast, fast_grads) = results["torch"], results["gswarp"]
    for part in ("colors_BV3HW", "alphas_BV1HW"):
        difference = (getattr(plain, part) - getattr(fast, part)).abs()
        print(f"{name}: {part} differs by {difference.max():.2e}, mean {difference.mean():.2e}")
        assert float(difference.mean()) < 5e-5
        assert float(difference.max()) < 0.015
    for part, gradient in plain_grads.items():
        error = float((fast_grads[part] - gradient).norm() / gradient.norm().clamp_min(1e-12))
        print(f"{name}: gradient of {part} differs by {error:.2e} of its length")
        if name not in ("nearly opaque", "rays that stop"):  # capped alphas have a gradient
            assert error < (0.03 if name == "needles" else 5e-3)

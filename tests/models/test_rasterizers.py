"""The door to the rasterisers: batches, backgrounds and precision; and gsplat against the PyTorch one on a GPU."""

import importlib.util
import sys
from dataclasses import fields, replace

import pytest
import torch

from models import rendering, splatting
from models.gaussians import Gaussians
from models.rendering import pick_rasterizer, render
from models.splatting import MIN_ALPHA
from tests.models.test_splatting import one_ball, random_gaussians
from utils.cameras import intrinsics, orbit_cameras
from utils.errors import ConfigError

K = intrinsics(39.6, 40)
ORBIT_V44 = orbit_cameras(num_views=3, elevation_deg=15.0, radius=2.0)
NAMES = [field.name for field in fields(Gaussians)]


def join(*scenes: Gaussians) -> Gaussians:
    return Gaussians(**{name: torch.cat([getattr(scene, name) for scene in scenes]) for name in NAMES})


def draw(gaussians, c2w_BV44, **options):
    return render(gaussians, c2w_BV44, K, **{"size": (40, 40), "background": 0.3, "backend": "torch"} | options)


def test_a_scene_looks_the_same_alone_and_in_a_batch():
    scenes = [random_gaussians(200, seed=seed, scale=0.1) for seed in (0, 1)]
    other_V44 = orbit_cameras(num_views=3, elevation_deg=40.0, radius=1.7)
    both = draw(join(*scenes), torch.stack([ORBIT_V44, other_V44]))
    for number, (scene, cameras_V44) in enumerate(zip(scenes, (ORBIT_V44, other_V44), strict=True)):
        alone = draw(scene, cameras_V44[None])
        torch.testing.assert_close(both.colors_BV3HW[number], alone.colors_BV3HW[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(both.depths_BV1HW[number], alone.depths_BV1HW[0], atol=1e-4, rtol=0)


def test_what_is_too_faint_changes_nothing():
    scene = random_gaussians(50, scale=0.1)
    faint = replace(random_gaussians(500, seed=1), opacities_BN1=torch.full((1, 500, 1), 0.99 * MIN_ALPHA))
    together = Gaussians(**{name: torch.cat([getattr(faint, name), getattr(scene, name)], dim=1) for name in NAMES})
    torch.testing.assert_close(
        draw(together, ORBIT_V44[None]).colors_BV3HW, draw(scene, ORBIT_V44[None]).colors_BV3HW, atol=1e-6, rtol=0
    )


def test_nothing_at_all_is_background():
    nothing = replace(one_ball(0.1, 0.5), opacities_BN1=torch.zeros(1, 1, 1).requires_grad_())
    drawn = draw(nothing, ORBIT_V44[None])
    torch.testing.assert_close(drawn.colors_BV3HW, torch.full((1, 3, 3, 40, 40), 0.3))
    assert float(drawn.depths_BV1HW.abs().max()) == 0


def test_backgrounds_of_every_view():
    background_BV3 = torch.rand(1, 3, 3)
    drawn = draw(one_ball(0.05, 0.9), ORBIT_V44[None], background=background_BV3)
    torch.testing.assert_close(drawn.colors_BV3HW[..., 0, 0], background_BV3)


def test_depth_is_measured_along_the_axis():
    drawn = draw(one_ball(0.05, 0.9), ORBIT_V44[None])
    torch.testing.assert_close(drawn.depths_BV1HW[0, :, 0, 20, 20], torch.full((3,), 2.0), atol=1e-4, rtol=0)


def test_reduced_precision_around_it_changes_nothing():
    scene = random_gaussians(100, scale=0.1)
    plain = draw(scene, ORBIT_V44[None]).colors_BV3HW
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(draw(scene, ORBIT_V44[None]).colors_BV3HW, plain, atol=0, rtol=0)


def test_cameras_must_fit():
    with pytest.raises(ValueError, match="do not fit 1 scenes"):
        draw(one_ball(0.1, 0.5), ORBIT_V44[None].repeat(2, 1, 1, 1))


def test_choice_of_the_rasterizer():
    cpu = torch.device("cpu")
    assert pick_rasterizer("auto", cpu) == "torch"
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        pick_rasterizer("gsplat", cpu)
    with pytest.raises(ConfigError, match="rasterizer=inria is unknown; valid: auto, torch, gsplat"):
        pick_rasterizer("inria", cpu)


def fake_gsplat(folder, *, version="1.5.3", files=("__init__.py",), backend="_C = None"):
    """A package of that name that cannot draw."""
    package = folder / "gsplat"
    (package / "cuda").mkdir(parents=True)
    for name in (*files, "cuda/__init__.py"):
        (package / name).write_text("")
    (package / "cuda" / "_backend.py").write_text(backend)
    info = folder / f"gsplat-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: gsplat\nVersion: {version}\n")


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """As if gsplat were looked for anew on a CUDA machine; what is in `tmp_path` comes first."""
    monkeypatch.syspath_prepend(tmp_path)
    caches = (rendering._automatic, rendering._lack_of_gsplat)
    for cache in caches:
        cache.cache_clear()
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "gsplat"}
    yield torch.device("cuda")
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        del sys.modules[name]
    sys.modules.update(hidden)
    for cache in caches:
        cache.cache_clear()


def test_an_installed_gsplat_is_taken(cuda, tmp_path):
    fake_gsplat(tmp_path, files=("__init__.py", "csrc.py"))
    assert pick_rasterizer("auto", cuda) == pick_rasterizer("gsplat", cuda) == "gsplat"


@pytest.mark.parametrize(
    ("options", "log", "refusal"),
    [
        ({}, "gsplat is not compiled", "cannot compile itself here"),
        ({"version": "1.4.0"}, "install 1.5 or later", "install 1.5 or later"),
        ({"files": ()}, "gsplat is not compiled", "cannot compile itself here"),
    ],
)
def test_a_gsplat_that_cannot_draw_is_left_alone(cuda, tmp_path, caplog, options, log, refusal):
    caplog.set_level("INFO")
    fake_gsplat(tmp_path, **options)
    assert pick_rasterizer("auto", cuda) == pick_rasterizer("auto", cuda) == "torch"
    assert caplog.text.count(log) == 1
    assert "gsplat.cuda._backend" not in sys.modules  # which would have compiled
    with pytest.raises(ConfigError, match=f"rasterizer=gsplat: .*{refusal}.*; use auto or torch"):
        pick_rasterizer("gsplat", cuda)


@pytest.mark.skipif(importlib.util.find_spec("gsplat") is not None, reason="gsplat is installed")
def test_a_missing_gsplat_is_said(cuda):
    assert pick_rasterizer("auto", cuda) == "torch"
    with pytest.raises(ConfigError, match="rasterizer=gsplat: gsplat is not installed"):
        pick_rasterizer("gsplat", cuda)


GSPLAT_MAX_ALPHA = 0.999
SCENES = {
    "random": (lambda: random_gaussians(2000, scale=0.05), 1e-4),
    "large": (lambda: random_gaussians(300, scale=0.3), 1e-4),
    "needles": (
        lambda: replace(
            random_gaussians(300), scales_BN3=torch.tensor([0.3, 1e-3, 1e-3]).expand(1, 300, 3).contiguous()
        ),
        2e-4,  # 1.1e-4 was measured on an H200
    ),
    "thinner than a pixel": (lambda: random_gaussians(500, scale=1e-4), 1e-4),
    "quaternions as they are": (
        lambda: replace(random_gaussians(500, scale=0.1), quats_BN4=0.1 * torch.randn(1, 500, 4)),
        1e-4,
    ),
    "rays that stop": (lambda: stacked(0.97), 1e-4),
    "nearly opaque": (lambda: stacked(0.9999), 1e-4),
    "faint": (lambda: replace(random_gaussians(500), opacities_BN1=2 * MIN_ALPHA * torch.rand(1, 500, 1)), 1e-4),
}


def stacked(opacity: float) -> Gaussians:
    """Twenty large balls behind each other."""
    many = random_gaussians(20, scale=0.2)
    return replace(many, opacities_BN1=torch.full((1, 20, 1), opacity))


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("gsplat") is None, reason="gsplat is not installed")
@pytest.mark.parametrize("name", SCENES)
def test_gsplat_agrees(name, monkeypatch):
    """Under gsplat's own cap of alpha; what the caps change is seen without gsplat, below."""
    monkeypatch.setattr(splatting, "MAX_ALPHA", GSPLAT_MAX_ALPHA)
    torch.manual_seed(0)
    make, tolerance = SCENES[name]
    scene = join(make(), make())
    cameras_BV44 = torch.stack([ORBIT_V44, orbit_cameras(num_views=3, elevation_deg=-20.0, radius=1.2)]).cuda()
    target = torch.rand(2, 3, 3, 100, 100, device="cuda")
    results = {}
    for backend in ("torch", "gsplat"):
        inputs = {name: getattr(scene, name).cuda().requires_grad_() for name in NAMES}
        drawn = render(
            Gaussians(**inputs),
            cameras_BV44,
            intrinsics(39.6, 100),
            size=(100, 100),
            background=0.3,
            backend=backend,
        )
        ((drawn.colors_BV3HW - target).square().sum() + drawn.alphas_BV1HW.square().sum()).backward()
        results[backend] = drawn, {name: value.grad for name, value in inputs.items()}
    (plain, plain_grads), (fast, fast_grads) = results["torch"], results["gsplat"]
    for part in ("colors_BV3HW", "alphas_BV1HW"):
        difference = (getattr(plain, part) - getattr(fast, part)).abs()
        print(f"{name}: {part} differs by {difference.max():.2e}, mean {difference.mean():.2e}")
        # An alpha that rounds to the other side of 1/255 is seen by one backend only, and so is a ray's end.
        assert float(difference.quantile(0.999)) < tolerance
        assert float(difference.max()) < max(tolerance, 1.5 * MIN_ALPHA)
    for part, gradient in plain_grads.items():
        error = float((fast_grads[part] - gradient).norm() / gradient.norm().clamp_min(1e-12))
        print(f"{name}: gradient of {part} differs by {error:.2e} of its length")
        # Measured on an H200. Of stopped rays the gradients of means, scales and rotations differ by up to 9 %, while
        # opacities and colours agree to 4e-7: not explained yet.
        assert error < {"rays that stop": 0.12, "nearly opaque": 0.12, "needles": 0.02}.get(name, 0.01)


@torch.no_grad()
@pytest.mark.parametrize(("name", "largest"), [("random", 0.02), ("nearly opaque", 0.052), ("faint", 0.0)])
def test_what_the_cap_of_gsplat_changes(name, largest, monkeypatch):
    """The worst pixels differ by what gsplat was measured to differ on an H200, and the mean hardly."""
    torch.manual_seed(0)
    scene = SCENES[name][0]()
    colors = []
    for cap in (splatting.MAX_ALPHA, GSPLAT_MAX_ALPHA):
        monkeypatch.setattr(splatting, "MAX_ALPHA", cap)
        drawn = render(scene, ORBIT_V44[None], intrinsics(39.6, 100), size=(100, 100), background=0.3)
        colors.append(drawn.colors_BV3HW)
    difference = (colors[0] - colors[1]).abs()
    assert 0.9 * largest <= float(difference.max()) <= largest
    assert float(difference.mean()) < 2e-5

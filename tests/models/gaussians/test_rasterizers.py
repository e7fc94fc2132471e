"""The door to the rasterisers: batches, backgrounds and precision; and gsplat against the PyTorch one on a GPU."""

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import _get_build_directory

from models.gaussians import rendering, splatting
from models.gaussians.rendering import pick_rasterizer, render
from models.gaussians.scene import Gaussians
from models.gaussians.splatting import MIN_ALPHA
from tests.models.gaussians.test_splatting import one_ball, random_gaussians
from utils.cameras import intrinsics, orbit_cameras
from utils.errors import ConfigError

K = intrinsics(39.6, 40)
ORBIT_V44 = orbit_cameras(num_views=3, elevation_deg=15.0, radius=2.0)
NAMES = [*one_ball(0.1, 0.5).tensors()]


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
    with pytest.raises(ConfigError, match="rasterizer=inria is unknown; valid: auto, torch, gsplat, gswarp"):
        pick_rasterizer("inria", cpu)


OTHER_TORCH = "raise ImportError('undefined symbol: abc')"
BROKEN_COMPILER = "raise RuntimeError('Error building extension\\nninja: stopped')"


def fake_gsplat(folder, *, version="1.5.3", files=("__init__.py",), backend="_C = None", csrc=None):
    """A package of that name; `csrc` is its compiled part."""
    package = folder / "gsplat"
    (package / "cuda").mkdir(parents=True)
    for name in (*files, "cuda/__init__.py"):
        (package / name).write_text("")
    if csrc is not None:
        (package / "csrc.py").write_text(csrc)
    (package / "cuda" / "_backend.py").write_text(backend)
    info = folder / f"gsplat-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: gsplat\nVersion: {version}\n")


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """As if gsplat were looked for anew on a CUDA machine, where it never compiled; `tmp_path` comes first."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
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
    fake_gsplat(tmp_path, csrc="")
    assert pick_rasterizer("auto", cuda) == pick_rasterizer("gsplat", cuda) == "gsplat"


def test_a_gsplat_that_has_compiled_itself_is_taken(cuda, tmp_path):
    fake_gsplat(tmp_path, backend="_C = object()")
    built = Path(_get_build_directory("gsplat_cuda", verbose=False))
    assert built.is_relative_to(tmp_path)
    (built / "gsplat_cuda.so").touch()
    assert pick_rasterizer("auto", cuda) == "gsplat"


def test_a_gsplat_that_another_process_compiles_now_is_left_alone(cuda, tmp_path):
    fake_gsplat(tmp_path, backend="_C = object()")
    built = Path(_get_build_directory("gsplat_cuda", verbose=False))
    (built / "gsplat_cuda.so").touch()
    (built / "lock").touch()
    assert pick_rasterizer("auto", cuda) == "torch"


@pytest.mark.parametrize(
    ("options", "log", "refusal"),
    [
        ({}, "gsplat is not compiled", "cannot compile itself here"),
        ({"version": "1.4.0"}, "install 1.5 or later", "install 1.5 or later"),
        ({"files": ()}, "gsplat is not compiled", "cannot compile itself here"),
        ({"csrc": OTHER_TORCH}, "cannot be loaded (undefined symbol: abc)", "cannot compile itself here"),
        ({"backend": BROKEN_COMPILER}, "gsplat is not compiled", r"cannot compile itself here \(Error building"),
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
        # 6e-5 was measured on an H200; 1.4e-2 for rotations of needles, because gsplat takes -C G C in float32 for the
        # derivative of a covariance from that of its inverse C: on a CPU that formula alone loses 2.1e-2.
        assert error < (0.03 if name == "needles" else 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("gsplat") is None, reason="gsplat is not installed")
def test_gradients_of_small_scenes_stay_in_their_scene():
    """Of 20 Gaussians a scene, gsplat 1.5.3 gives a part to another scene of the batch; see `rendering.WARP`."""

    def gradient(scenes, cameras_BV44):
        means = torch.cat([scene.means_BN3 for scene in scenes]).cuda().requires_grad_()
        inputs = {name: torch.cat([getattr(scene, name) for scene in scenes]).cuda() for name in NAMES}
        drawn = draw(Gaussians(**inputs | {"means_BN3": means}), cameras_BV44.cuda(), backend="gsplat")
        drawn.colors_BV3HW.square().sum().backward()
        return means.grad

    cameras_BV44 = torch.stack([ORBIT_V44, orbit_cameras(num_views=3, elevation_deg=-20.0, radius=1.2)])
    scenes = [stacked(0.9), stacked(0.5)]
    together = gradient(scenes, cameras_BV44)
    for number in (0, 1):
        alone = gradient(scenes[number : number + 1], cameras_BV44[number : number + 1])[0]
        assert float((together[number] - alone).norm() / alone.norm()) < 1e-4


def test_gsplat_is_given_a_whole_warp(monkeypatch):
    """So that the above holds, seen without gsplat; what is added is transparent and takes no gradient."""
    given = {}

    def rasterization(**values):
        given.update(values)
        image_BVHW = (values["opacities"] * values["means"].sum(-1)).sum(-1)[:, None, None, None].expand(2, 3, 40, 40)
        return image_BVHW[..., None].expand(-1, -1, -1, -1, 4), image_BVHW[..., None], {}

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=rasterization))
    scene = join(stacked(0.9), stacked(0.5))
    cameras_BV44 = ORBIT_V44.expand(2, -1, -1, -1)
    assert rendering._gsplat(scene, cameras_BV44, K, (40, 40)).shape == (2, 3, 5, 40, 40)
    assert {name: tuple(given[name].shape) for name in ("means", "covars", "opacities", "colors")} == {
        "means": (2, 32, 3), "covars": (2, 32, 3, 3), "opacities": (2, 32), "colors": (2, 32, 3)
    }  # fmt: skip
    torch.testing.assert_close(given["covars"][:, :20], scene.covariances())
    assert not any(given[name][:, 20:].any() for name in ("means", "covars", "opacities", "colors"))
    many = join(random_gaussians(40), random_gaussians(40, seed=1))
    rendering._gsplat(many, cameras_BV44, K, (40, 40))
    torch.testing.assert_close(given["means"], many.means_BN3, atol=0, rtol=0)


def dense_render(gaussians: Gaussians, c2w_V44, K_33, *, size: int, background: float):
    """All Gaussians at all pixels, by the rules written down once more, for autograd: colours and alpha."""
    focal, middle = K_33[0, 0], K_33[0, 2]
    pixel_P = (torch.arange(size, dtype=c2w_V44.dtype) + 0.5).repeat(size)
    pixels_2P = torch.stack([pixel_P, pixel_P.view(size, size).T.flatten()])
    images = []
    for c2w_44 in c2w_V44:
        turn_33 = c2w_44[:3, :3].T
        local_N3 = (gaussians.means_BN3[0] - c2w_44[:3, 3]) @ turn_33.T
        order = local_N3[:, 2].argsort()
        order = order[local_N3[order, 2] > splatting.NEAR]
        x, y, z = local_N3[order].T
        limit = (1 + splatting.VIEW_MARGIN) * middle / focal
        zero, slope = torch.zeros_like(z), torch.stack([x / z, y / z]).clamp(-limit, limit)
        jacobian_N23 = torch.stack([focal / z, zero, -focal * slope[0] / z, zero, focal / z, -focal * slope[1] / z], -1)
        affine_N23 = jacobian_N23.view(-1, 2, 3) @ turn_33
        spread_N22 = affine_N23 @ gaussians.covariances()[0, order] @ affine_N23.mT
        spread_N22 = spread_N22 + splatting.LOW_PASS * torch.eye(2, dtype=z.dtype)
        away_NP2 = (pixels_2P - (focal * torch.stack([x / z, y / z], -1) + middle)[..., None]).mT
        power_NP = -0.5 * (away_NP2 * torch.linalg.solve(spread_N22, away_NP2.mT).mT).sum(-1)
        alpha_NP = (gaussians.opacities_BN1[0, order] * power_NP.exp()).clamp_max(splatting.MAX_ALPHA)
        alpha_NP = alpha_NP * (alpha_NP >= MIN_ALPHA)
        after_NP = (1 - alpha_NP).cumprod(0)
        weight_NP = alpha_NP * after_NP / (1 - alpha_NP) * (after_NP >= splatting.MIN_TRANSMITTANCE)
        color_3P = gaussians.colors_BN3[0, order].T @ weight_NP + (1 - weight_NP.sum(0)) * background
        images.append(torch.cat([color_3P, weight_NP.sum(0)[None]]).view(4, size, size))
    return torch.stack(images)


@pytest.mark.parametrize("name", SCENES)
def test_gradients_agree_with_autograd_in_float64(name, monkeypatch):
    """In float32, under both caps of alpha, also of rays that stop and of what is nearly opaque."""
    for cap in (splatting.MAX_ALPHA, GSPLAT_MAX_ALPHA):
        monkeypatch.setattr(splatting, "MAX_ALPHA", cap)
        torch.manual_seed(0)
        scene = SCENES[name][0]().only(slice(200))
        cameras_V44 = orbit_cameras(num_views=2, elevation_deg=-20.0, radius=1.2)
        target = torch.rand(2, 4, 40, 40)
        grads = {}
        for dtype in (torch.float32, torch.float64):
            inputs = {part: getattr(scene, part).detach().to(dtype).clone().requires_grad_() for part in NAMES}
            if dtype == torch.float32:
                drawn = draw(Gaussians(**inputs), cameras_V44[None])
                images = torch.cat([drawn.colors_BV3HW[0], drawn.alphas_BV1HW[0]], dim=1)
            else:
                images = dense_render(Gaussians(**inputs), cameras_V44.double(), K.double(), size=40, background=0.3)
            (images - target.to(dtype)).square().sum().backward()
            grads[dtype] = {part: value.grad.double() for part, value in inputs.items()}
        for part, true in grads[torch.float64].items():
            error = float((grads[torch.float32][part] - true).norm() / true.norm().clamp_min(1e-12))
            # At most 4e-6 was measured, and 5e-5 of needles, whose covariances cancel.
            assert error < (2e-4 if name == "needles" else 1e-5), (part, cap)


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

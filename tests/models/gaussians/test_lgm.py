"""The Gaussian head against its recorded case and the published parameter list."""

import json

import pytest
import torch

import models  # noqa: F401
from models.gaussians.lgm import head_input
from models.gaussians.scene import Gaussians, activate, rotation_formula
from tests.reference_cases import REFERENCE, assert_matches, case_input, fill_by_recipe, load_case
from utils.cameras import head_cameras, intrinsics, opencv_to_opengl, orbit_cameras, plucker_rays, project_points
from utils.errors import ConfigError
from utils.registry import MODEL


@torch.no_grad()
def test_reference():
    spec, expected = load_case("lgm")
    head = fill_by_recipe(MODEL.build({"type": spec["kind"], **spec["config"]}))
    packed = head(case_input("lgm", "views", spec["inputs"]["views"])).packed_BN14
    assert_matches(packed[:, torch.from_numpy(expected["rows"])], expected["gaussians"])


def test_published_names_and_shapes():
    published = json.loads((REFERENCE / "checkpoints" / "lgm_big.json").read_text())
    with torch.device("meta"):
        head = MODEL.build({"type": "LGM"})
    assert {key: list(value.shape) for key, value in head.state_dict().items()} == published


def test_rotation_rules_normalise_different_axes():
    raw = torch.randn(1, 50, 14)
    per_gaussian = activate(raw, rotation="per_gaussian").quats_BN4
    over_gaussians = activate(raw, rotation="over_gaussians").quats_BN4
    torch.testing.assert_close(per_gaussian.norm(dim=-1), torch.ones(1, 50))
    torch.testing.assert_close(over_gaussians.norm(dim=1), torch.ones(1, 4))


def test_rotation_formula_of_a_quarter_turn():
    half = 0.5**0.5
    matrix = rotation_formula(torch.tensor([half, 0.0, 0.0, half]))  # 90 degrees around z
    torch.testing.assert_close(matrix @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_refuses():
    with pytest.raises(ConfigError, match="rotation=both"):
        MODEL.build({"type": "LGM", "rotation": "both"})
    with pytest.raises(ConfigError, match="splat_size"):
        MODEL.build({"type": "LGM", "splat_size": 64})
    with pytest.raises(ValueError, match="scales_BN3"):
        Gaussians(
            means_BN3=torch.zeros(1, 2, 3),
            opacities_BN1=torch.zeros(1, 2, 1),
            scales_BN3=torch.zeros(1, 2, 4),
            quats_BN4=torch.zeros(1, 2, 4),
            colors_BN3=torch.zeros(1, 2, 3),
        )


def test_anchored_positions_lie_on_the_rays_of_their_pixels():
    c2w_V44 = orbit_cameras(num_views=4, elevation_deg=20.0, radius=2.0)
    poses_V44 = head_cameras(c2w_V44, fov_deg=39.6).poses_V44
    rays_N6 = plucker_rays(poses_V44, fov_deg=39.6, size=8).permute(0, 2, 3, 1).flatten(0, 2)
    pixels_1N9 = torch.cat([torch.rand(len(rays_N6), 3), rays_N6], dim=-1)[None]
    raw_1N14 = torch.zeros(1, len(rays_N6), 14)
    raw_1N14[..., 0] = torch.linspace(-0.3, 0.3, len(rays_N6))
    means_VN3 = activate(raw_1N14, rotation="per_gaussian", pixels_BN9=pixels_1N9).means_BN3[0].unflatten(0, (4, 64))
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    for means_N3, pose_44 in zip(means_VN3, opencv_to_opengl(poses_V44), strict=True):
        pixels_N2 = project_points(means_N3, pose_44, intrinsics(39.6, 8))
        torch.testing.assert_close(pixels_N2, torch.stack([x, y], dim=-1).flatten(0, 1), atol=1e-4, rtol=0)


def test_an_anchored_head_begins_with_small_gaussians_of_the_pixels_colours():
    options = {"type": "LGM", "input_size": 16, "splat_size": 8, "down_channels": [32, 32], "up_channels": [32]}
    options |= {"down_attention": [False, True], "up_attention": [True], "rotation": "per_gaussian"}
    torch.manual_seed(0)
    head = MODEL.build({**options, "anchor": "pixels"})
    poses_V44 = head_cameras(orbit_cameras(num_views=4, elevation_deg=20.0, radius=2.0), fov_deg=39.6).poses_V44
    views_1VCHW = torch.rand(1, 4, 3, 1, 1).expand(-1, -1, -1, 16, 16)
    with torch.no_grad():
        gaussians = head(head_input(views_1VCHW, poses_V44[None], fov_deg=39.6))
    assert gaussians.means_BN3.shape == (1, 256, 3)
    assert 0.005 < float(gaussians.scales_BN3.mean()) < 0.03
    assert 0.2 < float(gaussians.means_BN3.std()) < 0.7
    error = gaussians.colors_BN3.unflatten(1, (4, 64)) - views_1VCHW[..., 0, 0][:, :, None]
    assert float(error.abs().mean()) < 0.25

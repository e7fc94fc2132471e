"""The dense head: where its Gaussians lie, that the order of views does not matter, and what it refuses."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

import models  # noqa: F401 - registers
from models.gaussians.dense import FIRST_OPACITY, RAW_CHANNELS, DenseHead, cell_means, placed
from models.gaussians.scene import quaternions_of, rotation_formula
from utils.cameras import BALL_RADIUS, opencv_to_opengl, orbit_cameras, plucker_rays
from utils.errors import ConfigError
from utils.registry import MODEL

FOV, SIZE = 40.0, 32
TINY = {"patch": 8, "width": 16, "head_dim": 8, "num_layers": 2, "fine_views": 2}


def head(*, trained: bool = True, **changes) -> DenseHead:
    """A tiny head; with `trained` no weight is zero."""
    torch.manual_seed(0)
    network = MODEL.build({"type": "DenseHead", **TINY, **changes})
    if trained:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def poses(num_views: int) -> torch.Tensor:
    return opencv_to_opengl(orbit_cameras(num_views=num_views, elevation_deg=20, radius=2.0))[None]


def views(num_views: int, *, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, num_views, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("num_views", "cell"), [(2, 2), (3, 4)])
def test_an_untrained_head_puts_the_pixels_on_planes_through_the_middle(num_views, cell):
    shown, cameras = views(num_views), poses(num_views)
    found = head(trained=False)(shown, cameras, fov_deg=FOV)
    per_view = (SIZE // cell) ** 2
    assert found.means_BN3.shape == (1, num_views * per_view, 3)
    # on the ray of the cell, at its point closest to the origin
    rays_V6HW = plucker_rays(cameras[0], fov_deg=FOV, size=SIZE // cell)
    moment_N3, direction_N3 = rays_V6HW.flatten(2).transpose(1, 2).reshape(-1, 6).split(3, dim=-1)
    torch.testing.assert_close(
        found.means_BN3[0], torch.linalg.cross(direction_N3, moment_N3, dim=-1), atol=2e-3, rtol=0
    )
    colors = torch.nn.functional.avg_pool2d(shown[0], cell).flatten(2).transpose(1, 2).reshape(-1, 3)
    torch.testing.assert_close(found.colors_BN3[0], colors.clamp(0.018, 0.982), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.opacities_BN1, torch.full_like(found.opacities_BN1, FIRST_OPACITY).sigmoid())


def test_depths_end_at_the_ball():
    cameras = poses(2)
    rays_F6HW = plucker_rays(cameras[0], fov_deg=FOV, size=SIZE)
    cells_BN9 = cell_means(torch.full((2, 3, SIZE, SIZE), 0.5), rays_F6HW, 4, 1)
    raw_BNC = torch.zeros(1, cells_BN9.shape[1], RAW_CHANNELS)
    distances = []
    for depth in (-20.0, 20.0):
        raw_BNC[..., 0] = depth
        found = placed(raw_BNC, cells_BN9, cameras, fov_deg=FOV, size=SIZE)
        distances.append((found.means_BN3 - cameras[:, :1, :3, 3]).norm(dim=-1)[0, : 8 * 8])
        closest = torch.linalg.cross(cells_BN9[..., 6:], cells_BN9[..., 3:6], dim=-1).norm(dim=-1)
        hits = closest < 0.9 * BALL_RADIUS
        assert 20 < int(hits.sum()) < hits.numel()
        radius = found.means_BN3.norm(dim=-1)[hits]
        torch.testing.assert_close(radius, torch.full_like(radius, BALL_RADIUS), atol=5e-3, rtol=0)
    assert bool((distances[0] < distances[1]).all())


def test_a_gaussian_covers_its_cell_from_its_own_camera_and_turns_with_it():
    raw_BNC = torch.zeros(1, 2 * 64, RAW_CHANNELS)
    raw_BNC[..., 4], raw_BNC[..., 7:11] = 1.0, torch.tensor([0.2, 0.3, -0.1, 0.4])
    cameras = poses(2)
    rays_F6HW = plucker_rays(cameras[0], fov_deg=FOV, size=SIZE)
    cells_BN9 = cell_means(torch.full((2, 3, SIZE, SIZE), 0.5), rays_F6HW, 4, 1)
    found = placed(raw_BNC, cells_BN9, cameras, fov_deg=FOV, size=SIZE)
    in_camera = [
        pose[:3, :3].T @ covariances @ pose[:3, :3]
        for pose, covariances in zip(cameras[0], found.covariances()[0].unflatten(0, (2, 64)), strict=True)
    ]
    torch.testing.assert_close(in_camera[0], in_camera[1], atol=1e-6, rtol=1e-4)
    pixel = 2 * math.tan(math.radians(FOV) / 2) * 2.0 / SIZE  # world units at the origin
    assert 0.3 * 4 * pixel < float(found.scales_BN3[0, 27, 1]) < 0.5 * 4 * pixel
    longer_BN = found.scales_BN3[..., 0] / found.scales_BN3[..., 1]
    torch.testing.assert_close(longer_BN, torch.full((1, 128), 2.59), rtol=0.01, atol=0)  # exp(2.5 tanh(1 / 2.5))


def test_the_order_of_the_views_does_not_matter():
    network, shown, cameras = head(), views(4), poses(4)
    order = torch.tensor([2, 0, 3, 1])
    found = network(shown, cameras, fov_deg=FOV).packed_BN14.unflatten(1, (4, -1))
    permuted = network(shown[:, order], cameras[:, order], fov_deg=FOV).packed_BN14.unflatten(1, (4, -1))
    torch.testing.assert_close(permuted, found[:, order], atol=1e-4, rtol=1e-4)


def test_every_view_sees_the_others_and_samples_of_a_batch_are_independent():
    network, shown, cameras = head(), views(4, batch=2), poses(4).expand(2, -1, -1, -1)
    found = network(shown, cameras, fov_deg=FOV).packed_BN14.unflatten(1, (4, -1))
    changed = shown.clone()
    changed[0, 3] = 1 - changed[0, 3]
    other = network(changed, cameras, fov_deg=FOV).packed_BN14.unflatten(1, (4, -1))
    assert bool(((found - other)[0].abs().amax(dim=(1, 2)) > 1e-4).all())
    torch.testing.assert_close(other[1], found[1], atol=1e-5, rtol=1e-5)
    alone = network(shown[1:], cameras[1:], fov_deg=FOV).packed_BN14.unflatten(1, (4, -1))
    torch.testing.assert_close(alone[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_views", [2, 3])
def test_every_weight_is_used(num_views):
    network = head()
    network(views(num_views), poses(num_views), fov_deg=FOV).packed_BN14.sin().sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    other = "out_coarse" if num_views == 2 else "out_fine"
    assert idle == {f"{other}.weight", f"{other}.bias"}
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in network.parameters() if parameter.grad is not None)


def test_places_stay_in_float32_under_autocast():
    network, shown, cameras = head(trained=False), views(3), poses(3)
    exact = network(shown, cameras, fov_deg=FOV)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(shown, cameras, fov_deg=FOV)
    assert found.means_BN3.dtype == torch.float32
    torch.testing.assert_close(found.means_BN3, exact.means_BN3, atol=1e-5, rtol=0)


def test_rotations_become_quaternions():
    turns = torch.from_numpy(Rotation.random(50, random_state=0).as_matrix())
    half_turns = torch.stack([torch.diag(torch.tensor(v)) for v in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])])
    rotations = torch.cat([turns, half_turns.double(), torch.eye(3).double()[None]])
    quats = quaternions_of(rotations)
    torch.testing.assert_close(quats.norm(dim=-1), torch.ones(len(quats)).double())
    torch.testing.assert_close(rotation_formula(quats), rotations)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch": 6}, "patch=6 must be a positive multiple of 4"),
        ({"width": 20}, "width=20 must be a positive multiple of head_dim=8"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"attention": "flash"}, "attention=flash"),
    ],
)
def test_impossible_sizes_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        head(**changes)


def test_views_that_do_not_fit_are_refused():
    network = head()
    with pytest.raises(ValueError, match="do not fit cameras"):
        network(views(3), poses(4), fov_deg=FOV)
    with pytest.raises(ValueError, match="multiples of 16"):
        network(torch.rand(1, 3, 3, 24, 24), poses(3), fov_deg=FOV)

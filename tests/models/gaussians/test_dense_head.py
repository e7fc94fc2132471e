"""The dense head: where its Gaussians lie, that the order of views does not matter, and what it refuses."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

import models  # noqa: F401 - registers
from models.gaussians.agreement import Agreement, agreement, object_masks, unlikeness
from models.gaussians.dense import FIRST_SCALE, RAW_CHANNELS, DenseHead, placed
from models.gaussians.first_guess import COARSE_CELL, FirstGuess, blurred, cells_of, first_guess
from models.gaussians.rendering import render
from models.gaussians.scene import quaternions_of, rotation_formula
from utils.cameras import BALL_RADIUS, cameras_at, intrinsics, opencv_to_opengl, orbit_cameras, plucker_rays
from utils.errors import ConfigError
from utils.registry import MODEL

FOV, SIZE = 40.0, 32
SEEN = {"fov_deg": FOV, "background": 1.0}
TINY = {"patch": 8, "width": 16, "head_dim": 8, "num_layers": 2, "fine_views": 2, "grid": 16, "depths": 8}


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


def ball_views(poses_1I44: torch.Tensor, *, radius: float, size: int = SIZE) -> torch.Tensor:
    """White views of a ball at the origin, whose colour is its position."""
    rays_I6HW = plucker_rays(poses_1I44[0], fov_deg=FOV, size=size)
    moment, direction = rays_I6HW.split(3, dim=1)
    closest = torch.linalg.cross(direction, moment, dim=1)
    half = radius**2 - closest.square().sum(1, keepdim=True)
    colors = 0.5 + (closest - half.clamp_min(0).sqrt() * direction) / (4 * radius)
    return torch.where(half > 0, colors, torch.ones_like(colors))[None]


def first_of(num_cells: int, cameras: torch.Tensor, *, cell: int = 4) -> FirstGuess:
    """A first guess in the middle of the rays."""
    rays_BN6 = plucker_rays(cameras[0], fov_deg=FOV, size=SIZE // cell).flatten(2).transpose(1, 2).reshape(1, -1, 6)
    zeros = torch.zeros(1, num_cells, 1)
    return FirstGuess(
        colors_BN3=torch.full((1, num_cells, 3), 0.5), rays_BN6=rays_BN6, depths_BN1=zeros, opacities_BN1=zeros
    )


@pytest.mark.parametrize(("num_views", "cell"), [(2, 2), (8, 4)])
def test_an_untrained_head_puts_the_pixels_where_their_rays_enter_the_visual_hull(num_views, cell):
    cameras = poses(num_views)
    found = head(trained=False, grid=48, depths=48)(ball_views(cameras, radius=0.5), cameras, **SEEN)
    assert found.means_BN3.shape == (1, num_views * (SIZE // cell) ** 2, 3)
    solid = found.opacities_BN1[0, :, 0] > 0.5
    assert 0.38 < float(solid.float().mean()) < 0.52  # the disc covers 0.40, and cells at its border count
    assert float(found.opacities_BN1[0, ~solid].median()) < 0.02
    if num_views == 8:  # from two views the hull is much larger than the ball
        radius = found.means_BN3[0, solid].norm(dim=-1)
        assert 0.45 < float(radius.median()) < 0.6
    seen_from = cameras[0, :, :3, 3].repeat_interleave((SIZE // cell) ** 2, dim=0)[solid]
    assert bool(((found.means_BN3[0, solid] * seen_from).sum(-1) > 0).float().mean() > 0.95)  # on the near side


def test_from_many_views_an_untrained_head_draws_unseen_views_already():
    cameras = orbit_cameras(num_views=24, elevation_deg=20, radius=2.0)
    shown = ball_views(opencv_to_opengl(cameras)[None], radius=0.5)[0]
    found = head(trained=False, grid=48, depths=48)(shown[None, ::2], opencv_to_opengl(cameras[::2])[None], **SEEN)
    drawn = render(found, cameras[None, 1::2], intrinsics(FOV, SIZE), size=(SIZE, SIZE), background=1.0)
    error = float((drawn.colors_BV3HW[0] - shown[1::2]).detach().square().mean())
    blank = float((1 - shown[1::2]).square().mean())
    assert error < 0.15 * blank


def drawn_error(shown: torch.Tensor, cameras: torch.Tensor, given: list[int]) -> float:
    """Mean squared error of what an untrained head draws of the views with odd numbers."""
    found = head(trained=False, grid=48, depths=48)(shown[None, given], opencv_to_opengl(cameras[given])[None], **SEEN)
    drawn = render(found, cameras[None, 1::2], intrinsics(FOV, SIZE), size=(SIZE, SIZE), background=1.0)
    return float((drawn.colors_BV3HW[0] - shown[1::2]).detach().square().mean())


def test_a_wrong_view_takes_away_nothing_and_shows_nothing():
    cameras, given = orbit_cameras(num_views=24, elevation_deg=20, radius=2.0), list(range(0, 24, 2))
    shown = ball_views(opencv_to_opengl(cameras)[None], radius=0.5)[0]
    clean = drawn_error(shown, cameras, given)
    wrong = shown.clone()
    wrong[4] = 1.0
    wrong[4, :, :10, :10] = 0.0  # a black square in a corner, and nothing where the ball is
    damaged = drawn_error(wrong, cameras, given)
    without = drawn_error(shown, cameras, [view for view in given if view != 4])
    assert damaged < 1.1 * max(clean, without)
    cameras_B = opencv_to_opengl(cameras[given])[None]
    found = head(trained=False, grid=48, depths=48)(wrong[None, given], cameras_B, **SEEN)
    of_views = found.opacities_BN1.unflatten(1, (12, -1))[0, ..., 0].amax(dim=1)
    assert float(of_views[2]) < 0.05 < 0.9 < float(of_views[[0, 1, *range(3, 12)]].min())


def test_a_wall_that_lies_behind_the_hull_is_found_by_its_colours():
    """The hull begins at x = 0.4, and the wall lies at x = 0.25."""
    cameras = cameras_at(torch.linspace(-40, 40, 9), torch.full((9,), 5.0), torch.full((9,), 2.0))
    poses_1I44 = opencv_to_opengl(cameras)[None]
    rays_I6HW = plucker_rays(poses_1I44[0], fov_deg=FOV, size=64)
    along_IHW = (0.25 - cameras[:, 0, 3, None, None]) / rays_I6HW[:, 3]
    y, z = (cameras[:, axis, 3, None, None] + along_IHW * rays_I6HW[:, 3 + axis] for axis in (1, 2))
    striped = 0.5 + 0.2 * torch.sin(20 * y) + 0.2 * torch.sin(17 * z)
    in_hull_G = BALL_RADIUS * ((torch.arange(64) + 0.5) / 32 - 1) < 0.4
    hull = Agreement(shares_B1GGG=in_hull_G.float().expand(1, 1, 64, 64, 64))
    places = {}
    for name, colors_IHW in (("striped", striped), ("plain", torch.full_like(striped, 0.5))):
        mask_and_colors = torch.cat([torch.ones(9, 1, 64, 64), colors_IHW[:, None].expand(-1, 3, -1, -1)], dim=1)
        pixels = torch.cat([mask_and_colors, rays_I6HW], dim=1)[None]
        first, _ = first_guess(pixels, COARSE_CELL, hull, 48, poses_1I44, fov_deg=FOV)
        found = placed(torch.zeros(1, 9 * 256, RAW_CHANNELS), first, poses_1I44, fov_deg=FOV, size=64)
        places[name] = found.means_BN3[0].unflatten(0, (9, 16, 16))[4, 4:12, 4:12, 0]  # x, in the middle view
    assert float((places["plain"] - 0.4).abs().max()) < 0.06
    assert float((places["striped"] - 0.25).abs().median()) < 0.02


def test_only_near_views_are_compared_and_the_best_of_them_count():
    angles = torch.tensor([0.0, 10.0, 20.0, 180.0])
    cameras = opencv_to_opengl(cameras_at(angles, torch.zeros(4), torch.full((4,), 2.0)))[None]
    pictures = torch.full((1, 4, 3, SIZE, SIZE), 0.5)
    pictures[0, 3] = 0.0
    points = torch.zeros(1, 4, 1, 2, 3)
    colors = torch.full((1, 4, 1, 3), 0.5)
    unlike_BIRS, trust_BI = unlikeness(pictures, points, colors, cameras, fov_deg=FOV)
    torch.testing.assert_close(unlike_BIRS[0, :3], torch.zeros(3, 1, 2))  # the two nearest are the most similar
    assert bool((trust_BI[0, :3] == 1).all())
    assert float(trust_BI[0, 3]) == 0  # the view from behind has no near ones
    pictures[0, 1] = 0.2
    unlike_BIRS, _ = unlikeness(pictures, points, colors, cameras, fov_deg=FOV)
    torch.testing.assert_close(unlike_BIRS[0, 0], torch.full((1, 2), 0.15))  # 0.3 in view 1, 0 in view 2


@pytest.mark.parametrize("num_views", [2, 3])
def test_without_layers_the_head_is_its_first_guess(num_views):
    shown, cameras = views(num_views), poses(num_views)
    alone, untrained = head(trained=False, num_layers=0), head(trained=False)
    assert not list(alone.parameters())
    expected = untrained(shown, cameras, **SEEN).packed_BN14
    torch.testing.assert_close(alone(shown, cameras, **SEEN).packed_BN14, expected)


def test_cells_at_the_border_of_the_object_have_its_colour_and_not_that_of_the_background():
    mask = torch.zeros(1, 1, 1, 8, 8)
    mask[..., :2] = 1.0
    colors = torch.where(mask > 0, 0.2, 1.0).expand(1, 1, 3, 8, 8)
    cameras = poses(1)
    pixels = torch.cat([mask, colors, plucker_rays(cameras[0], fov_deg=FOV, size=8)[None]], dim=2)
    cells = cells_of(pixels, COARSE_CELL)
    torch.testing.assert_close(cells.colors_BN3[0, 0], torch.full((3,), 0.2), atol=2e-3, rtol=0)
    torch.testing.assert_close(cells.middle_BN3[0, 0], cells.colors_BN3[0, 0])
    assert float(cells.covered_BN1[0, 0]) == 0.5
    grid = agreement(mask, cameras, fov_deg=FOV, grid=8)
    first, _ = first_guess(pixels, COARSE_CELL, grid, 8, cameras, fov_deg=FOV)
    opacities_BN1 = first.opacities_BN1.sigmoid()
    assert float(opacities_BN1[0, 0]) > 0.5 > 0.01 > float(opacities_BN1[0, 1])


@pytest.mark.parametrize("side", [2, 4])
def test_cells_have_the_colour_of_their_middle_and_blurred_pictures_stay_in_place(side):
    ramp = (torch.arange(16) + 0.5) / 16
    picture = torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16), torch.zeros(16, 16)])
    pixels = torch.cat([torch.ones(1, 16, 16), picture, torch.zeros(6, 16, 16)])[None, None]
    picture[2, side // 2 :: side, side // 2 :: side] = 1.0  # one of the four middle pixels of each cell
    pixels[0, 0, 3] = picture[2]
    cells = cells_of(pixels, side)
    torch.testing.assert_close(cells.middle_BN3[..., 2], torch.full((1, (16 // side) ** 2), 0.25))
    torch.testing.assert_close(cells.colors_BN3[..., 2], torch.full((1, (16 // side) ** 2), 1 / side**2))
    soft = blurred(pixels, side)[0, 0, :2, 4:-4, 4:-4]
    torch.testing.assert_close(soft, picture[:2, 4:-4, 4:-4], atol=1e-4, rtol=0)


def test_white_inside_the_object_belongs_to_it():
    picture = torch.ones(1, 3, 64, 64)
    picture[:, :, 16:48, 16:48] = 0.5
    picture[:, :, 28:36, 28:36] = 1.0
    mask = object_masks(picture, 1.0)[0, 0]
    assert float(mask[16:48, 16:48].min()) == 1.0
    assert float(mask.sum()) == 32 * 32
    picture[:, :, 28:36, 28:] = 1.0  # now it can be reached
    assert float(object_masks(picture, 1.0)[0, 0, 30:34, 30:34].max()) == 0.0


def test_a_voxel_knows_in_which_views_the_object_is_there():
    cameras = poses(4)
    masks = torch.ones(1, 4, 1, SIZE, SIZE)
    masks[:, 3] = 0.0
    masks[:, 0, :, :, : SIZE // 2] = 0.0  # from view 0 only the right half
    grid = agreement(masks, cameras, fov_deg=FOV, grid=16)
    right = cameras[0, 0, :3, 0] * 0.4
    shares = grid.along(torch.stack([right, -right])[None, None])[0, 0]
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.5]), atol=1e-3, rtol=0)


def test_depths_end_at_the_ball():
    cameras = poses(2)
    first = first_of(2 * 64, cameras)
    raw_BNC = torch.zeros(1, 2 * 64, RAW_CHANNELS)
    distances = []
    for depth in (-20.0, 20.0):
        raw_BNC[..., 0] = depth
        found = placed(raw_BNC, first, cameras, fov_deg=FOV, size=SIZE)
        distances.append((found.means_BN3 - cameras[:, :1, :3, 3]).norm(dim=-1)[0, : 8 * 8])
        closest = torch.linalg.cross(first.rays_BN6[..., 3:], first.rays_BN6[..., :3], dim=-1).norm(dim=-1)
        hits = closest < 0.9 * BALL_RADIUS
        assert 20 < int(hits.sum()) < hits.numel()
        radius = found.means_BN3.norm(dim=-1)[hits]
        torch.testing.assert_close(radius, torch.full_like(radius, BALL_RADIUS), atol=5e-3, rtol=0)
    assert bool((distances[0] < distances[1]).all())


def test_a_gaussian_covers_a_pixel_from_its_own_camera_and_turns_with_it():
    raw_BNC = torch.zeros(1, 2 * 64, RAW_CHANNELS)
    raw_BNC[..., 4], raw_BNC[..., 7:11] = 1.0, torch.tensor([0.2, 0.3, -0.1, 0.4])
    cameras = poses(2)
    found = placed(raw_BNC, first_of(2 * 64, cameras), cameras, fov_deg=FOV, size=SIZE)
    in_camera = [
        pose[:3, :3].T @ covariances @ pose[:3, :3]
        for pose, covariances in zip(cameras[0], found.covariances()[0].unflatten(0, (2, 64)), strict=True)
    ]
    torch.testing.assert_close(in_camera[0], in_camera[1], atol=1e-6, rtol=1e-4)
    pixel = 2 * math.tan(math.radians(FOV) / 2) * 2.0 / SIZE  # world units at the origin
    assert 0.9 * FIRST_SCALE * pixel < float(found.scales_BN3[0, 27, 1]) < 1.1 * FIRST_SCALE * pixel
    longer_BN = found.scales_BN3[..., 0] / found.scales_BN3[..., 1]
    torch.testing.assert_close(longer_BN, torch.full((1, 128), 2.59), rtol=0.01, atol=0)  # exp(2.5 tanh(1 / 2.5))


def test_the_order_of_the_views_does_not_matter():
    network, shown, cameras = head(), views(4), poses(4)
    order = torch.tensor([2, 0, 3, 1])
    found = network(shown, cameras, **SEEN).packed_BN14.unflatten(1, (4, -1))
    permuted = network(shown[:, order], cameras[:, order], **SEEN).packed_BN14.unflatten(1, (4, -1))
    torch.testing.assert_close(permuted, found[:, order], atol=1e-4, rtol=1e-4)


def test_every_view_sees_the_others_and_samples_of_a_batch_are_independent():
    network, shown, cameras = head(), views(4, batch=2), poses(4).expand(2, -1, -1, -1)
    found = network(shown, cameras, **SEEN).packed_BN14.unflatten(1, (4, -1))
    changed = shown.clone()
    changed[0, 3] = 1 - changed[0, 3]
    other = network(changed, cameras, **SEEN).packed_BN14.unflatten(1, (4, -1))
    assert bool(((found - other)[0].abs().amax(dim=(1, 2)) > 1e-4).all())
    torch.testing.assert_close(other[1], found[1], atol=1e-5, rtol=1e-5)
    alone = network(shown[1:], cameras[1:], **SEEN).packed_BN14.unflatten(1, (4, -1))
    torch.testing.assert_close(alone[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_views", [2, 3])
def test_every_weight_is_used(num_views):
    network = head()
    network(views(num_views), poses(num_views), **SEEN).packed_BN14.sin().sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    other = "out_coarse" if num_views == 2 else "out_fine"
    assert idle == {f"{other}.weight", f"{other}.bias"}
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in network.parameters() if parameter.grad is not None)


def test_places_stay_in_float32_under_autocast():
    network, shown, cameras = head(trained=False), views(3), poses(3)
    exact = network(shown, cameras, **SEEN)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(shown, cameras, **SEEN)
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
        ({"num_layers": -1}, "num_layers must not be negative, got -1"),
        ({"grid": 0}, "grid must be positive, got 0"),
        ({"attention": "flash"}, "attention=flash"),
    ],
)
def test_impossible_sizes_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        head(**changes)


def test_views_that_do_not_fit_are_refused():
    network = head()
    with pytest.raises(ValueError, match="do not fit cameras"):
        network(views(3), poses(4), **SEEN)
    with pytest.raises(ValueError, match="multiples of 16"):
        network(torch.rand(1, 3, 3, 24, 24), poses(3), **SEEN)

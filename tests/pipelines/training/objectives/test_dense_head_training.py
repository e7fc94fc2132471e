"""The dense head learns made-up orbits; the views that it is given, and their flaws; what training refuses."""

import pytest
import torch

import pipelines  # noqa: F401 - registers
from models.weights import read_weights
from pipelines.training.objectives.head_augment import damage_views, pixel_centres, recolor_views
from pipelines.training.objectives.head_loss import HeadLoss, LossConfig
from pipelines.training.trainer import train
from tests.models.gaussians.test_splatting import random_gaussians
from tests.pipelines.training.objectives.test_head_training import NUM_VIEWS, SIZE, config, losses, make_orbits
from tests.pipelines.training.test_resume import stopped_after
from tests.tiny import write_config
from utils.cameras import opencv_to_opengl, orbit_cameras
from utils.config import load_config
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
HEAD = {"width": 32, "head_dim": 16, "num_layers": 2, "fine_views": 0, "pool": 1, "grid": 16, "depths": 8}


def dense_config(folder, **changes):
    return config(folder) | {
        "TASK_TYPE": "train_dense_head_entrance",
        "reconstruction": {"type": "DenseReconstruction", "head": HEAD, "render_size": SIZE, "background": 1.0},
        "objective": {"num_input_views": [2, 4], "num_output_views": 4, "p_autoencoded": 0.0},
        "log_interval": 1,
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_orbits(tmp_path_factory.mktemp("dense"))


def loaded(folder, *overrides, **changes):
    return load_config(write_config(folder / "dense.yaml", dense_config(folder, **changes)), list(overrides))


def objective(folder, *overrides, **changes):
    cfg = loaded(folder, *overrides, **changes)
    torch.manual_seed(0)
    return cfg.training.build(cfg=cfg, device=torch.device("cpu"))


def test_the_head_learns_and_a_stopped_training_continues(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    given = {"num_steps": 24, "decay_mode": "constant"}
    train(loaded(folder, **given, save_ckp_interval=16, log_dir=str(tmp_path / "whole")))
    stopped_after(tmp_path, 16, of="whole", as_="parts")
    train(loaded(folder, **given, log_dir=str(tmp_path / "parts")))
    figures = losses(caplog)
    assert sum(figures[19:24]) < 0.75 * sum(figures[:5])
    assert figures[16:24] == figures[24:]
    whole, parts = (read_weights(tmp_path / n / "head.safetensors", option="x").state for n in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert any((tmp_path / "whole" / "previews").glob("head_*.png"))


def test_given_views_come_first_and_are_evenly_spaced_or_random(folder):
    even, mixed = (objective(folder, f"objective.p_even={share}") for share in (1.0, 0.0))
    order = even._draw_order(50, NUM_VIEWS, 4)
    assert torch.equal(order.sort(dim=1).values, torch.arange(NUM_VIEWS).expand(50, -1))
    gaps = order[:, :4].sort(dim=1).values.diff(dim=1)
    assert bool((gaps == 2).all())
    assert len({tuple(row) for row in order[:, :4].tolist()}) > 8  # other starts, and in another order
    gaps = mixed._draw_order(50, NUM_VIEWS, 4)[:, :4].sort(dim=1).values.diff(dim=1)
    assert not bool((gaps == 2).all(dim=1).all())


@pytest.mark.parametrize(("num_given", "num_shown_given"), [(2, 2), (4, 2), (6, 2), (7, 3), (8, 4)])
def test_half_of_the_views_of_the_loss_are_new_where_there_are_enough(folder, num_given, num_shown_given):
    order = torch.arange(NUM_VIEWS)[None]
    shown, number = objective(folder)._shown(order, num_given)
    assert number == num_shown_given
    assert shown[0].tolist() == [*range(num_shown_given), *range(num_given, num_given + 4 - num_shown_given)]


def test_a_few_views_of_some_samples_are_damaged():
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(64, 12, 3, 24, 24, generator=generator)
    hit = (damage_views(views, fraction=0.5, background=1.0, generator=generator) - views).abs().amax((2, 3, 4)) > 0.01
    number = hit.sum(dim=1)
    assert 20 < int((number == 0).sum()) < 44
    assert set(number.tolist()) == {0, 1, 2, 3}
    few = views[:, :3]
    assert torch.equal(damage_views(few, fraction=1.0, background=1.0, generator=generator), few)


def test_each_kind_of_damage_happens():
    generator = torch.Generator().manual_seed(0)
    views = torch.ones(64, 12, 3, 24, 24)
    views[:, :, :, 8:16, 8:16] = torch.arange(64)[:, None, None, None, None] / 80
    damaged = damage_views(views, fraction=1.0, background=1.0, generator=generator)
    wrong = (damaged - views).abs().amax((2, 3, 4)) > 1e-3
    other = (damaged - views.roll(1, dims=0)).abs().amax((2, 3, 4)) < 1e-6
    same_sum = (damaged.sum((2, 3, 4)) - views.sum((2, 3, 4))).abs() < 1e-2 * (1 - views).sum((2, 3, 4))
    corner = (damaged[..., 0, 0] - 1).abs().amax(2) < 1e-6  # the background keeps its colour
    assert bool(corner.all())
    for kind in (wrong & other, wrong & same_sum & ~other, wrong & ~same_sum):
        assert bool(kind.any())


def test_recolouring_keeps_the_background_and_differs_from_view_to_view():
    generator = torch.Generator().manual_seed(0)
    views = torch.full((2, 3, 3, 4, 4), 0.5)
    views[..., 0, 0] = 1.0
    changed = recolor_views(views, strength=0.1, background=1.0, generator=generator)
    assert bool((changed[..., 0, 0] == 1).all())
    assert len(changed[..., 1, 1].flatten(0, 1).unique(dim=0)) == 6
    assert torch.equal(recolor_views(views, strength=0.0, background=1.0, generator=generator), views)


def test_places_of_pixels_are_exact_under_autocast():
    expected = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 1, 300, 200], align_corners=False)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pixel_centres(300, 200, device=torch.device("cpu")), expected, atol=1e-6, rtol=0)


def test_structural_similarity_is_that_of_float32_under_autocast():
    scene, poses = (
        random_gaussians(20, scale=0.1),
        opencv_to_opengl(orbit_cameras(num_views=2, elevation_deg=0, radius=2)),
    )
    loss = HeadLoss(
        LossConfig(structure_weight=1.0, lambda_lpips=0.0),
        fov_deg=40,
        size=SIZE,
        rasterizer="torch",
        device=torch.device("cpu"),
    )
    empty = torch.zeros(1, 2, SIZE, SIZE, 4, dtype=torch.uint8)

    def ssim() -> float:
        generator = torch.Generator().manual_seed(0)
        return float(loss(scene, poses[None], empty, num_given=2, generator=generator)[1]["ssim"])

    exact = ssim()
    with torch.autocast("cpu", torch.bfloat16):
        assert ssim() == pytest.approx(exact, abs=1e-4)
    assert 0 < exact < 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.num_input_views=[0]", "num_input_views must be numbers from 1 to 32"),
        ("objective.num_input_views=[9]", "must not be larger than the data's 8 views"),
        ("objective.p_damaged=2", "p_damaged must lie in"),
        ("objective.color_jitter=-1", "color_jitter must not be negative"),
        ("reconstruction.type=GaussianReconstruction", "does not train the head of .*use DenseReconstruction"),
        ("reconstruction.head.patch=24", "multiples of 24"),
        ("reconstruction.head.num_layers=0", "has no weights to train"),
        ("reconstruction.fov_deg=50", "reconstruction.fov_deg=50, but vid_dataset was rendered with 39.6"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(folder, override, said):
    with pytest.raises(ConfigError, match=said):
        train(loaded(folder, override))

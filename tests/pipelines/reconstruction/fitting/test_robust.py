"""The loss of a fit and its weights of views."""

import pytest
import torch

from pipelines.reconstruction.fitting.robust import REJECTED, RobustLoss, RobustOptions, outlyingness, rho
from utils.errors import ConfigError

PLAIN = {"charbonnier": 0.0, "mask_weight": 0.0, "structural_weight": 0.0, "affine_color": False}


def loss_of(num_views: int = 2, **options) -> RobustLoss:
    return RobustLoss(RobustOptions(**{**PLAIN, **options}), num_views=num_views)


def applied(loss, colors, alphas, true, masks, view=None, *, patch=None, background=0.0, done=0.0):
    view = torch.zeros(len(colors), dtype=torch.long) if view is None else torch.tensor(view)
    return loss(
        colors, alphas, true, masks, view,
        patch=patch or (len(colors), 1, 1), background_3=torch.full((3,), background), done=done,
    )  # fmt: skip


def test_charbonnier_is_square_for_small_errors_and_linear_for_large_ones():
    error = torch.tensor([1e-4, 1.0, 2.0])
    small, one, two = rho(error, 0.01).tolist()
    assert small == pytest.approx(1e-8, rel=1e-2)
    assert two / one == pytest.approx(2, rel=0.02)
    assert rho(error, 0.0).tolist() == pytest.approx([1e-8, 1.0, 4.0])


def test_both_sides_are_over_the_same_background():
    half = torch.full((1, 1), 0.5)
    true = torch.tensor([[0.2, 0.4, 0.6]])
    for background in (0.0, 0.7):
        assert float(applied(loss_of(), 0.5 * true, half, true, half, background=background)) == pytest.approx(
            0, abs=1e-12
        )
        shown = float(applied(loss_of(), 0.5 * true, half, true, torch.ones(1, 1), background=background))
        assert shown == pytest.approx(float((0.5 * (true - background)).square().mean()), rel=1e-5)


def test_the_mask_counts_by_its_weight():
    zero = torch.zeros(1, 3)
    args = (zero, torch.full((1, 1), 0.25), zero, torch.ones(1, 1))
    assert float(applied(loss_of(mask_weight=2.0), *args)) == pytest.approx(2 * 0.75**2)


def test_view_0_has_no_colour_correction_and_the_others_have():
    loss = loss_of(affine_color=True)
    with torch.no_grad():
        loss.affine_V34[:] = torch.tensor([[2.0, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0]])
    colors, alphas = torch.full((2, 3), 0.2), torch.full((2, 1), 0.5)
    first, second = loss.corrected(colors, alphas, torch.tensor([0, 1])).tolist()
    assert first == pytest.approx([0.2, 0.2, 0.2])
    assert second == pytest.approx([0.45, 0.2, 0.2])  # an offset counts as much as there is of the object


def test_a_view_that_the_others_deny_loses_its_weight():
    loss = loss_of(num_views=10)
    error = torch.tensor([0.02 + 0.002 * (number % 3) for number in range(10)])
    loss.estimate_weights(error)
    assert loss.weight_V.tolist() == [1] * 10
    error[4] = 0.5
    loss.estimate_weights(error)
    assert loss.weight_V[4] == 0
    assert loss.weight_V.sum() == 9
    error[4] = 0.02  # a view can come back
    loss.estimate_weights(error)
    assert loss.weight_V.tolist() == [1] * 10


def test_weights_and_the_weight_of_the_input_scale_the_gradient():
    loss = loss_of(num_views=3, input_weight=4.0)
    loss.weight_V[2] = 0
    colors = torch.full((3, 3), 0.5, requires_grad=True)
    applied(loss, colors, torch.ones(3, 1), torch.zeros(3, 3), torch.ones(3, 1), [0, 1, 2]).backward()
    first, second, third = colors.grad[:, 0].tolist()
    assert first == pytest.approx(4 * second)
    assert third == 0


def test_structure_counts_in_patches_from_its_time_on():
    loss = loss_of(structural_weight=1.0, structural_from=0.5)
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(64, 3, generator=generator)
    flat = true.mean(dim=0).expand(64, 3)
    args = (flat, torch.ones(64, 1), true, torch.ones(64, 1))
    early = float(applied(loss, *args, patch=(1, 8, 8), done=0.4))
    late = float(applied(loss, *args, patch=(1, 8, 8), done=0.6))
    assert late == pytest.approx(early + 1, abs=0.15)
    assert float(applied(loss, true, args[1], true, args[3], patch=(1, 8, 8), done=0.6)) == pytest.approx(0, abs=1e-5)


def test_equally_good_views_are_all_trusted():
    assert bool((outlyingness(torch.tensor([0.010, 0.011, 0.012, 0.013])) < 1).all())
    assert float(outlyingness(torch.tensor([0.01] * 9 + [0.2]))[-1]) > REJECTED


@pytest.mark.parametrize(
    ("option", "value"), [("charbonnier", -1), ("mask_weight", float("nan")), ("structural_from", 1.5)]
)
def test_wrong_options_are_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        RobustOptions(**{option: value})


def test_a_view_must_be_no_outlier_in_any_error():
    loss = loss_of(num_views=10)
    same = torch.full((10,), 0.02)
    loss.estimate_weights(same, torch.where(torch.arange(10) == 3, 0.5, same))
    assert loss.weight_V.nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_weights_are_relative_to_the_views_that_are_drawn():
    loss = loss_of(num_views=4, mask_weight=0.0)
    args = (torch.full((2, 3), 0.5), torch.ones(2, 1), torch.zeros(2, 3), torch.ones(2, 1), [0, 1])
    before = float(applied(loss, *args))
    loss.weight_V[2:] = 0
    assert float(applied(loss, *args)) == pytest.approx(before)

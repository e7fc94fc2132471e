"""Several given views: each is asked in turn, as view 0, and answers most for what stands near it."""

import torch

from pipelines.conditioner import Conditions
from pipelines.known_views import EachInTurn, is_even_circle, weights_by_nearness
from utils.cameras import cameras_at, orbit_cameras

NUM_VIEWS = 8


def conditions_of(value: float) -> Conditions:
    picture = {"local_image": torch.full((2, 1, NUM_VIEWS, 1, 1), value)}
    return Conditions(picture, {"local_image": torch.zeros_like(picture["local_image"])})


def orbit(**options):
    return orbit_cameras(num_views=NUM_VIEWS, elevation_deg=15.0, radius=2.0, **options)


def test_the_network_meets_every_known_view_as_view_0():
    place = torch.arange(NUM_VIEWS).view(1, 1, -1, 1, 1)

    def network(x, t, *, local_image):
        return x * place + local_image

    x = torch.randn(2, 1, NUM_VIEWS, 1, 1)
    asked = EachInTurn(network=network, conditions={3: conditions_of(0.5)}, weights_KV=torch.ones(1, NUM_VIEWS))
    torch.testing.assert_close(asked(x, torch.zeros(2)), x * ((place - 3) % NUM_VIEWS) + 0.5)


def test_both_guidance_branches_get_their_own_conditions():
    asked = EachInTurn(
        network=lambda x, t, *, local_image: local_image.expand_as(x),
        conditions={0: conditions_of(1.0), 4: conditions_of(3.0)},
        weights_KV=weights_by_nearness(orbit(), (0, 4)),
    )
    answer = asked(torch.zeros(4, 1, NUM_VIEWS, 1, 1), torch.zeros(4))[:, 0, :, 0, 0]
    assert torch.all(answer[2:] == 0)
    expected = torch.tensor([1.0, 1.2, 2.0, 2.8, 3.0, 2.8, 2.0, 1.2])  # at 45 degrees the nearer counts nine times
    torch.testing.assert_close(answer[:2], expected.expand(2, -1), atol=0.01, rtol=0)


def test_only_an_even_circle_may_be_rolled():
    assert is_even_circle(orbit())
    assert is_even_circle(orbit(azimuth_start_deg=70.0))
    assert not is_even_circle(orbit(azimuth_span_deg=180.0))
    azimuth = torch.arange(NUM_VIEWS) * 45.0
    elevation = torch.where(torch.arange(NUM_VIEWS) == 2, 40.0, 15.0)
    assert not is_even_circle(cameras_at(azimuth, elevation, torch.full_like(azimuth, 2.0)))

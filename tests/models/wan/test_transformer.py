"""The transformer for orbits against diffusers' Wan, and what is new in it."""

from __future__ import annotations

import pytest
import torch

import models  # noqa: F401 - registers
from models.wan.transformer import WanOrbit
from utils.cameras import camera_condition, orbit_cameras, without_first_azimuth
from utils.errors import ConfigError
from utils.registry import MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"in_dim": 4, "num_layers": 2, "num_heads": 2, "head_dim": 12, "ffn_dim": 40, "text_dim": 10, "freq_dim": 16}


def network(**options):
    """A network with random weights in all layers, also those that begin with zeros."""
    made = MODEL.build({"type": "WanOrbit", **SIZES, **options}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return made


def arguments(num_views=3, batch=2, size=(8, 6)):
    generator = torch.Generator().manual_seed(1)
    c2w_V44 = orbit_cameras(num_views=num_views, elevation_deg=12, radius=2)
    return {
        "x": torch.randn(batch, 4, num_views, *size, generator=generator),
        "t": 1000 * torch.rand(batch, num_views, generator=generator),
        "y": torch.randn(batch, 5, 10, generator=generator),
        "camera_data": camera_condition(c2w_V44).expand(batch, -1, -1),
    }


def without_cameras(made):
    """The same network with the additions at zero, as when training starts from pretrained weights."""
    with torch.no_grad():
        made.ray_embedding.weight.zero_()
    return made


def reference_of(made):
    from diffusers import WanTransformer3DModel

    reference = WanTransformer3DModel(**made.config.diffusers_options()).eval()
    own = {key: value for key, value in made.state_dict().items() if key != "ray_embedding.weight"}
    reference.load_state_dict(own, strict=True)
    return reference


@pytest.mark.parametrize("num_views", [1, 3])
def test_without_additions_it_is_diffusers_network(num_views):
    made, given = without_cameras(network(temporal_rope=True)), arguments(num_views)
    one_t_B = given["t"][:, 0]
    with torch.no_grad():
        expected = reference_of(made)(given["x"], one_t_B, given["y"], return_dict=False)[0]
        got = made(**{**given, "t": one_t_B})
        same = made(**{**given, "t": one_t_B[:, None].expand(-1, num_views)})
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(same, got, atol=0, rtol=0)


def test_a_timestep_for_each_view_is_diffusers_timestep_for_each_token():
    made, given = without_cameras(network(temporal_rope=True)), arguments()
    tokens = (8 // 2) * (6 // 2)
    with torch.no_grad():
        t_tokens = given["t"].repeat_interleave(tokens, dim=1)
        expected = reference_of(made)(given["x"], t_tokens, given["y"], return_dict=False)[0]
        torch.testing.assert_close(made(**given), expected, atol=1e-5, rtol=0)


def test_the_additions_begin_at_zero_and_receive_gradients():
    made = MODEL.build({"type": "WanOrbit", **SIZES, "camera_vector": True})
    torch.nn.init.normal_(made.proj_out.weight)
    given = arguments()
    before = made(**given)
    moved = camera_condition(orbit_cameras(num_views=3, elevation_deg=-5, radius=3)).expand(2, -1, -1)
    torch.testing.assert_close(made(**{**given, "camera_data": moved}), before, atol=0, rtol=0)
    before.square().sum().backward()
    assert made.ray_embedding.weight.grad.abs().sum() > 0
    assert made.camera_embedding[-1].weight.grad.abs().sum() > 0


def test_the_order_of_the_views_does_not_matter_without_temporal_positions():
    made, given, order = network(relative_azimuth=False), arguments(4), torch.tensor([2, 0, 3, 1])
    permuted = {name: value if name == "y" else value[:, order] for name, value in given.items() if name != "x"}
    with torch.no_grad():
        expected = made(**given)[:, :, order]
        torch.testing.assert_close(made(**permuted, x=given["x"][:, :, order]), expected, atol=1e-5, rtol=0)
        numbered = network(relative_azimuth=False, temporal_rope=True)
        difference = numbered(**permuted, x=given["x"][:, :, order]) - numbered(**given)[:, :, order]
    assert difference.abs().max() > 1e-3


def test_only_azimuths_relative_to_view_0_matter():
    given = arguments()
    turned = camera_condition(orbit_cameras(num_views=3, elevation_deg=12, radius=2, azimuth_start_deg=77))
    with torch.no_grad():
        made = network()
        expected = made(**given)
        got = made(**{**given, "camera_data": turned.expand(2, -1, -1)})
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        higher = camera_condition(orbit_cameras(num_views=3, elevation_deg=30, radius=2)).expand(2, -1, -1)
        assert (made(**{**given, "camera_data": higher}) - expected).abs().max() > 1e-2


def test_a_camera_on_the_axis_keeps_its_azimuth():
    c2w_V44 = torch.eye(4).repeat(2, 1, 1)
    c2w_V44[:, 2, 3] = 2.0
    torch.testing.assert_close(without_first_azimuth(c2w_V44), c2w_V44, atol=0, rtol=0)


def test_recomputed_blocks_give_the_same_gradients():
    gradients = []
    for recomputes in (False, True):
        made = network(use_checkpoint=recomputes).train()
        made(**arguments()).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in made.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 7}, "UNet.head_dim"),
        ({"num_layers": 0}, "UNet.num_layers"),
        ({"fov_deg": 180.0}, "UNet.fov_deg"),
        ({"rays": False}, "UNet.rays=false"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        WanOrbit.Config(**options)


def test_latents_that_do_not_fit_are_refused():
    made, given = network(), arguments(size=(7, 6))
    with pytest.raises(ValueError, match="multiples of 2"):
        made(**given)
    with pytest.raises(ValueError, match="B and V must be equal"):
        made(**{**arguments(), "camera_data": arguments(4)["camera_data"]})

"""Orbits whose views share frames of the latents: the layout, the autoencoder and the transformer."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange

from models.backbone import BackboneConfig
from models.encoders import FrameLayout
from models.wan.autoencoder import PACKED
from tests.models.wan.test_transformer import arguments, network, reference_of, without_cameras
from tests.models.wan.test_wan_autoencoder import TINY_22, build
from tests.reference_cases import fill_by_recipe
from tests.tiny_wan import NETWORK
from utils.cameras import camera_condition, orbit_cameras, plucker_rays, without_first_azimuth
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_views_of_each_frame():
    views_1V = torch.arange(8)[None]
    assert PACKED.closed(views_1V).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0]]
    assert PACKED.by_frame(views_1V).tolist() == [[[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 0]]]
    assert PACKED.by_frame(views_1V[:, :1]).tolist() == [[[0, 0, 0, 0]]]  # a single view
    assert FrameLayout().by_frame(views_1V[:, :3]).tolist() == [[[0], [1], [2]]]
    assert [PACKED.num_frames(V) for V in (1, 4, 8, 24)] == [1, 2, 3, 7]
    assert [PACKED.num_views(F) for F in (1, 2, 3, 7)] == [1, 4, 8, 24]
    assert FrameLayout().num_frames(24) == FrameLayout().num_views(24) == 24


@pytest.mark.parametrize(("num_views", "remedy"), [(10, "use 8 or 12 views"), (3, "use 4 views")])
def test_views_that_do_not_fill_frames_are_refused(num_views, remedy):
    with pytest.raises(ConfigError, match=rf"cameras: {num_views} views .*{remedy}, or set auto_encoder.packed=false"):
        PACKED.check(num_views, option="cameras")
    FrameLayout().check(num_views, option="cameras")


@pytest.mark.parametrize("sizes", [NETWORK, TINY_22], ids=["2.1", "2.2"])
@torch.no_grad()
def test_an_orbit_is_coded_like_a_video_by_diffusers(sizes):
    model = fill_by_recipe(build(sizes, packed=True))
    channels = sizes["z_dim"]
    mean, std = torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels)
    model.latents_mean, model.latents_std = mean.tolist(), std.tolist()
    mean, std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
    theirs = AutoencoderKLWan(**sizes).eval()
    theirs.load_state_dict(model.network.state_dict())
    views = torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    video = torch.cat([views, views[:, :1]], dim=1).transpose(1, 2) * 2 - 1
    expected = theirs.encode(video).latent_dist
    got_mean, got_std = model.view_posteriors(views)
    assert got_mean.shape == (2, channels, 3, 32 // model.reduction, 32 // model.reduction)
    torch.testing.assert_close(got_mean, (expected.mean - mean) / std, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got_std, expected.std / std, atol=1e-5, rtol=1e-5)
    latents = 0.3 * got_mean
    decoded = theirs.decode(latents * std + mean).sample.transpose(1, 2)[:, :8] / 2 + 0.5
    torch.testing.assert_close(model.decode_views(latents), decoded, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_orbits_do_not_mix_and_view_0_is_alone_in_its_frame():
    model = fill_by_recipe(build(packed=True))
    views = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = model.encode_views(views, chunk=8)
    torch.testing.assert_close(latents, model.encode_views(views, chunk=1))
    torch.testing.assert_close(latents[:, :, :1], model.encode_views(views[:, :1]))
    torch.testing.assert_close(latents[:, :, 0], model.encode(views[:, 0] * 2 - 1).mean)
    decoded = model.decode_views(latents, chunk=8, clamp=False)
    torch.testing.assert_close(decoded[:, :1], model.decode_views(latents[:, :, :1], clamp=False))
    chosen = model.decode_views(latents, views_BI=torch.tensor([[3, 0], [1, 1]]), chunk=1, clamp=False)
    torch.testing.assert_close(chosen, torch.stack([decoded[0, [3, 0]], decoded[1, [1, 1]]]))
    with pytest.raises(ConfigError, match="encoded orbits: 5 views do not fill frames of 4 views"):
        model.encode_views(torch.rand(1, 5, 3, 16, 16))


def test_all_latents_of_an_orbit_have_a_gradient_and_infinity_is_not_hidden():
    model = build(packed=True)
    latents = (10 * torch.randn(1, 4, 2, 2, 2)).requires_grad_()  # far out, where diffusers' decode clamps
    model.decode_views(latents, clamp=False).square().sum().backward()
    assert latents.grad.abs().min() > 0
    broken = latents.detach().clone()
    broken[0, 0, 1, 0, 0] = float("inf")
    decoded = model.decode_views(broken, clamp=False)
    assert decoded[:, 0].isfinite().all()
    assert not decoded[:, 1:].isfinite().all()


@torch.no_grad()
def test_chosen_views_of_single_frames_are_those_of_all():
    model = fill_by_recipe(build())
    latents = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    decoded = model.decode_views(latents)
    torch.testing.assert_close(model.decode_views(latents, views_BI=torch.tensor([2, 0])), decoded[:, [2, 0]])


def packed_arguments():
    """Latents of three frames, with the cameras of their eight views."""
    cameras = camera_condition(orbit_cameras(num_views=8, elevation_deg=12, radius=2)).expand(2, -1, -1)
    return {**arguments(3), "camera_data": cameras}


def test_without_additions_a_packed_orbit_is_a_video_of_diffusers_network():
    made, given = without_cameras(network(packed=True, temporal_rope=True)), packed_arguments()
    given["t"] = given["t"][:, 0]
    with torch.no_grad():
        expected = reference_of(made)(given["x"], given["t"], given["y"], return_dict=False)[0]
        torch.testing.assert_close(made(**given), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_a_token_has_the_rays_of_the_views_of_its_frame():
    made, given, seen = network(packed=True), packed_arguments(), []
    made.ray_embedding.register_forward_pre_hook(lambda _, rays: seen.append(rays[0]))
    with torch.no_grad():
        made(**given)
        made(**{**given, "x": given["x"][:, :, :1], "t": given["t"][:, :1], "camera_data": None})
    orbit, picture = seen
    c2w_V44 = without_first_azimuth(given["camera_data"][:1].unflatten(-1, (4, 4)))[0]
    rays_V6HW = plucker_rays(c2w_V44, fov_deg=made.config.fov_deg, size=(8, 6))
    frames = rearrange(orbit[0], "f (h w) (n c p q) -> f n c (h p) (w q)", h=4, n=4, p=2, q=2)
    for frame, views in zip(frames, ([0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 0]), strict=True):
        torch.testing.assert_close(frame, rays_V6HW[views])
    assert picture.shape == (2, 1, 12, 96)
    assert not picture.any()


def test_cameras_of_other_views_than_the_frames_have_are_refused():
    made, given = network(packed=True), packed_arguments()
    with pytest.raises(ValueError, match="B and V must be equal"):
        made(**{**given, "camera_data": given["camera_data"][:, :3]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(packed=True, camera_vector=True), "set UNet.camera_vector=false"),
        (
            lambda: build({**NETWORK, "temperal_downsample": [False, False, True]}, packed=True),
            r"auto_encoder.packed=true needs two levels with compression in time.*set auto_encoder.packed=false",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_another_backbone_takes_each_view_as_a_frame():
    assert BackboneConfig().layout == network().config.layout == FrameLayout()
    assert network(packed=True).config.layout == build(packed=True).layout == PACKED

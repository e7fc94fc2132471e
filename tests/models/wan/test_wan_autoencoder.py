import json

import pytest
import torch
from diffusers import AutoencoderKLWan

from models.weights import save_safetensors
from tests.reference_cases import fill_by_recipe
from tests.tiny_wan import AUTOENCODER, NETWORK, write_wan
from utils.errors import ConfigError, DataError
from utils.registry import AUTO_ENCODER

WAN_21 = {}
WAN_22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2,
}  # fmt: skip
TINY_22 = {**WAN_22, "base_dim": 4, "decoder_base_dim": 8, "z_dim": 6}


def build(network=NETWORK, **options):
    return AUTO_ENCODER.build({"type": "WanAutoencoder", "network": network, **options}).eval()


@pytest.mark.parametrize("network", [NETWORK, TINY_22], ids=["2.1", "2.2"])
@torch.no_grad()
def test_a_view_is_coded_like_the_first_frame_of_a_video_by_diffusers(network):
    model = fill_by_recipe(build(network))
    channels = network["z_dim"]
    mean, std = torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels)
    model.latents_mean, model.latents_std = mean.tolist(), std.tolist()
    mean, std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
    theirs = AutoencoderKLWan(**network).eval()
    theirs.load_state_dict(model.network.state_dict())
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, posterior = theirs.encode(image[:, :, None]).latent_dist, model.encode(image)
    assert posterior.mean.shape == (2, channels, 32 // model.reduction, 32 // model.reduction)
    torch.testing.assert_close(posterior.mean, ((expected.mean - mean) / std)[:, :, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(posterior.std, (expected.std / std)[:, :, 0], atol=1e-5, rtol=1e-5)
    latents = 0.3 * posterior.mean
    decoded = theirs.decode(latents[:, :, None] * std + mean).sample[:, :, 0]
    torch.testing.assert_close(model.decode(latents).clamp(-1, 1), decoded, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_views_do_not_mix_and_infinity_is_not_hidden():
    model = build()
    views = torch.rand(1, 3, 3, 16, 16)
    latents = model.encode_views(views, chunk=2)
    torch.testing.assert_close(latents[:, :, 1], model.encode_views(views[:, 1:2])[:, :, 0])
    assert torch.equal(latents, model.encode_views(views, chunk=2))  # the mode draws nothing
    latents[0, 0, 2, 0, 0] = float("inf")
    assert model.decode_views(latents, clamp=False)[:, :2].isfinite().all()
    assert not model.decode_views(latents, clamp=False)[:, 2].isfinite().all()


def test_every_latent_has_a_gradient():
    latents = (10 * torch.randn(1, 4, 1, 2, 2)).requires_grad_()  # far out, where diffusers' decode clamps
    build().decode_views(latents, clamp=False).square().sum().backward()
    assert latents.grad.abs().min() > 0


@pytest.mark.parametrize(("network", "reduction"), [(WAN_21, 8), (WAN_22, 16)], ids=["2.1", "2.2"])
def test_full_size_has_the_names_and_shapes_of_diffusers(network, reduction):
    with torch.device("meta"):
        model, theirs = build(network), AutoencoderKLWan(**network)
    moments = {"latents_mean": (model.latent_channels,), "latents_std": (model.latent_channels,)}
    expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()} | moments
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    assert model.reduction == reduction


def test_a_folder_loads_with_its_moments_and_so_does_our_own_file(tmp_path):
    section = write_wan(tmp_path / "wan")["auto_encoder"]
    file = tmp_path / "wan" / "vae" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"latents_mean": [1, 2, 3, 4], "latents_std": [2, 2, 2, 0.5]}))
    model = AUTO_ENCODER.build(section).eval()
    assert (model.latents_mean, model.latents_std) == ([1, 2, 3, 4], [2, 2, 2, 0.5])
    theirs = AutoencoderKLWan.from_pretrained(tmp_path / "wan" / "vae", torch_dtype=torch.float32)
    assert all(torch.equal(theirs.state_dict()[name], value) for name, value in model.network.state_dict().items())
    save_safetensors(tmp_path / "own.safetensors", model.state_dict(), dtype=torch.float32)
    again = build(pretrained=str(tmp_path / "own.safetensors"))
    views = torch.rand(1, 1, 3, 16, 16)
    assert torch.equal(again.encode_views(views), model.encode_views(views))


def test_another_autoencoder_is_refused_by_name(tmp_path):
    section = write_wan(tmp_path / "wan")["auto_encoder"]
    with pytest.raises(DataError, match=r"vae is another model \(z_dim=4\), but auto_encoder has network.z_dim=16"):
        AUTO_ENCODER.build({**section, "network": {"base_dim": 4}})
    options = AUTO_ENCODER.resolve(AUTOENCODER)[1]
    with pytest.raises(DataError, match=r"auto_encoder.pretrained=.*/gone: no such folder; download it with `hf"):
        options.published_files(str(tmp_path / "gone"), option="auto_encoder.pretrained")
    (tmp_path / "wan" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"vae: is empty; download the folder again"):
        AUTO_ENCODER.build(section)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"patch_size": 2}, "in_channels=3 and out_channels=3 must be 12 with patch_size=2"),
        ({"dim_mult": [1, 2]}, "must have an entry for each level after the first, 1"),
        ({"z_dims": 4}, "did you mean z_dim"),
    ],
)
def test_bad_sizes_are_refused(network, message):
    with pytest.raises(ConfigError, match=message):
        AUTO_ENCODER.resolve({"type": "WanAutoencoder", "network": network})

import json

import pytest
import torch

from models.autoencoder import AutoencoderKL
from models.weights import save_safetensors
from tests.reference_cases import REFERENCE, assert_matches, case_input, fill_by_recipe, load_case
from utils.errors import ConfigError, DataError
from utils.registry import AUTO_ENCODER

TINY = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 3, "resolution": 16}


def build(**options):
    return AUTO_ENCODER.build({"type": "AutoencoderKL", "ddconfig": TINY, "embed_dim": 4, **options})


def test_reference_case():
    spec, stored = load_case("vae")
    model = fill_by_recipe(AUTO_ENCODER.build({"type": "AutoencoderKL", **spec["config"]}))
    inputs = spec["inputs"]
    with torch.no_grad():
        posterior = model.encode(case_input("vae", "image", inputs["image"], inputs["image_scale"]))
        image = model.decode(case_input("vae", "latent", inputs["latent"]))
    assert_matches(posterior.mean, stored["mean"])
    assert_matches(posterior.logvar, stored["logvar"])
    assert_matches(image, stored["image"])


def test_full_size_has_the_published_names_and_shapes():
    published = json.loads((REFERENCE / "checkpoints" / "autoencoder.json").read_text())
    with torch.device("meta"):
        state = AUTO_ENCODER.build({"type": "AutoencoderKL"}).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == published


def test_published_file_loads_and_other_prefixes_are_ignored(tmp_path):
    model = build()
    state = {f"first_stage_model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(())}}, tmp_path / "ae.pth")
    again = build(pretrained=str(tmp_path / "ae.pth"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_own_file_loads_inside_a_larger_module(tmp_path):
    model = build()
    save_safetensors(tmp_path / "ae.safetensors", model.state_dict(), dtype=torch.float32)
    again = build(pretrained=str(tmp_path / "ae.safetensors"))
    outer, other = torch.nn.ModuleDict({"a": model}), torch.nn.ModuleDict({"a": build()})
    other.load_state_dict(outer.state_dict(), strict=True)
    image = torch.rand(1, 3, 16, 16)
    for copy in (again, other["a"]):
        torch.testing.assert_close(copy.encode(image).mean, model.encode(image).mean, atol=0, rtol=0)


def test_wrong_channels_are_named(tmp_path):
    torch.save({"state_dict": build(embed_dim=5).state_dict()}, tmp_path / "ae.pth")
    with pytest.raises(DataError, match=r"misshapen \(first: quant_conv"):
        build(pretrained=str(tmp_path / "ae.pth"))


def test_attention_at_a_level_is_named_as_published():
    names = build(ddconfig={**TINY, "attn_resolutions": [8]}).state_dict()
    assert names["encoder.down.1.attn.0.q.weight"].shape == (64, 64, 1, 1)
    assert names["decoder.up.1.attn.1.proj_out.weight"].shape == (64, 64, 1, 1)


def test_views_keep_their_order_and_scale():
    model = build(posterior="mode", scale_factor=0.5).eval()
    views = torch.rand(2, 3, 3, 16, 16)
    latents = model.encode_views(views, chunk=4)
    assert latents.shape == (2, 4, 3, 8, 8)
    torch.testing.assert_close(latents[1, :, 2], 0.5 * model.encode(views[1, 2:] * 2 - 1).mean[0])
    decoded = model.decode_views(latents, chunk=5, clamp=False)
    expected = model.decode(latents[1, :, 2][None] / 0.5)[0] / 2 + 0.5
    torch.testing.assert_close(decoded[1, 2], expected)
    assert 0 <= model.decode_views(latents * 1e3).min() <= model.decode_views(latents * 1e3).max() <= 1


def test_a_sample_does_not_depend_on_its_batch():
    model = build().eval()
    views = torch.rand(2, 2, 3, 16, 16)

    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both = model.encode_views(views, generator=seeded(1, 2))
    alone = model.encode_views(views[1:], generator=seeded(2))
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both[1:], model.encode_views(views[1:], generator=seeded(3)))


def test_decoding_passes_gradients_to_latents():
    model = build()
    latents = torch.randn(1, 4, 2, 8, 8, requires_grad=True)
    model.decode_views(latents, clamp=False).square().mean().backward()
    assert latents.grad.abs().min() > 0


def test_whitening_changes_latents_and_nothing_else():
    model = fill_by_recipe(build()).eval()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = model.encode(images)
        restored = model.decode(before.mean)
        model.whiten(before.mean.mean(dim=(0, 2, 3)), before.mean.std(dim=(0, 2, 3), correction=0))
        after = model.encode(images)
    torch.testing.assert_close(model.decode(after.mean), restored, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-5, rtol=0)
    spread_before = before.std / before.mean.std(dim=(0, 2, 3), correction=0)[:, None, None]
    torch.testing.assert_close(after.std, spread_before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "mean"}, "posterior=mean"),
        ({"ddconfig": {"ch": 48}}, "multiple of 32"),
        ({"embed_dims": 4}, "did you mean embed_dim"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AUTO_ENCODER.resolve({"type": "AutoencoderKL", **options})


def test_type_is_registered():
    assert isinstance(build(), AutoencoderKL)

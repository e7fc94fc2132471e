"""A backbone that sees pictures only as known views with timestep 0, with flow matching: sampling and training."""

from __future__ import annotations

import pytest
import torch

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from models.weights import save_safetensors
from pipelines.sampling.pipeline import ViewsPipeline
from tests.pipelines.training.objectives.test_image_training import folder, objective
from tests.tiny import load, run, write_image_family
from utils.errors import ConfigError, DataError
from utils.registry import MODEL

assert folder  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")

TRANSFORMER = {
    "type": "WanOrbit", "image_condition": True, "in_dim": 4, "num_layers": 1, "num_heads": 2, "head_dim": 12,
    "ffn_dim": 32, "text_dim": 24, "freq_dim": 16,
}  # fmt: skip
FLOW = {"type": "FlowMatching", "shift": 3.0}


@pytest.fixture
def config(tmp_path):
    made = write_image_family(tmp_path)
    torch.manual_seed(0)
    network = MODEL.build(TRANSFORMER)
    torch.nn.init.normal_(network.proj_out.weight, std=0.1)
    save_safetensors(tmp_path / "wan.safetensors", network.state_dict())
    return {
        **made, "UNet": TRANSFORMER, "Diffusion": FLOW, "test_model": str(tmp_path / "wan.safetensors"),
        "sampler": {"type": "UniPC", "num_steps": 3}, "hold_views": "clean", "takes_prompts": True,
    }  # fmt: skip


def calls_of(pipeline):
    calls = []
    pipeline.unet.register_forward_pre_hook(
        lambda _, given, named: calls.append({"x": given[0], "t": given[1], **named}), with_kwargs=True
    )
    return calls


def test_known_views_have_timestep_0_and_no_noise(tmp_path, config):
    pipeline = ViewsPipeline.from_config(load(tmp_path, config))
    calls = calls_of(pipeline)
    known = {2: [tmp_path / "disc.png"]}
    orbits = pipeline(tmp_path / "square.png", prompts="a mug", known_views=known, seeds=3, guide_scale=2.0)
    assert len(calls) == 3
    # no image embedding, no image latent
    assert all(set(call) == {"x", "t", "y", "camera_data", "fps"} for call in calls)
    for call in calls:
        assert call["t"].shape == (2, 3)  # with guidance
        assert not call["t"][:, [0, 2]].any()
        assert (call["t"][:, 1] > 0).all()
        assert torch.equal(call["x"][:, :, [0, 2]], calls[0]["x"][:, :, [0, 2]])
    assert float(calls[0]["t"][0, 1]) == pytest.approx(1000, abs=0.01)
    assert torch.equal(orbits.latents_BCVHW[:, :, [0, 2]], calls[0]["x"][:1, :, [0, 2]])


def test_guidance_without_a_prompt_is_left_out_with_a_warning(tmp_path, config, caplog):
    pipeline = ViewsPipeline.from_config(load(tmp_path, config))
    plain = pipeline(tmp_path / "square.png", seeds=3, guide_scale=1.0)
    assert not caplog.records
    calls = calls_of(pipeline)
    guided = pipeline(tmp_path / "square.png", seeds=3, guide_scale=2.0)
    assert [len(call["x"]) for call in calls] == [1, 1, 1]  # one branch
    assert torch.equal(guided.latents_BCVHW, plain.latents_BCVHW)
    assert "guide_scale=2.0 changes nothing without a prompt" in caplog.text


def test_with_a_prompt_alone_all_views_have_the_same_timestep(tmp_path, config):
    pipeline = ViewsPipeline.from_config(load(tmp_path, config))
    calls = calls_of(pipeline)
    one, other = pipeline(prompts="a red mug", seeds=3), pipeline(prompts="a blue chair", seeds=3)
    assert all((call["t"] == call["t"][0, 0]).all() for call in calls)
    assert (one.latents_BCVHW - other.latents_BCVHW).abs().max() > 1e-4


def test_inference_writes_its_samples(tmp_path, config):
    assert len(run(load(tmp_path, config))) == 2


def test_pictures_that_the_network_would_not_see_are_refused(tmp_path, config):
    with pytest.raises(ConfigError, match=r"hold_views=trajectory: UNet.type=WanOrbit sees pictures only as known"):
        run(load(tmp_path, config, "hold_views=trajectory"))


def test_a_picture_whose_latents_are_not_numbers_is_refused(tmp_path, config, monkeypatch):
    pipeline = ViewsPipeline.from_config(load(tmp_path, config))
    monkeypatch.setattr(
        type(pipeline.autoencoder), "encode_views", lambda *_, **__: torch.full((1, 4, 1, 4, 4), torch.nan)
    )
    with pytest.raises(DataError, match=r"latents of the image.*auto_encoder.pretrained"):
        pipeline(tmp_path / "square.png")


def test_training_gives_known_views_timestep_0(folder):
    task = objective(folder, UNet=TRANSFORMER, Diffusion=FLOW, objective={"p_known": 1.0, "max_known": 2})
    batch = next(task.batches())
    assert batch.image_B1C is None
    seen = {}
    task.network.register_forward_pre_hook(
        lambda _, given, named: seen.update(x=given[0], t=given[1], **named), with_kwargs=True
    )
    loss, _ = task(batch)
    clean_BV = (seen["x"] - batch.latents_BCVHW).abs().amax(dim=(1, 3, 4)) == 0
    assert clean_BV[:, 0].all()
    assert torch.equal(seen["t"] == 0, clean_BV)
    assert set(seen) == {"x", "t", "camera_data", "fps"}
    assert torch.isfinite(loss)


def test_training_without_known_views_is_refused(folder):
    with pytest.raises(ConfigError, match=r"objective.p_known=0: UNet.type=WanOrbit sees pictures only as known"):
        objective(folder, UNet=TRANSFORMER, Diffusion=FLOW)

"""Sampling and training with packed views: four views share a frame of the latents."""

from __future__ import annotations

import pytest
import torch

import datasets  # noqa: F401 - registers
from models.weights import read_weights
from pipelines import ViewsPipeline
from pipelines.parts import check_fit
from pipelines.training.trainer import train
from tests.tiny import load, write_head
from tests.tiny_orbits import SIZE, training_config, write_turning_orbits
from tests.tiny_wan import AUTOENCODER, UNET, write_wan
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
VIEWS, FRAMES = 8, 3
PACKED_UNET = {**UNET, "packed": True, "temporal_rope": True}
IMAGE_MODEL = {"UNet": {**PACKED_UNET, "image_condition": True}, "hold_views": "clean", "takes_prompts": True}


def of_wan(folder):
    """The sections of a published folder, with packed views."""
    made = write_wan(folder / "wan")
    return {**made, "UNet": PACKED_UNET, "auto_encoder": {**made["auto_encoder"], "packed": True}}


def sampling_config(folder, **changes):
    return {
        **of_wan(folder),
        "TASK_TYPE": "inference_text2video_entrance",
        "log_dir": str(folder / "out"),
        "resolution": [SIZE, SIZE],
        "cameras": {"num_views": VIEWS},
        "device": "cpu",
        "guide_scale": 3.0,
        **changes,
    }


def calls_of(pipeline):
    calls = []
    pipeline.unet.register_forward_pre_hook(
        lambda _, given, named: calls.append({"x": given[0], "t": given[1], **named}), with_kwargs=True
    )
    return calls


def test_a_folder_of_wan_samples_packed_views_and_low_memory_changes_nothing(tmp_path):
    pipeline = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path)))
    calls = calls_of(pipeline)
    orbits = pipeline("a red mug", seeds=1)
    assert orbits.views_BVCHW.shape == (1, VIEWS, 3, SIZE, SIZE)
    assert orbits.latents_BCVHW.shape == (1, 4, FRAMES, 4, 4)
    assert calls[0]["x"].shape == (2, 4, FRAMES, 4, 4)  # with guidance
    assert calls[0]["camera_data"].shape == (2, VIEWS, 16)
    some = pipeline.decode(orbits.latents_BCVHW, views=[5, 0])
    torch.testing.assert_close(some, orbits.views_BVCHW[:, [5, 0]])
    pipeline.save(tmp_path / "saved")
    assert ViewsPipeline.from_folder(tmp_path / "saved").autoencoder.config.packed
    poor = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path, low_memory=True)))
    assert torch.equal(poor("a red mug", seeds=1).views_BVCHW, orbits.views_BVCHW)


def test_3d_aware_sampling_decodes_and_encodes_whole_orbits(tmp_path):
    head = {"reconstruction": write_head(tmp_path)["reconstruction"] | {"refine_at": [0.5]}, "refine": True}
    pipeline = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path, **head)))
    orbits = pipeline("a red mug", seeds=1)
    assert orbits.refined_views_BVCHW.shape == orbits.views_BVCHW.shape == (1, VIEWS, 3, SIZE, SIZE)
    assert not torch.allclose(orbits.refined_latents_BCVHW, orbits.latents_BCVHW, atol=1e-3)
    refiner = pipeline.reconstruction.refiner(orbits.c2w_V44, [torch.Generator().manual_seed(0)])
    with torch.no_grad():
        inputs = pipeline.decode(orbits.latents_BCVHW)[:, pipeline.reconstruction.config.views_of(VIEWS)]
        drawn = pipeline.reconstruction.redrawn(inputs, orbits.c2w_V44)
        expected = pipeline.autoencoder.encode_views(drawn)
    torch.testing.assert_close(refiner(orbits.latents_BCVHW, 1), expected, atol=1e-4, rtol=0)


def test_a_picture_stays_view_0_and_no_other_view_can_be_known(tmp_path):
    config = sampling_config(tmp_path, TASK_TYPE="inference_i2vgen_entrance", **IMAGE_MODEL)
    pipeline = ViewsPipeline.from_config(load(tmp_path, config))
    calls = calls_of(pipeline)
    picture = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    orbits = pipeline(picture, prompts="a red mug", seeds=1)
    known = pipeline.autoencoder.encode_views(picture[None, None])
    assert all(torch.equal(call["x"][:1, :, :1], known) for call in calls)
    assert not any(call["t"][:, 0].any() for call in calls)
    assert all((call["t"][:, 1:] > 0).all() for call in calls)
    assert torch.equal(orbits.latents_BCVHW[:, :, :1], known)
    torch.testing.assert_close(orbits.views_BVCHW[:, :1], pipeline.decode(known))
    other = pipeline(1 - picture, prompts="a red mug", seeds=1)
    assert not torch.allclose(other.latents_BCVHW[:, :, 1:], orbits.latents_BCVHW[:, :, 1:], atol=1e-4)
    with pytest.raises(ConfigError, match=r"known_views: only view 0 can be known.*set auto_encoder.packed=false"):
        pipeline(picture, known_views={2: [picture]}, seeds=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"num_views": 6}}, "cameras: 6 views do not fill frames of 4 views .*; use 4 or 8 views"),
        ({"UNet": UNET}, "has 4 view.*UNet.type=WanOrbit takes 1; set auto_encoder.packed and UNet.packed"),
        ({"auto_encoder": AUTOENCODER}, "has 1 view.*UNet.type=WanOrbit takes 4; set auto_encoder.packed and"),
        (
            {"known_views": [{"image": "b.png", "azimuth_deg": 90}], **IMAGE_MODEL},
            "known_views: only view 0 can be known",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_loaded(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_fit(load(tmp_path, sampling_config(tmp_path, **changes)), CPU)


def test_cameras_of_a_call_that_do_not_fit_are_refused(tmp_path):
    pipeline = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path)))
    c2w_V44 = pipeline.cfg.cameras.c2w()
    with pytest.raises(ConfigError, match="c2w_V44: 7 views do not fill frames of 4 views"):
        pipeline("a red mug", c2w_V44=c2w_V44[:7])
    assert pipeline("a red mug", c2w_V44=c2w_V44[:4]).views_BVCHW.shape[1] == 4


def training(folder, **changes):
    """Training on two orbits of eight views."""
    changes = {
        "TASK_TYPE": "train_t2v_entrance", "frame_lens": [VIEWS], "batch_sizes": {str(VIEWS): 2}, "num_steps": 2,
        "cameras": {"num_views": VIEWS}, "cache_latents": True, **of_wan(folder), **changes,
    }  # fmt: skip
    config = training_config(folder, **changes)
    config["vid_dataset"]["num_views"] = VIEWS
    return config


def task_of(cfg):
    return cfg.training.build(cfg=cfg, device=CPU)


@pytest.fixture
def folder(tmp_path):
    write_turning_orbits(tmp_path / "orbits", elevations=(0.0, 20.0), num_views=VIEWS)
    return tmp_path


def test_it_trains_from_a_cache_of_packed_latents_with_previews(folder):
    preview = {"type": "VisualTrainTextImageToVideo", "prompts": ["a disc"], "guide_scale": 2.0}
    cfg = load(folder, training(folder, visual_train=preview, viz_interval=2, lr=0.05))
    final = train(cfg)
    state = read_weights(final, option="test").state
    assert state["ray_embedding.weight"].shape == (24, 4 * 6 * 4)
    assert state["ray_embedding.weight"].abs().sum() > 0
    assert list((folder / "run").rglob("a-disc_00000002.png"))
    trained = load(folder, sampling_config(folder, test_model=str(final)))
    assert ViewsPipeline.from_config(trained)("a disc", seeds=1).views_BVCHW.isfinite().all()


def test_the_cache_has_packed_latents_and_is_made_again_for_others(folder, caplog):
    caplog.set_level("INFO")
    task = task_of(load(folder, training(folder)))
    cached = task.data.cached_latents()
    rows = cached.rows(torch.tensor([0, 1]))
    views = torch.stack([task.dataset[index]["views_VCHW"] for index in (0, 1)])
    expected = task.autoencoder.encode_views(views)
    assert expected.shape == (2, 4, FRAMES, 4, 4)
    torch.testing.assert_close(rows.mean_BCVHW.float(), expected, atol=2e-3, rtol=2e-3)  # half precision
    assert rows.c2w_BV44.shape == (2, VIEWS, 4, 4)
    single = write_wan(folder / "wan")
    other = task_of(load(folder, training(folder, UNet=UNET, auto_encoder=single["auto_encoder"])))
    rows = other.data.cached_latents().rows(torch.tensor([0]))
    assert "views_per_frame changed" in caplog.text
    assert rows.mean_BCVHW.shape == (1, 4, VIEWS, 4, 4)


def test_only_view_0_is_known_in_training(folder):
    known = {"objective": {"p_known": 1.0, "max_known": 1}, "TASK_TYPE": "train_i2v_entrance", **IMAGE_MODEL}
    task = task_of(load(folder, training(folder, **known)))
    seen = {}
    task.network.register_forward_pre_hook(
        lambda _, given, named: seen.update(x=given[0], t=given[1], **named), with_kwargs=True
    )
    batch = next(task.batches())
    loss, _ = task(batch)
    clean_BF = (seen["x"] - batch.latents_BCVHW).abs().amax(dim=(1, 3, 4)) == 0
    assert clean_BF.tolist() == [[True, False, False]] * 2
    assert torch.equal(seen["t"] == 0, clean_BF)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_lens": [6], "batch_sizes": {"6": 2}}, "frame_lens: 6 views do not fill frames of 4 views"),
        (
            {"cameras": {"num_views": 6}, "visual_train": {"type": "VisualTrainTextImageToVideo"}},
            "cameras, for visual_train: 6 views do not fill",
        ),
        (
            {"objective": {"p_known": 1.0, "max_known": 2}, "TASK_TYPE": "train_i2v_entrance", **IMAGE_MODEL},
            r"objective.max_known=2: only view 0 can be known.*objective.max_known=1",
        ),
        ({"UNet": UNET}, "set auto_encoder.packed and UNet.packed to the same value"),
    ],
)
def test_training_refuses_what_does_not_fit(folder, changes, message):
    config = training(folder, **changes)
    config["vid_dataset"]["num_views"] = config["frame_lens"][0]
    with pytest.raises(ConfigError, match=message):
        task_of(load(folder, config))


def test_training_refuses_rolled_views(folder):
    config = training(folder)
    config["vid_dataset"]["random_start_view"] = True
    with pytest.raises(ConfigError, match=r"random_start_view=true: latents .* set it to false, or set auto_encoder"):
        task_of(load(folder, config))

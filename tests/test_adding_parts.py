"""A backbone, two encoders, a data set, a reconstruction, a fit and a sampler, made by README's words alone.

Each is a class with what README lists and nothing else; it must sample and train.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from datasets.base import OrbitData, StoredOrbit
from models.backbone import Backbone
from models.encoders import Autoencoder, AutoencoderConfig, Embedder, EmbedderConfig
from models.gaussians.files import read_ply
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from models.weights import read_weights, save_safetensors
from pipelines import ViewsPipeline
from pipelines.reconstruction.base import Reconstructor
from pipelines.reconstruction.fitting.base import ObjectFit, PixelBatch, Prediction
from pipelines.sampling.sampler import OrbitSampler
from pipelines.training.trainer import train
from tests.tiny import load, write_family
from tests.tiny_orbits import NUM_VIEWS, SIZE, training_config, write_orbits
from tests.tiny_views import sphere_views, write_transforms
from tools import reconstruct
from utils.cameras import orbit_cameras
from utils.errors import ConfigError
from utils.registry import AUTO_ENCODER, DATASETS, EMBEDDER, FITS, MODEL, RECONSTRUCTORS, SAMPLERS

pytestmark = pytest.mark.usefixtures("one_thread")


@MODEL.register
class OneConvolution(Backbone):
    """Looks at each pixel of the latents by itself, and at the camera."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        width: int = 8

    def __init__(self, config):
        super().__init__(config)
        self.inner, self.outer = nn.Conv3d(4, config.width, 1), nn.Conv3d(config.width, 4, 1)
        self.camera = nn.Linear(16, config.width)

    def forward(self, x, t, y, *, camera_data, fps):
        seen_BCV = self.camera(camera_data).transpose(1, 2)
        return self.outer(torch.tanh(self.inner(x) + seen_BCV[..., None, None]))


@AUTO_ENCODER.register
class Averages(Autoencoder):
    """The latent is the mean of 4 x 4 pixels, and a channel of zeros."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AutoencoderConfig):
        @property
        def reduction(self):
            return 4

        @property
        def latent_channels(self):
            return 4

    def __init__(self, config):
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(()))  # the code around asks an autoencoder for its precision

    def encode(self, image_B3HW):
        mean_B3HW = functional.avg_pool2d(image_B3HW * self.gain, 4)
        mean_B4HW = functional.pad(mean_B3HW, (0, 0, 0, 0, 0, 1))
        return SimpleNamespace(mean=mean_B4HW, std=torch.full_like(mean_B4HW, 0.1))

    def decode(self, latent_BCHW):
        return functional.interpolate(latent_BCHW[:, :3] / self.gain, scale_factor=4.0)


@EMBEDDER.register
class Letters(Embedder):
    """A token for each of the first letters."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EmbedderConfig):
        length: int = 6

        def words_shape(self):
            return self.length, 24

    def encode_text(self, prompts):
        numbers_BL = torch.zeros(len(prompts), self.config.length)
        for row, prompt in zip(numbers_BL, prompts, strict=True):
            letters = [ord(letter) % 24 for letter in prompt[: self.config.length]]
            row[: len(letters)] = torch.tensor(letters, dtype=torch.float32)
        return functional.one_hot(numbers_BL.long(), 24).float()

    def identity(self, *, with_images):
        return {"text_weights": "letters"}


@DATASETS.register
class Squares(OrbitData):
    """Drawn when they are read."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OrbitData.Config):
        num_objects: int = 6

    def __init__(self, config):
        super().__init__(config)
        self.object_ids = [f"squares/{number}" for number in range(config.num_objects)]

    def stored(self, index):
        rgba_VHW4 = np.zeros((self.config.num_views, SIZE, SIZE, 4), dtype=np.uint8)
        rgba_VHW4[:, 8:-8, 8:-8] = (40 * index, 200, 30, 255)
        c2w_V44 = orbit_cameras(num_views=self.config.num_views, elevation_deg=15, radius=2).numpy()
        return StoredOrbit(rgba_VHW4, c2w_V44, 39.6)

    def caption(self, index):
        return f"square {index}"


@RECONSTRUCTORS.register
class OneBall(Reconstructor):
    """One Gaussian, of the mean colour of the views."""

    def world_gaussians(self, views_BVCHW, c2w_V44):
        B = len(views_BVCHW)
        return Gaussians(
            means_BN3=torch.zeros(B, 1, 3),
            quats_BN4=torch.tensor([1.0, 0, 0, 0]).expand(B, 1, 4),
            scales_BN3=torch.full((B, 1, 3), 0.2),
            opacities_BN1=torch.ones(B, 1, 1),
            colors_BN3=views_BVCHW.float().mean(dim=(1, 3, 4))[:, None],
        )


@FITS.register(name="one_ball")
class OneBallFit(ObjectFit):
    """One Gaussian in the middle of the hull, whose size, opacity and colour are fitted."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ObjectFit.Config):
        num_steps: int = 40
        rate: float = 0.1

    def __init__(self, config, *, views, hull):
        super().__init__(config, views=views, hull=hull)
        inside = (hull.distance_XYZ < 0).nonzero().float().mean(dim=0)
        self.register_buffer("middle_3", hull.low_3 + hull.voxel * inside)
        self.log_scale, self.opacity = nn.Parameter(torch.tensor(-2.0)), nn.Parameter(torch.tensor(2.0))
        self.color_3 = nn.Parameter(torch.zeros(3))

    def parameter_groups(self):
        return [{"params": [self.log_scale, self.opacity, self.color_3], "lr": self.config.rate}]

    def draw(self, step, generator):
        number = torch.randint(len(self.drawn_views), (1,), generator=generator)
        height, width = self.views.size
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        view_R = self.drawn_views[number].expand(height * width)
        return PixelBatch(view_R=view_R, row_R=row.flatten(), column_R=column.flatten(), patch=(1, height, width))

    def predict(self, pixels, step, generator):
        view = pixels.view_R[:1]
        shown = self._drawn(self.views.c2w_V44[view], self.views.K_V33[view], size=self.views.size, background=0.0)
        colors_R3 = shown.colors_BV3HW[0, 0].flatten(1).T
        return Prediction(colors_R3=colors_R3, alphas_R1=shown.alphas_BV1HW[0, 0].flatten(1).T, penalty=torch.zeros(()))

    @torch.no_grad()
    def render(self, c2w_V44, K_V33, *, size, background):
        return self._drawn(c2w_V44, K_V33, size=size, background=background)

    def _drawn(self, c2w_V44, K_V33, *, size, background):
        return render(self.gaussians(), c2w_V44[None], K_V33, size=size, background=background)

    def gaussians(self):
        return Gaussians(
            means_BN3=self.middle_3[None, None],
            opacities_BN1=self.opacity.sigmoid().view(1, 1, 1),
            scales_BN3=self.log_scale.exp().expand(1, 1, 3),
            quats_BN4=torch.tensor([[[1.0, 0, 0, 0]]]),
            colors_BN3=self.color_3.sigmoid()[None, None],
        )


@SAMPLERS.register
class OneJump(OrbitSampler):
    """Takes x0 of the first step for the result of every step."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OrbitSampler.Config):
        num_steps: int = 2

    def __call__(self, noise_BCVHW, run):
        x_t = noise_BCVHW
        refine_at = run.refiner.steps(self.config.num_steps) if run.refiner else set()
        for step in range(self.config.num_steps):
            branches = run.predict_x0(x_t, 500, guided=run.guidance.acts_at(step, self.config.num_steps))
            x_t = run.refined(branches, step) if step in refine_at else run.mixed(branches)
            if run.on_step:
                run.on_step()
        return run.shown(x_t)


def family(tmp_path, **changes):
    """Published-style parts, with those of this file in their places."""
    return write_family(tmp_path) | changes


def test_a_backbone_samples_trains_and_samples_again(tmp_path):
    write_orbits(tmp_path / "orbits")
    network = {"type": "OneConvolution", "width": 16}
    changes = {"UNet": network, "TASK_TYPE": "train_t2v_entrance", "num_steps": 40, "lr": 1e-2, "log_interval": 1}
    previews = {"visual_train": {"type": "VisualTrainTextImageToVideo", "prompts": ["a red disc"]}, "viz_interval": 40}
    final = train(load(tmp_path, training_config(tmp_path, **changes, **previews)))
    assert (tmp_path / "run" / "previews" / "a-red-disc_00000040.png").is_file()
    trained = read_weights(final, option="test").state
    assert trained["inner.weight"].shape == (16, 4, 1, 1, 1)
    pipeline = ViewsPipeline.from_config(load(tmp_path, family(tmp_path, UNet=network, test_model=str(final))))
    orbits = pipeline("a red mug", seeds=1)
    assert orbits.views_BVCHW.shape == (1, 3, 3, 32, 32)
    assert bool(orbits.views_BVCHW.isfinite().all())


def test_a_backbone_is_asked_before_it_is_built_what_it_cannot_do(tmp_path):
    config = family(tmp_path, UNet={"type": "OneConvolution"}, sampler={"type": "DDIM", "reuse_steps": 2})
    with pytest.raises(ConfigError, match=r"sampler\.reuse_steps is above 1, but UNet\.type=OneConvolution"):
        ViewsPipeline.from_config(load(tmp_path, config))
    with pytest.raises(ConfigError, match=r"UNet\.wdth is unknown to OneConvolution; did you mean width\?"):
        load(tmp_path, family(tmp_path, UNet={"type": "OneConvolution", "wdth": 3}))


@pytest.mark.parametrize("cached", [False, True])
def test_an_autoencoder_and_a_text_encoder_train_and_sample(tmp_path, cached):
    write_orbits(tmp_path / "orbits")
    encoders = {"auto_encoder": {"type": "Averages"}, "embedder": {"type": "Letters"}}
    changes = {"TASK_TYPE": "train_t2v_entrance", "num_steps": 2, "cache_latents": cached, "refine": False, **encoders}
    final = train(load(tmp_path, training_config(tmp_path, **changes)))
    cfg = load(tmp_path, family(tmp_path, test_model=str(final), **encoders))
    pipeline = ViewsPipeline.from_config(cfg)
    orbits = pipeline("a red mug", seeds=1)
    assert orbits.latents_BCVHW.shape == (1, 4, 3, 8, 8)
    assert orbits.views_BVCHW.shape == (1, 3, 3, 32, 32)
    pipeline.save(tmp_path / "saved")
    again = ViewsPipeline.from_folder(tmp_path / "saved", "auto_encoder.pretrained=null")
    torch.testing.assert_close(again("a red mug", seeds=1).views_BVCHW, orbits.views_BVCHW, atol=1e-2, rtol=0)


@pytest.mark.parametrize("cached", [False, True])
def test_a_data_set_trains(tmp_path, caplog, cached):
    caplog.set_level("INFO")
    data = {"type": "Squares", "resolution": [SIZE, SIZE], "num_views": NUM_VIEWS}
    changes = {"vid_dataset": data, "TASK_TYPE": "train_t2v_entrance", "num_steps": 2, "cache_latents": cached}
    final = train(load(tmp_path, training_config(tmp_path, **changes)))
    assert read_weights(final, option="test").step == 2
    assert ("encoding 6 orbits" in caplog.text) == cached


@pytest.mark.parametrize("results", ["plain", "both"])
def test_a_reconstruction_makes_objects_and_refines(tmp_path, results):
    section = {"type": "OneBall", "render_size": 32, "refine_at": [0.5], "background": 1.0}
    config = family(tmp_path, reconstruction=section, refine=results == "both", results=results)
    pipeline = ViewsPipeline.from_config(load(tmp_path, config))
    orbits = pipeline("a red mug", seeds=1)
    shown = orbits.best_views_BVCHW.mean(dim=(1, 3, 4))
    torch.testing.assert_close(orbits.gaussians.colors_BN3[:, 0], shown, atol=1e-5, rtol=0)
    if results == "both":
        assert not torch.equal(orbits.views_BVCHW, orbits.refined_views_BVCHW)
    pipeline.save(tmp_path / "saved")
    again = ViewsPipeline.from_folder(tmp_path / "saved")("a red mug", seeds=1)
    assert again.gaussians is not None


def test_a_generator_trains_beside_a_reconstruction_that_cannot_be_tuned(tmp_path):
    write_orbits(tmp_path / "orbits")
    changes = {"reconstruction": {"type": "OneBall"}, "TASK_TYPE": "train_t2v_entrance", "num_steps": 1}
    previews = {"visual_train": {"type": "VisualTrainTextImageToVideo", "prompts": ["a red disc"]}}
    assert train(load(tmp_path, training_config(tmp_path, **changes, **previews))).is_file()
    save_safetensors(tmp_path / "unet.safetensors", {})
    tuning = training_config(tmp_path, **changes, refine=True, log_dir=str(tmp_path / "tuned"))
    with pytest.raises(ConfigError, match=r"does not train the head of reconstruction\.type=OneBall; use Gaussian"):
        train(load(tmp_path, tuning | {"test_model": str(tmp_path / "run" / "t2v.safetensors")}))


@pytest.mark.parametrize("refine", [False, True])
def test_a_sampler_samples(tmp_path, refine):
    reconstruction = {"type": "OneBall", "render_size": 32, "refine_at": [0.5]}
    config = family(tmp_path, sampler={"type": "OneJump"}, reconstruction=reconstruction, refine=refine)
    pipeline, calls = ViewsPipeline.from_config(load(tmp_path, config)), []
    orbits = pipeline("a red mug", seeds=1, on_step=lambda: calls.append(1))
    assert len(calls) == pipeline.steps_per_call == (4 if refine else 2)
    assert (orbits.refined_views_BVCHW is not None) == refine


def test_a_fit_reconstructs_a_folder_of_views(tmp_path, capsys):
    """By the command, with its options, its state and its files."""
    folder = write_transforms(tmp_path / "ball", sphere_views(num_views=6, size=24, radius=0.4))
    assert reconstruct.main([str(folder), "--method", "one_ball", "--out", str(tmp_path / "out"), "rate=0.2",
                             "hull_grid=16", "--without", "glb", "turntable", "html"]) == 0  # fmt: skip
    assert {path.name for path in (tmp_path / "out" / "ball").iterdir()} == {
        "gaussians.ply", "gaussians.splat", "fit.png", "result.json"
    }  # fmt: skip
    result = json.loads((tmp_path / "out" / "ball" / "result.json").read_text())
    assert result["method"]["type"] == "one_ball"
    assert result["method"]["rate"] == 0.2
    one = read_ply(tmp_path / "out" / "ball" / "gaussians.ply")
    assert float(one.means_BN3.norm()) < 0.05
    assert 0.1 < float(one.scales_BN3.mean()) < 0.4
    with pytest.raises(ConfigError, match=r"rte is unknown to one_ball; did you mean rate\?"):
        reconstruct.main([str(folder), "--method", "one_ball", "--out", str(tmp_path / "out"), "rte=0.2"])

"""3D-aware sampling on untrained tiny models: geometry of the round trip, results, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from models.weights import HEAD_PREFIX, read_weights, save_published
from pipelines.placement import Placement
from pipelines.reconstruction.base import Workshop
from pipelines.reconstruction.loading import load_network_of
from pipelines.sampling.pipeline import ViewsPipeline
from tests.models.gaussians.test_splatting import random_gaussians
from tests.tiny import UNET, load, run, write_config, write_family, write_head, write_image_family
from tests.tiny_gaussians import SMALL
from tools.random_weights import write_random_weights
from utils.cameras import cameras_at, head_cameras, head_to_world, intrinsics, opencv_to_opengl, orbit_cameras
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.registry import RECONSTRUCTORS

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")
REFINED = {**UNET, "use_lgm_refine": True}
FEW_VIEWS = "cameras.num_views=4"  # those that the head sees


@pytest.fixture
def family(tmp_path):
    return write_family(tmp_path) | write_head(tmp_path) | {"UNet": REFINED, "assets": SMALL}


def pipeline_of(tmp_path, family, *overrides):
    return ViewsPipeline.from_config(load(tmp_path, family, *overrides))


def test_objects_keep_their_looks_on_the_way_from_the_heads_frame_to_the_world():
    scene = replace(random_gaussians(300, scale=0.1), quats_BN4=torch.randn(1, 300, 4) * 0.7)
    c2w_V44 = cameras_at(torch.tensor([30.0, 100.0, 250.0]), torch.tensor([15.0, -20.0, 40.0]), torch.full((3,), 1.8))
    options = {"size": (48, 48), "background": 1.0, "backend": "torch"}
    poses_V44 = opencv_to_opengl(head_cameras(c2w_V44).poses_V44)
    in_head = render(scene, poses_V44[None], intrinsics(39.6, 48), **options)
    in_world = render(scene.moved(head_to_world(c2w_V44)), c2w_V44[None], intrinsics(39.6, 48), **options)
    torch.testing.assert_close(in_world.colors_BV3HW, in_head.colors_BV3HW, atol=2e-3, rtol=0)
    unit = scene.moved(head_to_world(c2w_V44)).quats_BN4.norm(dim=-1)
    torch.testing.assert_close(unit, torch.ones_like(unit))


def test_steps_are_shares_of_the_way():
    section = RECONSTRUCTORS.section({"type": "GaussianReconstruction"})
    config, refiner = section.options, section.build(network=None, workshop=None)
    assert refiner.refine_steps(50) == {20, 30, 40}
    assert refiner.refine_steps(25) == {10, 15, 20}
    assert refiner.refine_steps(10) == {4, 6, 8}
    assert config.fov == pytest.approx(39.6, abs=0.01)


class Copies:
    """An autoencoder whose latents are the views."""

    def __init__(self):
        self.parameter = torch.zeros(())

    def parameters(self):
        return iter([self.parameter])

    def decode_views(self, latents_BCVHW, *, views_BI, chunk):
        return latents_BCVHW.transpose(1, 2)[:, views_BI]

    def encode_views(self, views_BVCHW, *, generator, chunk):
        return views_BVCHW.transpose(1, 2)


def test_a_refined_orbit_shows_the_object_that_the_head_sees():
    scene = random_gaussians(400, scale=0.05)

    class Knows:
        """A head that answers with one object, given in the frame of the first camera, and remembers its input."""

        def __call__(self, views_BV9HW):
            self.seen = views_BV9HW
            return scene

        def parameters(self):
            return iter([torch.zeros(())])

    c2w_V44 = orbit_cameras(num_views=8, elevation_deg=15.0, radius=2.0)
    section = RECONSTRUCTORS.section({"type": "GaussianReconstruction", "render_size": 64, "background": 1.0})
    head, config = Knows(), section.options
    workshop = Workshop(autoencoder=Copies(), placement=Placement(torch.device("cpu")), decode_chunk=3)
    refiner = section.build(network=head, workshop=workshop).refiner(c2w_V44, [])
    x0_BCVHW = torch.rand(1, 3, 8, 64, 64)
    refined_BCVHW = refiner(x0_BCVHW, 4)
    expected = render(
        scene.moved(head_to_world(c2w_V44)),
        c2w_V44[None],
        intrinsics(config.fov, 64),
        size=(64, 64),
        background=1.0,
        backend="torch",
    )
    torch.testing.assert_close(refined_BCVHW.transpose(1, 2), expected.colors_BV3HW, atol=2e-3, rtol=0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colors = head.seen[0, :, :3] * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(colors, x0_BCVHW[0].transpose(0, 1)[[0, 2, 4, 6]], atol=1e-5, rtol=0)


def test_writes_both_results_and_gaussians(tmp_path, family):
    folders = run(load(tmp_path, family | {"prompts": ["a red mug"]}))
    found = {str(path.relative_to(folders[0])) for path in folders[0].rglob("*") if path.is_file()}
    numbers = [f"{number:03d}.png" for number in range(8)]
    views = {f"{folder}/{name}" for folder in ("views", "views_gs") for name in numbers}
    assert views | {"orbit.mp4", "sheet.png", "orbit_gs.mp4", "sheet_gs.png"} <= found
    settings = json.loads((folders[0] / "result.json").read_text())["settings"]
    assert (settings["results"], settings["reconstruction"]["render_size"]) == ("both", 32)


def test_results_agree_with_each_other(tmp_path, family):
    pipeline = pipeline_of(tmp_path, family, FEW_VIEWS)
    calls = []
    both = pipeline("a red mug", on_step=lambda: calls.append(1))
    assert len(calls) == pipeline.steps_per_call == 5 + 2  # refined at steps 2, 3 and 4
    plain, refined = (pipeline("a red mug", results=name) for name in ("plain", "refined"))
    assert torch.equal(both.latents_BCVHW, plain.latents_BCVHW)
    assert torch.equal(both.refined_latents_BCVHW, refined.latents_BCVHW)
    assert plain.refined_views_BVCHW is None
    assert not torch.equal(both.views_BVCHW, both.refined_views_BVCHW)
    assert torch.equal(both.best_views_BVCHW, both.refined_views_BVCHW)
    assert isinstance(both.gaussians, Gaussians)
    torch.testing.assert_close(both.gaussians.means_BN3, refined.gaussians.means_BN3)
    assert not torch.allclose(both.gaussians.means_BN3, plain.gaussians.means_BN3)
    assert set(both.seconds) == {"conditions", "denoise", "decode", "refine", "reconstruct"}


@pytest.mark.parametrize("guidance", ["after", "before"])
def test_a_sample_is_the_same_alone_and_in_a_batch(tmp_path, family, guidance):
    options = (f"reconstruction.guidance={guidance}", "auto_encoder.posterior=sample", "sampler.num_steps=3")
    pipeline = pipeline_of(tmp_path, family, FEW_VIEWS, *options)
    prompts, seeds = ["a red mug", "a blue chair"], [3, 4]
    together = pipeline(prompts, seeds=seeds)
    alone = pipeline(prompts[1], seeds=seeds[1])
    # Networks round differently in other batches, and an alpha near 1/255 then counts or not, in one pixel.
    one, other = together.refined_views_BVCHW
    torch.testing.assert_close(other, alone.refined_views_BVCHW[0], atol=1 / 255, rtol=0)
    assert float((one - other).abs().max()) > 10 / 255


def test_image_models_refine_too(tmp_path):
    family = write_image_family(tmp_path)
    family |= write_head(tmp_path)
    family["UNet"] = {**family["UNet"], "use_lgm_refine": True}
    orbits = pipeline_of(tmp_path, family)(str(tmp_path / "square.png"))
    assert orbits.refined_views_BVCHW.shape == (1, 8, 3, 32, 32)


def test_the_head_may_lie_in_the_generators_file(tmp_path, family):
    head = read_weights(tmp_path / "model.safetensors", option="test").state
    unet = read_weights(tmp_path / "t2v_00000007.pth", option="test").state
    both = unet | {f"{HEAD_PREFIX}{name}": value.float() for name, value in head.items()}
    save_published(tmp_path / "tuned_00000009.pth", both, 9)
    separate = pipeline_of(tmp_path, family, FEW_VIEWS)("a red mug")
    overrides = (f"test_model={tmp_path / 'tuned_00000009.pth'}", "reconstruction.pretrained=null", FEW_VIEWS)
    joined = pipeline_of(tmp_path, family, *overrides)("a red mug")
    assert torch.equal(joined.refined_latents_BCVHW, separate.refined_latents_BCVHW)


def test_a_plain_file_without_a_head_samples_views_only(tmp_path, family):
    orbits = pipeline_of(tmp_path, family, "reconstruction.pretrained=null", "UNet.use_lgm_refine=false")("a red mug")
    assert orbits.gaussians is None
    assert orbits.refined_views_BVCHW is None


def test_gaussians_come_without_3d_aware_sampling_too(tmp_path, family):
    orbits = pipeline_of(tmp_path, family, "UNet.use_lgm_refine=false")("a red mug")
    assert orbits.refined_views_BVCHW is None
    assert orbits.gaussians.means_BN3.shape == (1, 4 * 16 * 16, 3)
    assert orbits.gaussians_fov_deg == pytest.approx(39.6, abs=0.01)


def test_an_empty_section_switches_the_head_off(tmp_path, family):
    orbits = pipeline_of(tmp_path, family, "reconstruction={}", "UNet.use_lgm_refine=false")("a red mug")
    assert orbits.gaussians is None


def test_a_saved_pipeline_opens_again_with_its_head(tmp_path, family):
    pipeline_of(tmp_path, family).save(tmp_path / "saved")
    opened = ViewsPipeline.from_folder(tmp_path / "saved")
    assert load_config(tmp_path / "saved" / "config.yaml").reconstruction.pretrained == "head.safetensors"
    assert opened.reconstruction is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cameras.num_views=3"], "^3 views are sampled, but .* needs 4 evenly spaced .*set refine=false"),
        (["reconstruction.input_views=[0,2,4,9]"], r"input_views=\[0, 2, 4, 9\], but 8 views are sampled"),
        (["reconstruction.input_views=[0,2]"], "the head takes 4 views"),
        (["resolution=[64,64]"], "takes views of 32 x 32"),
        (["reconstruction={}"], "needs a section reconstruction"),
        (["reconstruction.guidance=both"], "guidance=both is unknown; valid: after, before"),
        (["reconstruction.head.splat_size=8"], "splat_size=8"),
        (["reconstruction.refine_at=[1.5]"], "refine_at must lie"),
        (["results=best"], "results=best is unknown; valid: plain, refined, both"),
        (["rasterizer=gsplat"], "rasterizer=gsplat needs a CUDA device"),
    ],
)
def test_refuses_settings(tmp_path, family, overrides, message):
    with pytest.raises(ConfigError, match=message):
        pipeline_of(tmp_path, family, *overrides)


@pytest.mark.parametrize("overrides", [["cameras.num_views=3"], ["resolution=[64,64]"]])
def test_without_refinement_what_the_head_cannot_take_is_sampled_without_it(tmp_path, family, overrides, caplog):
    orbits = pipeline_of(tmp_path, family, "UNet.use_lgm_refine=false", *overrides)("a red mug")
    assert orbits.gaussians is None
    [message] = [record.getMessage() for record in caplog.records if "no Gaussians" in record.getMessage()]
    assert "input_views" not in message  # nobody set it


def test_named_input_views_that_are_not_sampled_are_refused_without_refinement_too(tmp_path, family):
    with pytest.raises(ConfigError, match=r"input_views=\[0, 2, 4, 9\], but 8 views are sampled.*reconstruction={}"):
        pipeline_of(tmp_path, family, "UNet.use_lgm_refine=false", "reconstruction.input_views=[0,2,4,9]")


def test_refuses_weights_that_are_no_head(tmp_path, family):
    with pytest.raises(DataError, match=r"contains no Gaussian head \(lgm_big"):
        pipeline_of(tmp_path, family, "reconstruction.pretrained=null")
    with pytest.raises(DataError, match="contains no Gaussian head"):
        pipeline_of(tmp_path, family, f"reconstruction.pretrained={tmp_path / 't2v_00000007.pth'}")
    with pytest.raises(DataError, match="does not fit LGM"):
        pipeline_of(tmp_path, family, "reconstruction.head.up_channels=[64,32]")


def test_refuses_refined_results_of_a_call_without_a_head(tmp_path, family):
    pipeline = pipeline_of(tmp_path, family, "reconstruction={}", "UNet.use_lgm_refine=false")
    with pytest.raises(ConfigError, match="results=refined needs a Gaussian head"):
        pipeline("a red mug", results="refined")


def test_a_call_with_other_cameras_is_checked(tmp_path, family):
    pipeline = pipeline_of(tmp_path, family)
    three_V44 = orbit_cameras(num_views=3, elevation_deg=15.0, radius=2.0)
    with pytest.raises(ConfigError, match="3 views are sampled"):
        pipeline("a red mug", c2w_V44=three_V44)
    assert pipeline("a red mug", c2w_V44=three_V44, results="plain").gaussians is None


def test_no_section_no_head(tmp_path):
    cfg = load_config(write_config(tmp_path / "run.yaml", write_family(tmp_path)))
    assert load_network_of(cfg) is None


def test_random_weights_come_with_a_head(tmp_path, family):
    section = {**family["reconstruction"], "pretrained": None}
    overrides = write_random_weights(load(tmp_path, family | {"reconstruction": section}), tmp_path)
    assert pipeline_of(tmp_path, family, FEW_VIEWS, *overrides)("a red mug").gaussians.means_BN3.isfinite().all()

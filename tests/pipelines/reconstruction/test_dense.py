"""The dense head in sampling and in fits: all views in, Gaussians in the world, and what is refused."""

import re

import pytest
import torch

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from models.gaussians.scene import Gaussians
from models.weights import save_safetensors
from pipelines.placement import Placement
from pipelines.reconstruction.base import Workshop
from pipelines.reconstruction.dense import without_faint
from pipelines.reconstruction.fitting.loop import fit_object, ready_methods
from tests.tiny import UNET, load, run, write_family
from tests.tiny_gaussians import SMALL
from tests.tiny_views import sphere_views
from tools.reconstruct import main as reconstruct
from utils.cameras import opencv_to_opengl, orbit_cameras
from utils.errors import ConfigError, DataError
from utils.registry import FITS, MODEL, RECONSTRUCTORS

pytestmark = pytest.mark.usefixtures("one_thread")
HEAD = {"width": 16, "head_dim": 8, "num_layers": 2, "grid": 16, "depths": 8}
SIZE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained head whose layers are not zero."""
    torch.manual_seed(0)
    network = MODEL.build({"type": "DenseHead", **HEAD})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("dense") / "head.safetensors"
    save_safetensors(path, network.state_dict())
    return path


def section(weights, **changes):
    given = {"type": "DenseReconstruction", "head": HEAD, "pretrained": str(weights), "render_size": SIZE}
    return RECONSTRUCTORS.section(given | changes)


def reconstructor(weights, **changes):
    one = section(weights, **changes)
    network = one.cls.load_network(one.options, test_model="", needed=True)
    return one.build(network=network, workshop=Workshop(autoencoder=None, placement=Placement(torch.device("cpu"))))


def test_a_run_uses_all_views_and_writes_the_files(tmp_path, weights):
    family = write_family(tmp_path) | {"UNet": UNET, "assets": SMALL, "cameras": {"num_views": 6}}
    family["reconstruction"] = section(weights, guidance="before").given
    (sample,) = run(load(tmp_path, family, "refine=true", "results=refined", "prompts=[a ball]", "sampler.num_steps=5"))
    assert (sample / "gaussians.ply").is_file()


def test_the_input_views_are_those_of_the_configuration(weights):
    views, cameras = torch.rand(1, 6, 3, SIZE, SIZE), orbit_cameras(num_views=6, elevation_deg=15, radius=2.0)
    some = reconstructor(weights, input_views=[4, 1], min_opacity=0.0)
    network = some.network
    given = {"fov_deg": some.config.fov, "background": some.config.background}
    expected = network(views[:, [4, 1]], opencv_to_opengl(cameras[[4, 1]])[None], **given)
    torch.testing.assert_close(some.world_gaussians(views, cameras).packed_BN14, expected.packed_BN14)
    redrawn = some.redrawn(views[:, [4, 1]], cameras)
    torch.testing.assert_close(redrawn, some.renders(expected, cameras, size=SIZE))
    assert redrawn.shape == (1, 6, 3, SIZE, SIZE)


def test_faint_gaussians_are_left_out():
    opacities = torch.tensor([[0.5, 0.01, 0.01], [0.01, 0.3, 0.0]])[..., None]
    scene = Gaussians(
        means_BN3=torch.arange(18.0).view(2, 3, 3),
        opacities_BN1=opacities,
        scales_BN3=torch.ones(2, 3, 3),
        quats_BN4=torch.ones(2, 3, 4),
        colors_BN3=torch.ones(2, 3, 3),
    )
    kept = without_faint(scene, 0.02)
    assert torch.equal(kept.opacities_BN1[..., 0], torch.tensor([[0.5, 0.0], [0.0, 0.3]]))
    assert torch.equal(kept.means_BN3, scene.means_BN3[:, :2])


@pytest.mark.parametrize(
    ("options", "sizes", "said"),
    [
        ({}, {"num_views": 33, "resolution": (32, 32)}, "takes at most 32"),
        ({"input_views": [0, 8]}, {"num_views": 8, "resolution": (32, 32)}, r"input_views=\[0, 8\], but 8 views"),
        ({}, {"num_views": 8, "resolution": (32, 40)}, "multiples of 16"),
        ({}, {"num_views": 8, "resolution": (32, 48)}, "square"),
    ],
)
def test_views_that_the_head_cannot_take_are_named(weights, options, sizes, said):
    obstacle = section(weights, **options).options.obstacle(**sizes)
    assert re.search(said, obstacle or "")
    assert section(weights).options.obstacle(num_views=32, resolution=(32, 32)) is None


@pytest.mark.parametrize("options", [{"min_opacity": 1.0}, {"input_views": [1, 1]}])
def test_options_out_of_range_are_refused(weights, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        _ = section(weights, **options).options


def test_missing_weights_are_named():
    one = RECONSTRUCTORS.section({"type": "DenseReconstruction", "head": HEAD})
    with pytest.raises(DataError, match=r"set reconstruction\.pretrained"):
        one.cls.load_network(one.options, test_model="", needed=True)
    assert one.cls.load_network(one.options, test_model="", needed=False) is None


def test_without_layers_no_weights_are_needed(tmp_path, weights):
    alone = {"type": "DenseReconstruction", "head": HEAD | {"num_layers": 0}, "render_size": SIZE}
    family = write_family(tmp_path) | {"UNet": UNET, "assets": SMALL, "cameras": {"num_views": 6}}
    family["reconstruction"] = alone | {"guidance": "before"}
    (sample,) = run(load(tmp_path, family, "refine=true", "results=refined", "prompts=[a ball]", "sampler.num_steps=5"))
    assert (sample / "gaussians.ply").is_file()
    one = RECONSTRUCTORS.section(alone | {"pretrained": str(weights)})
    with pytest.raises(ConfigError, match=r"num_layers=0 has no weights; remove one of them"):
        one.cls.load_network(one.options, test_model="", needed=True)


def fit(weights, **changes):
    options = {"hull_grid": 24, "head": HEAD, "weights": str(weights), "view_size": SIZE}
    return FITS.section({"type": "dense", **options, **changes})


def test_a_fit_of_no_steps_is_the_heads_prediction_and_more_steps_improve_it(weights):
    views = sphere_views(num_views=8, size=SIZE, radius=0.5)
    start = fit_object(fit(weights), views, seed=0)
    network = MODEL.build({"type": "DenseHead", **HEAD})
    network.load_state_dict({k: v for k, v in _state(weights).items()})
    poses = opencv_to_opengl(views.c2w_V44)[None]
    fov_deg = float(2 * torch.rad2deg(torch.atan(SIZE / 2 / views.K_V33[0, 0, 0])))
    network.requires_grad_(False)
    expected = without_faint(network(views.over(1.0)[None], poses, fov_deg=fov_deg, background=1.0), 0.02)
    found = start.model.gaussians()
    torch.testing.assert_close(found.means_BN3, expected.means_BN3)
    torch.testing.assert_close(found.scales_BN3, expected.scales_BN3)
    few = fit_object(fit(weights, num_gaussians=300), views, seed=0).model.gaussians()
    assert few.means_BN3.shape[1] == 300
    assert float(few.opacities_BN1.min()) >= float(expected.opacities_BN1.sort(dim=1).values[0, -300])
    fitted = fit_object(fit(weights, num_gaussians=1000, num_steps=25), views, seed=0)
    assert float(fitted.psnr_V.mean()) > float(start.psnr_V.mean()) + 1


def _state(weights):
    from safetensors.torch import load_file

    return {name: value.float() for name, value in load_file(weights).items()}


def test_a_fit_without_weights_is_the_first_guess_and_missing_weights_stop_it(tmp_path):
    views = sphere_views(num_views=8, size=SIZE, radius=0.5)
    options = {"hull_grid": 24, "head": {**HEAD, "grid": 48, "depths": 48}, "view_size": SIZE}
    found = fit_object(FITS.section({"type": "dense", **options}), views, seed=0)
    assert float(found.psnr_V.mean()) > 17  # a white picture has 8
    assert "dense" in ready_methods()
    with pytest.raises(ConfigError, match=r"weights=none.safetensors: no such file"):
        reconstruct(["--method", "dense", str(tmp_path), "--out", str(tmp_path / "out"), "weights=none.safetensors"])
    assert not (tmp_path / "out").exists()


def test_views_of_other_shapes_are_refused(weights):
    views = sphere_views(num_views=4, size=SIZE, radius=0.5)
    views.K_V33[0, 0, 0] *= 1.2
    with pytest.raises(DataError, match="one field of view"):
        fit_object(fit(weights), views, seed=0)

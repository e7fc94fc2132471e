"""One image to views, end to end on untrained tiny models: conditions, files, known views, refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from inference import main
from pipelines.sampling.conditioner import CallOptions, Conditions
from pipelines.sampling.guidance import ClassifierFreeGuidance
from pipelines.sampling.known_views import KnownViews, view_at
from pipelines.sampling.pipeline import ViewsPipeline
from pipelines.sampling.sampler import Denoising
from tests.odd_pictures import BAD, GOOD
from tests.tiny import V_DIFFUSION, load, run, write_config, write_family, write_image_family
from utils.cameras import orbit_cameras
from utils.errors import ConfigError, DataError
from utils.object_image import input_view, recentre
from utils.registry import DIFFUSION, SAMPLERS
from utils.script import run_script

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")


@pytest.fixture
def family(tmp_path):
    return write_image_family(tmp_path)


def frame(seeds=(1, 2), **changes):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    c2w_V44 = orbit_cameras(num_views=3, elevation_deg=15, radius=2)
    options = {"c2w_V44": c2w_V44, "resolution": (32, 32), "generators": generators, "device": CPU}
    return CallOptions(**options | {"dtype": torch.float32} | changes)


def test_conditions_are_those_of_the_published_model(tmp_path, family):
    family["auto_encoder"] = {**family["auto_encoder"], "posterior": "mode"}
    pipeline = ViewsPipeline.from_config(load(tmp_path, family, "negative_prompt=ugly"))
    images = [tmp_path / "square.png", tmp_path / "disc.png"]
    with torch.no_grad():
        conditions = pipeline.conditioner(images, frame())
        options = {"resolution": (32, 32), "recenter": True, "object_share": 200 / 256}
        view_B3HW = torch.stack([input_view(image, **options) for image in images])
        latent_BCVHW = pipeline.autoencoder.encode_views(view_B3HW[:, None])
        embedder = pipeline.conditioner.embedder
        empty, ugly = embedder.encode_text(["", "ugly"])
        image_BC = embedder.encode_image(view_B3HW)
    with_image, without = conditions.conditional, conditions.unconditional
    close = torch.testing.assert_close
    close(with_image["y"], empty.expand(2, -1, -1))
    close(without["y"], ugly.expand(2, -1, -1))
    close(with_image["image"], image_BC[:, None])
    assert without["image"].shape == (2, 1, 16)
    assert not without["image"].any()
    for branch in (with_image, without):
        close(branch["local_image"], latent_BCVHW.expand(-1, -1, 3, -1, -1))
        assert branch["camera_data"].shape == (2, 3, 16)
        assert branch["fps"].tolist() == [8, 8]
    assert (image_BC[0] - image_BC[1]).abs().max() > 1e-3


def test_known_views_never_have_the_precision_of_the_network(tmp_path, family):
    family["auto_encoder"] = {**family["auto_encoder"], "posterior": "mode"}
    conditioner = ViewsPipeline.from_config(load(tmp_path, family)).conditioner
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, half = (conditioner([image], frame(seeds=[1], dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert half.conditional["local_image"].dtype == torch.bfloat16
    held = KnownViews.of({0: half})
    assert held.latents_BCKHW.dtype == torch.float32
    assert torch.equal(held.latents_BCKHW, exact.conditional["local_image"][:, :, :1])


def test_the_unconditional_branch_is_a_setting(tmp_path, family):
    options = ("use_zero_infer=false", "zero_local_image=true", "image_prompt=a toy")
    conditioner = ViewsPipeline.from_config(load(tmp_path, family, *options)).conditioner
    with torch.no_grad():
        conditions = conditioner([torch.rand(3, 32, 32)], frame(seeds=[1]))
    assert torch.equal(conditions.unconditional["image"], conditions.conditional["image"])
    assert not conditions.unconditional["local_image"].any()
    assert conditions.conditional["local_image"].any()
    assert not torch.equal(conditions.conditional["y"], conditions.unconditional["y"])


def test_a_list_of_pictures_becomes_folders(tmp_path, family):
    folders = run(load(tmp_path, family))
    assert [folder.name for folder in folders] == ["square_seed11", "disc_seed11"]
    result = json.loads((folders[0] / "result.json").read_text())
    assert (result["image"], result["seed"], "prompt" in result) == (str(tmp_path / "square.png"), 11, False)
    stamps = [(folder / "result.json").stat().st_mtime_ns for folder in folders]
    turned = np.asarray(Image.open(tmp_path / "disc.png"))[::-1]
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "disc.png")
    run(load(tmp_path, family))
    same, other = ((folder / "result.json").stat().st_mtime_ns for folder in folders)
    assert (same == stamps[0], other == stamps[1]) == (True, False)


def test_the_input_is_shown_beside_the_views(tmp_path, family):
    [folder, _] = run(load(tmp_path, family))
    size = {"resolution": (32, 32), "recenter": True, "object_share": 200 / 256}
    seen_HW3 = (input_view(tmp_path / "square.png", **size) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(folder / "input.png")), seen_HW3)
    beside = np.asarray(Image.open(folder / "beside.png"))
    assert beside.shape == (32, 4 * 34 - 2, 3)  # the input and the three views
    assert np.array_equal(beside[:, :32], seen_HW3)
    assert np.array_equal(beside[:, -32:], np.asarray(Image.open(folder / "views" / "002.png")))
    assert {"input.png", "beside.png"} <= set(json.loads((folder / "result.json").read_text())["files"])


def test_backgrounds_of_photos_are_removed(tmp_path, family, monkeypatch):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (60, 60), (200, 200, 200)).save(photo)
    one = family | {"images": [str(photo)]}
    with pytest.raises(DataError, match=r"has no alpha channel .*or add --remove-background"):
        run(load(tmp_path, one))

    def remover(option):
        assert option == "remove_background=true"

        def remove(image):
            mask = np.zeros((60, 60), dtype=np.uint8)
            mask[20:40, 10:30] = 255
            image.putalpha(Image.fromarray(mask))
            return image

        return remove

    monkeypatch.setattr("utils.object_image.background_remover", remover)
    monkeypatch.setattr("pipelines.sampling.inputs.background_remover", remover)
    [folder] = run(load(tmp_path, one | {"remove_background": True}))
    seen = np.asarray(Image.open(folder / "input.png"))
    assert (seen[16, 16].tolist(), seen[0, 16].tolist()) == ([199] * 3, [255] * 3)  # recentring cuts off
    with pytest.raises(ConfigError, match="remove_background=true needs recenter=true"):
        load(tmp_path, one | {"remove_background": True, "recenter": False})


def test_a_sample_depends_on_its_own_image_and_seed(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    assert pipeline.autoencoder.config.posterior == "sample"
    images = [tmp_path / "square.png", tmp_path / "disc.png"]
    both = pipeline(images, seeds=[4, 5])
    alone = pipeline(images[1], seeds=5)
    torch.testing.assert_close(both.latents_BCVHW[1:], alone.latents_BCVHW, atol=1e-4, rtol=0)
    other = pipeline(images[0], seeds=5)
    assert (other.latents_BCVHW - alone.latents_BCVHW).abs().max() > 1e-3


def test_centred_and_uncentred_files_give_the_same_orbit(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    raw = Image.open(tmp_path / "square.png")
    Image.fromarray(recentre(np.asarray(raw), size=32, object_size=25)).save(tmp_path / "centred.png")
    first, second = (pipeline(tmp_path / name).latents_BCVHW for name in ("square.png", "centred.png"))
    assert torch.equal(first, second)
    whole = ViewsPipeline.from_config(load(tmp_path, family, "recenter=false"))
    assert not torch.equal(whole(tmp_path / "square.png").latents_BCVHW, first)


def test_known_views_stay_on_their_trajectory():
    diffusion = DIFFUSION.build(V_DIFFUSION)
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(2, 4, 2, 4, 4, generator=generator)
    noise = torch.randn(2, 4, 5, 4, 4, generator=generator)
    seen = []

    def network(x, t, y):
        seen.append((int(t[0]), x))
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    conditions = Conditions({"y": torch.ones(2)}, {"y": torch.zeros(2)})
    run = Denoising(
        network=network,
        conditions=conditions,
        diffusion=diffusion,
        guidance=ClassifierFreeGuidance(scale=3.0),
        known_views=KnownViews(views=(0, 3), latents_BCKHW=known),
    )
    for name in ("DDIM", "DPMSolver++", "UniPC"):
        seen.clear()
        result = SAMPLERS.build({"type": name, "num_steps": 5, "spacing": "trailing"})(noise, run)
        for t, x_t in seen:
            expected = diffusion.add_noise(known, noise[:, :, [0, 3]], torch.tensor([t, t]))
            # the multistep solvers begin a hair below pure noise: 2e-4 of the signal, at most 0.001 here
            torch.testing.assert_close(x_t[:2, :, [0, 3]], expected, atol=2e-3, rtol=0)
        torch.testing.assert_close(result[:, :, [0, 3]], known, atol=0.05, rtol=0)  # DDIM ends at timestep 0's noise
        assert (result[:, :, 1] - known[:, :, 0]).abs().max() > 0.5


@pytest.mark.parametrize("refined", [False, True])
def test_clean_views_are_seen_without_noise_and_come_out_exactly(refined):
    diffusion = DIFFUSION.build(V_DIFFUSION)
    generator = torch.Generator().manual_seed(1)
    known, noise = (torch.randn(2, 4, count, 4, 4, generator=generator) for count in (2, 5))
    seen = []

    def network(x, t, y):
        seen.append(x)
        return torch.full_like(x, 0.3)

    class Refiner:
        after_guidance = False

        def steps(self, num_steps):
            return {2}

        def __call__(self, x0, step):
            torch.testing.assert_close(x0[:, :, [0, 3]], known, atol=0, rtol=0)
            return x0 * 0.5

    run = Denoising(
        network=network,
        conditions=Conditions({"y": torch.ones(2)}, {"y": torch.zeros(2)}),
        diffusion=diffusion,
        guidance=ClassifierFreeGuidance(scale=3.0),
        refiner=Refiner() if refined else None,
        known_views=KnownViews(views=(0, 3), latents_BCKHW=known, clean=True),
    )
    for name in ("DDIM", "DPMSolver++"):
        sampler = SAMPLERS.build({"type": name, "num_steps": 5, "spacing": "trailing"})
        for result in sampler.both(noise, run) if refined else [sampler(noise, run)]:
            assert torch.equal(result[:, :, [0, 3]], known)
            assert (result[:, :, 1] - known[:, :, 0]).abs().max() > 0.5
    assert all(torch.equal(x[:2, :, [0, 3]], known) and torch.equal(x[2:, :, [0, 3]], known) for x in seen)
    others = [1, 2, 4]
    torch.testing.assert_close(seen[0][:2, :, others], noise[:, :, others])


def test_held_clean_the_input_comes_out_as_it_is_at_one_call_a_step(tmp_path, family):
    posterior = {"auto_encoder": {**family["auto_encoder"], "posterior": "mode"}}
    cfg = load(tmp_path, {**family, **posterior}, "hold_views=clean", "guide_scale=1")
    pipeline = ViewsPipeline.from_config(cfg)
    calls = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: calls.append(given[0]))
    square, disc = tmp_path / "square.png", tmp_path / "disc.png"
    alone = pipeline(square)
    options = {"resolution": (32, 32), "recenter": True, "object_share": cfg.object_share}
    with torch.no_grad():
        images = torch.stack([input_view(path, **options) for path in (square, disc)])
        latent, disc_latent = pipeline.autoencoder.encode_views(images[:, None])[:, :, 0]
    torch.testing.assert_close(alone.latents_BCVHW[0, :, 0], latent)  # encoded in a batch of its own
    latent = alone.latents_BCVHW[0, :, 0]
    assert len(calls) == 3
    assert all(torch.equal(x[0, :, 0], latent) for x in calls)
    calls.clear()
    both = pipeline(square, known_views={2: [disc]})
    assert len(calls) == 3
    assert torch.equal(both.latents_BCVHW[0, :, 0], latent)
    for x in (*calls, both.latents_BCVHW):
        torch.testing.assert_close(x[0, :, 2], disc_latent)
    with pytest.raises(ConfigError, match="hold_views=still is unknown; valid: trajectory, clean"):
        load(tmp_path, family, "hold_views=still")


def test_known_pictures_come_out_as_they_are(tmp_path, family, caplog):
    known = {"image": str(tmp_path / "disc.png"), "azimuth_deg": -120}
    sampler = {"type": "DPMSolver++", "num_steps": 3}
    auto_encoder = {**family["auto_encoder"], "posterior": "mode"}
    config = {**family, "known_views": [known], "sampler": sampler, "auto_encoder": auto_encoder}
    cfg = load(tmp_path, {**config, "images": [str(tmp_path / "square.png")]})
    (folder,) = run(cfg)
    assert "set recenter=false" in caplog.text
    pipeline = ViewsPipeline.from_config(cfg)
    for view, name in ((0, "square.png"), (2, "disc.png")):
        image = input_view(tmp_path / name, resolution=(32, 32), recenter=True, object_share=cfg.object_share)
        with torch.no_grad():
            expected = pipeline.decode(pipeline.autoencoder.encode_views(image[None, None]))[0, 0]
        found = torch.from_numpy(np.asarray(Image.open(folder / "views" / f"{view:03d}.png")).copy())
        torch.testing.assert_close(found.permute(2, 0, 1) / 255, expected, atol=0.02, rtol=0)
    free = pipeline(tmp_path / "square.png").views_BVCHW[0, 2]
    assert (free - expected).abs().max() > 0.05


def test_the_elevation_of_the_picture_is_that_of_view_0(tmp_path, family, caplog):
    assert load(tmp_path, family).input_elevation_deg is None
    one = {**family, "images": [str(tmp_path / "disc.png")], "input_elevation_deg": 40.0}
    run(load(tmp_path, one, "cameras.elevation_deg=40"))
    assert "another elevation" not in caplog.text
    views = [{"elevation_deg": 40}, {"elevation_deg": 10, "azimuth_deg": 90}]
    (folder,) = run(load(tmp_path, {**one, "cameras": {"views": views}}))
    assert "another elevation than view 0" in caplog.text
    centres = np.array(json.loads((folder / "result.json").read_text())["c2w"])[:, :3, 3]
    assert np.degrees(np.arcsin(centres[:, 2] / 2)) == pytest.approx([40, 10], abs=1e-4)


def test_azimuths_count_from_the_input():
    c2w_V44 = orbit_cameras(num_views=24, elevation_deg=-20, radius=2, azimuth_start_deg=70)
    assert [view_at(c2w_V44, angle, where="x") for angle in (0, 90, -15, 360, 345.2)] == [0, 6, 23, 0, 23]
    with pytest.raises(ConfigError, match=r"x=50: no view of the orbit has this azimuth; use one of 0, 15, 30"):
        view_at(c2w_V44, 50, where="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["gone.png"]}, "gone.png: no such file"),
        ({"images": ["plain.png"]}, "plain.png: has no alpha channel"),
        ({"prompts": ["a mug"]}, "prompts (--prompt) is only for text models"),
        ({"TASK_TYPE": "inference_text2video_entrance"}, "use inference_i2vgen_entrance"),
        ({"known_views": [{"image": "gone.png", "azimuth_deg": 120}], "images": ["ok.png"]}, "gone.png: no such file"),
        ({"known_views": [{"image": "ok.png", "azimuth_deg": 50}], "images": ["ok.png"]}, "azimuth_deg=50: no view"),
        ({"known_views": [{"image": "ok.png", "azimuth_deg": 120}]}, "give only one --image"),
        ({"known_views": [{"image": "ok.png", "azimut": 120}]}, "known_views[0] must be {image: FILE"),
        ({"known_views": [{"image": "ok.png", "azimuth_deg": a} for a in (120, 480)], "images": ["ok.png"]}, "already"),
        (
            {"input_elevation_deg": 40},
            "the input is view 0, whose elevation is 15; set cameras.elevation_",
        ),
        ({"object_share": 1.5}, "object_share must lie in (0, 1]"),
        ({"test_list_path": "gone.txt"}, "with one image per line, or --image"),
    ],
)
def test_refuses_in_one_line_before_any_weight_is_read(tmp_path, family, change, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20)).save("plain.png")
    (tmp_path / "square.png").rename("ok.png")
    (tmp_path / "images.txt").write_text("ok.png\ndisc.png\n")
    with pytest.raises((ConfigError, DataError)) as error:
        run(load(tmp_path, {**family, "test_model": "nowhere.pth", **change}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*/"))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_in_the_list_is_named_before_anything_is_written(tmp_path, family, name):
    make, message = BAD[name]
    make(tmp_path / name)
    (tmp_path / "images.txt").write_text(f"{tmp_path / 'disc.png'}\n{tmp_path / name}\n")
    with pytest.raises(DataError) as error:
        run(load(tmp_path, {**family, "test_model": "nowhere.pth"}))
    assert str(tmp_path / name) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_odd_pictures_become_orbits(tmp_path, family):
    for name, make in GOOD.items():
        make(tmp_path / name)
    images = [str(tmp_path / name) for name in GOOD]
    folders = run(load(tmp_path, {**family, "images": images, "batch_size": 5}))
    assert len({folder.name for folder in folders}) == len(GOOD)  # also where only the suffix differs
    assert all((folder / "views" / "002.png").is_file() for folder in folders)


def test_pictures_and_known_views_are_refused_by_a_text_model(tmp_path):
    family = write_family(tmp_path)
    with pytest.raises(ConfigError, match="only for image models"):
        run(load(tmp_path, {**family, "images": ["x.png"]}))
    with pytest.raises(ConfigError, match="input_elevation_deg"):
        run(load(tmp_path, {**family, "input_elevation_deg": 15.0}))
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    with pytest.raises(ValueError, match="known_views need an image model"):
        pipeline("a mug", known_views={1: [torch.zeros(3, 32, 32)]})


def test_an_embedding_of_another_width_is_refused(tmp_path, family):
    family["UNet"] = {**family["UNet"], "image_dim": None}
    with pytest.raises(DataError):  # the file's weights do not fit
        ViewsPipeline.from_config(load(tmp_path, family))
    parts = vars(ViewsPipeline.from_config(load(tmp_path, write_image_family(tmp_path))))
    parts["unet"].config = type(parts["unet"].config)(**{**vars(parts["unet"].config), "image_dim": 24})
    names = ("unet", "autoencoder", "diffusion", "sampler")
    with pytest.raises(ConfigError, match=r"UNet.image_dim=24, but the embedder's image embedding has 16 channels"):
        ViewsPipeline(parts["cfg"], embedder=parts["conditioner"].embedder, **{name: parts[name] for name in names})


def test_command_line(tmp_path, family, monkeypatch, capsys):
    write_config(tmp_path / "run.yaml", family)
    monkeypatch.chdir(tmp_path)

    def sample(picture):
        monkeypatch.setattr(sys, "argv", ["inference.py", "--cfg", "run.yaml", "--image", picture, "seed=2"])
        with pytest.raises(SystemExit) as caught:
            run_script(main)
        return caught.value.code, capsys.readouterr().err

    code, printed = sample("disc.png")
    assert not code, printed
    assert (tmp_path / "out" / "disc_seed2" / "orbit.mp4").is_file()
    (tmp_path / "text.png").write_text("no picture")
    code, printed = sample("text.png")
    assert code == 2
    assert printed.strip().startswith("error: text.png: cannot be read as an image")
    assert len(printed.strip().splitlines()) == 1

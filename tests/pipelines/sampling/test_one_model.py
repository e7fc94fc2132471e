"""One network for a prompt, an image, or an image with a prompt: conditions, files, resuming, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from inference import main
from pipelines.sampling.conditioner import CallOptions
from pipelines.sampling.inputs import names_of, sources_of
from pipelines.sampling.pipeline import ViewsPipeline
from tests.conftest import ROOT
from tests.tiny import load, run, write_config, write_image_family
from utils.cameras import orbit_cameras
from utils.errors import ConfigError, DataError
from utils.object_image import input_view
from utils.script import run_script

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")

BOTH = {"takes_prompts": True, "zero_local_image": True, "hold_views": "clean", "negative_prompt": "ugly"}


@pytest.fixture
def family(tmp_path):
    """An image model that takes prompts too, as configs/mini/real_train.yaml trains it."""
    config = write_image_family(tmp_path)
    return {**config, **BOTH, "auto_encoder": {**config["auto_encoder"], "posterior": "mode"}}


@pytest.fixture
def pipeline(tmp_path, family):
    made = ViewsPipeline.from_config(load(tmp_path, family))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.unet.parameters():
            if not parameter.any():  # an untrained network ignores its text: its transformers end in zeros
                parameter.normal_(std=0.1, generator=generator)
    return made


def frame(num_samples):
    generators = [torch.Generator().manual_seed(seed) for seed in range(num_samples)]
    c2w_V44 = orbit_cameras(num_views=3, elevation_deg=15, radius=2)
    shared = {"resolution": (48, 32), "device": torch.device("cpu"), "dtype": torch.float32}
    return CallOptions(c2w_V44=c2w_V44, generators=generators, **shared)


def seen_by(pipeline):
    """Record the arguments of each call of the network."""
    calls = []
    pipeline.unet.register_forward_pre_hook(
        lambda _, given, named: calls.append({"x": given[0], **named}), with_kwargs=True
    )
    return calls


def test_prompts_alone_get_the_conditions_of_training_without_an_image(pipeline):
    of_prompts, embedder = pipeline.conditioner.prompts, pipeline.conditioner.embedder
    with torch.no_grad():
        conditions = of_prompts(["a red mug", "a blue chair, 3d asset"], frame(2))
        words, ugly = (
            embedder.encode_text(["a red mug, 3d asset", "a blue chair, 3d asset"]),
            embedder.encode_text(["ugly"]),
        )
    torch.testing.assert_close(conditions.conditional["y"], words)
    torch.testing.assert_close(conditions.unconditional["y"], ugly.expand_as(words))
    assert conditions.latents_BC1HW is None
    for branch in (conditions.conditional, conditions.unconditional):
        assert branch["image"].shape == (2, 1, 16)
        assert branch["local_image"].shape == (2, 4, 3, 4, 6)
        assert not branch["image"].any()
        assert not branch["local_image"].any()


def test_with_a_prompt_alone_no_view_is_known(pipeline):
    calls = seen_by(pipeline)
    orbits = pipeline(prompts="a red mug", seeds=4)
    noise = pipeline.draw_noise([torch.Generator().manual_seed(4)], num_views=3, resolution=(32, 32))
    assert (orbits.inputs, orbits.prompts) == (["a red mug"], None)
    assert len(calls) == 3
    assert all(len(call["x"]) == 2 for call in calls)  # guidance
    assert torch.equal(calls[0]["x"], noise.repeat(2, 1, 1, 1, 1))
    assert not any(call[name].any() for call in calls for name in ("image", "local_image"))
    assert all((call["y"][0] - call["y"][1]).abs().max() > 0.1 for call in calls)
    other = pipeline(prompts=["a blue chair"], seeds=4)
    assert (other.latents_BCVHW - orbits.latents_BCVHW).abs().max() > 1e-3


def test_an_image_alone_is_as_before(tmp_path, family, pipeline):
    """Bit for bit as for an image model that takes no prompts, with known views and a drawn posterior too."""
    square, disc = tmp_path / "square.png", tmp_path / "disc.png"
    for change in ({}, write_image_family(tmp_path)):
        takes_both, images_only = (
            ViewsPipeline.from_config(load(tmp_path, {**family, **change, "takes_prompts": takes}))
            for takes in (True, False)
        )
        for options in ({}, {"known_views": {2: [disc]}}):
            first, second = (one(square, seeds=3, **options) for one in (takes_both, images_only))
            assert torch.equal(first.latents_BCVHW, second.latents_BCVHW)
            assert (first.inputs, first.prompts) == ([square], None)


def test_an_image_with_a_prompt_has_the_conditions_of_both(tmp_path, pipeline):
    images = [tmp_path / "square.png", tmp_path / "disc.png"]
    with torch.no_grad():
        alone = pipeline.conditioner(images, frame(2))
        both = pipeline.conditioner(images, frame(2), ["a red mug", "a blue chair"])
        words = pipeline.conditioner.embedder.encode_text(["a red mug, 3d asset", "a blue chair, 3d asset"])
    torch.testing.assert_close(both.conditional["y"], words)
    torch.testing.assert_close(both.unconditional["y"], alone.unconditional["y"])
    for name in ("image", "local_image"):
        assert torch.equal(both.conditional[name], alone.conditional[name])
        assert alone.conditional[name].flatten(1).any(dim=1).all()
        assert not both.unconditional[name].any()
    assert torch.equal(both.latents_BC1HW, alone.latents_BC1HW)


def test_images_with_prompts_in_one_call(tmp_path, pipeline):
    images = [tmp_path / "square.png", tmp_path / "disc.png"]
    both = pipeline(images, prompts=["a red mug", "a blue chair"], seeds=[4, 5])
    assert (both.inputs, both.prompts) == (images, ["a red mug", "a blue chair"])
    single = pipeline(images[1], prompts="a blue chair", seeds=5)
    torch.testing.assert_close(both.latents_BCVHW[1:], single.latents_BCVHW, atol=1e-4, rtol=0)
    shared = pipeline(images, prompts="a blue chair", seeds=5)
    torch.testing.assert_close(shared.latents_BCVHW[1:], single.latents_BCVHW, atol=1e-4, rtol=0)
    for other in (pipeline(images[1], seeds=5), pipeline(prompts="a blue chair", seeds=5)):
        assert (other.latents_BCVHW - single.latents_BCVHW).abs().max() > 1e-3
    calls = seen_by(pipeline)
    pipeline(images[0], prompts="a red mug", known_views={2: [images[1]]})
    options = {"resolution": (32, 32), "recenter": True, "object_share": pipeline.cfg.object_share}
    with torch.no_grad():
        views = torch.stack([input_view(image, **options) for image in images])
        known_2CHW = pipeline.autoencoder.encode_views(views[:, None])[:, :, 0]
    for view, latent in ((0, known_2CHW[0]), (2, known_2CHW[1])):
        for branch in (0, 1):
            torch.testing.assert_close(calls[0]["x"][branch, :, view], latent)


def test_calls_that_do_not_fit_are_refused(tmp_path, family, pipeline):
    square = tmp_path / "square.png"
    with pytest.raises(ValueError, match="2 prompts for 3 images; give one for all, or one per image"):
        pipeline([square] * 3, prompts=["a mug", "a chair"])
    with pytest.raises(ValueError, match="known_views need an image as view 0"):
        pipeline(prompts="a mug", known_views={1: [square]})
    with pytest.raises(ValueError, match="give at least one"):
        pipeline()
    images_only = ViewsPipeline.from_config(load(tmp_path, {**family, "takes_prompts": False}))
    for inputs in (None, square):
        with pytest.raises(ConfigError, match=r"takes_prompts=false got 'a mug'; use --image, .* takes_prompts=true"):
            images_only(inputs, prompts=["a mug"])


def test_a_text_that_names_no_picture_is_a_sentence(tmp_path, pipeline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = pipeline("a red mug", seeds=4)
    assert (given.inputs, given.input_views_B3HW) == (["a red mug"], None)
    assert torch.equal(given.latents_BCVHW, pipeline(prompts="a red mug", seeds=4).latents_BCVHW)
    (tmp_path / "square.png").rename(tmp_path / "a square")
    assert pipeline("a square", seeds=4).input_views_B3HW is not None  # a file of this name
    with pytest.raises(DataError, match=r"gone\.png"):
        pipeline("gone.png")
    with pytest.raises(ValueError, match="'a red mug' is no file, but other inputs are pictures; correct its path"):
        pipeline(["a square", "a red mug"])


def test_a_pipeline_is_loaded_by_its_name(tmp_path, family, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = []
    monkeypatch.setattr(ViewsPipeline, "from_config", classmethod(lambda cls, cfg: loaded.append(cfg)))
    for name in ("mini", "mini/t2v_infer", ROOT / "configs" / "mini" / "i2v_infer.yaml"):
        ViewsPipeline.from_pretrained(name, "guide_scale=7")
    assert [Path(cfg.test_model).name for cfg in loaded] == [
        f"unet_{kind}.safetensors" for kind in ("real", "t2v", "i2v")
    ]
    assert {cfg.guide_scale for cfg in loaded} == {7}
    for name, hint in (
        ("mini/t2v_inver", "did you mean mini/t2v_infer"),
        ("xyzzy", "valid: mini, i2vgen_xl_infer, mini/"),
    ):
        with pytest.raises(ConfigError, match=rf"from_pretrained\('{name}'\): no such model or folder; {hint}"):
            ViewsPipeline.from_pretrained(name)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def stamps(folders):
    return [(folder / "result.json").stat().st_mtime_ns for folder in folders]


def test_each_kind_of_input_has_its_own_folder_and_resumes(tmp_path, family):
    square, disc = (str(tmp_path / name) for name in ("square.png", "disc.png"))
    kinds = {
        "prompt": {"prompts": ["square", "a red mug"]},
        "image": {"images": [square, disc]},
        "one prompt": {"images": [square, disc], "prompts": ["a red mug"]},
        "prompt each": {"images": [square, square], "prompts": ["a toy", "a box"]},
    }
    made = {kind: run(load(tmp_path, {**family, **inputs})) for kind, inputs in kinds.items()}
    names = {kind: [folder.name for folder in folders] for kind, folders in made.items()}
    assert names["prompt"] == ["square_seed11", "a-red-mug_seed11"]
    assert names["image"][1] == "disc_seed11"
    folders = [folder for folders in made.values() for folder in folders]
    assert len(set(folders)) == 8
    assert all(
        name.startswith("square-") for name in (names["image"][0], names["one prompt"][0], *names["prompt each"])
    )
    results = {kind: [result_of(folder) for folder in made[kind]] for kind in made}
    assert [(one.get("prompt"), one.get("image")) for kind in kinds for one in results[kind]] == [
        ("square", None), ("a red mug", None), (None, square), (None, disc),
        ("a red mug", square), ("a red mug", disc), ("a toy", square), ("a box", square),
    ]  # fmt: skip
    before = stamps(folders)
    for kind, inputs in reversed(kinds.items()):
        assert run(load(tmp_path, {**family, **inputs})) == made[kind]
    assert stamps(folders) == before


def test_a_picture_that_changed_is_made_again_in_its_folder_with_its_prompt(tmp_path, family):
    disc = tmp_path / "disc.png"
    cfg = load(tmp_path, {**family, "images": [str(disc)], "prompts": ["a red mug"]})
    (folder,) = run(cfg)
    assert folder.name == "disc_seed11"
    first = result_of(folder)
    Image.open(disc).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(disc)
    assert run(cfg) == [folder]
    second = result_of(folder)
    assert second["sha256"] != first["sha256"]
    assert second["prompt"] == first["prompt"]


def test_an_image_sample_of_an_earlier_version_is_kept(tmp_path, family):
    """The new setting does not change a sample of an image."""
    cfg = {**family, "images": [str(tmp_path / "square.png")]}
    (folder,) = run(load(tmp_path, {**cfg, "takes_prompts": False}))
    assert folder.name == "square_seed11"
    before = stamps([folder])
    assert run(load(tmp_path, cfg)) == [folder]
    assert stamps([folder]) == before


def test_names_do_not_depend_on_the_order_of_prompts(tmp_path, family):
    square = str(tmp_path / "square.png")

    def names(prompts):
        cfg = load(tmp_path, {**family, "images": [square] * 2, "prompts": prompts})
        return {source.prompt: [name for name, _ in zip(names_of(source), range(3), strict=False)]
                for source in sources_of(cfg, kind="image")}  # fmt: skip

    first = names(["a toy", "a box"])
    assert first == names(["a box", "a toy"])
    assert first["a toy"][0] == first["a box"][0] == "square"
    assert not {*first["a toy"][1:]} & {*first["a box"][1:]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"takes_prompts": False, "prompts": ["a mug"]}, "takes_prompts=false got 'a mug'; use --image"),
        ({"takes_prompts": False, "prompts": ["a mug"], "images": ["ok.png"]}, "takes_prompts=false got 'a mug'"),
        ({"prompts": ["a mug", "a chair"], "images": ["ok.png"] * 3}, "2 prompts for 3 images; give one for all"),
        ({"prompts": ["a mug"], "images": ["gone.png"]}, "gone.png: no such file"),
        ({"prompts": ["a mug"], "image_prompt": "a toy"}, "prompts (--prompt) replace image_prompt=a toy; give one"),
        ({"prompts": ["a mug"], "input_elevation_deg": 15.0}, "input_elevation_deg (--image) needs an image"),
        ({"prompts": ["a mug"], "known_views": [{"image": "ok.png", "azimuth_deg": 120}]}, "needs an image as view 0"),
        ({"prompts": ["a \udce9 mug"]}, "not valid UTF-8"),
        ({"prompts": ["a mug"], "TASK_TYPE": "inference_text2video_entrance"}, "use inference_i2vgen_entrance"),
    ],
)
def test_refuses_in_one_line_before_any_weight_is_read(tmp_path, family, change, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "square.png").rename("ok.png")
    cfg = load(tmp_path, {**family, "test_model": "nowhere.pth", **{k: v for k, v in change.items() if k != "prompts"}})
    vars(cfg)["prompts"] = change["prompts"]  # YAML cannot hold every text that a shell can give
    with pytest.raises((ConfigError, DataError)) as error:
        run(cfg)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*/"))


def test_command_line(tmp_path, family, monkeypatch, capsys, caplog):
    write_config(tmp_path / "run.yaml", {**family, "known_objects": ["mug"]})
    monkeypatch.chdir(tmp_path)

    def sample(*inputs):
        monkeypatch.setattr(sys, "argv", ["inference.py", "--cfg", "run.yaml", *inputs, "seed=2"])
        with pytest.raises(SystemExit) as caught:
            run_script(main)
        return caught.value.code, capsys.readouterr().err

    code, printed = sample("--prompt", "a red mug")
    assert not code, printed
    assert (tmp_path / "out" / "a-red-mug_seed2" / "orbit.mp4").is_file()
    code, printed = sample("--image", "disc.png", "--prompt", "a wooden chair")
    assert not code, printed
    assert "prompt 'a wooden chair' contains no object that this model knows" in caplog.text
    assert result_of(tmp_path / "out" / "disc_seed2")["prompt"] == "a wooden chair"
    code, printed = sample("--prompt", "a red mug", "takes_prompts=false")
    assert code == 2
    assert printed.strip().startswith("error: prompts (--prompt) is only for text models")
    assert len(printed.strip().splitlines()) == 1

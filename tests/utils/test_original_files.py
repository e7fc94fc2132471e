"""The original's own files run as they are, with the command that a user of the original types."""

from __future__ import annotations

import json
import re

import pytest
import yaml

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from tests.campaign import run_command
from tests.conftest import ROOT
from tests.reference_cases import REFERENCE
from tests.tiny import AUTOENCODER, EMBEDDER_, IMAGE_UNET, UNET, write_family, write_image_family
from utils.config import load_config
from utils.errors import ConfigError

PUBLISHED = json.loads((REFERENCE / "published_settings.json").read_text())
NAMES = ("t2v_train", "t2v_train_laion", "i2vgen_xl_train", "t2v_infer", "i2vgen_xl_infer")


def write_original(folder, name: str, **changes) -> None:
    """Write a file of the original to `configs/`; that of the image model names use_fp16 twice."""
    text = yaml.safe_dump({**PUBLISHED[name], **changes}, sort_keys=False)
    if name == "i2vgen_xl_infer":
        text = text.replace("chunk_size:", "use_fp16: true\nchunk_size:")
        assert text.count("use_fp16") == 2
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / f"{name}.yaml").write_text(text)


@pytest.fixture
def original(tmp_path, monkeypatch):
    """A folder with the six files of the original, which is the working directory."""
    for name in NAMES:
        write_original(tmp_path, name)
    (tmp_path / "configs" / "base.yaml").write_text("ENABLE: true\nDATASET: webvid10m\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_means_what_it_meant(original, name, caplog):
    caplog.set_level("INFO")
    cfg = load_config(f"configs/{name}.yaml")
    given = PUBLISHED[name]
    below = PUBLISHED[given["vldm_cfg"].split("/")[-1].removesuffix(".yaml")] if "vldm_cfg" in given else given
    for key in given.keys() & vars(cfg).keys():
        if not isinstance(given[key], dict) and key not in ("resolution", "test_list_path"):
            assert getattr(cfg, key) == given[key], key
    for part in ("UNet", "Diffusion"):
        for key, value in {**below.get(part, {}), **given.get(part, {})}.items():
            if hasattr(getattr(cfg, part).options, key) and key != "schedule_param":
                found = getattr(getattr(cfg, part).options, key)
                assert (list(found) if isinstance(value, list) else found) == value, (part, key)
    assert cfg.Diffusion.options.noise_strength == below["noise_strength"]
    assert cfg.refine is given["UNet"]["use_lgm_refine"]
    assert cfg.sampler.options.num_steps == PUBLISHED["defaults"]["ddim_timesteps"]
    for part in ("auto_encoder", "embedder"):
        assert getattr(cfg, part).pretrained
    assert cfg.auto_encoder.options.scale_factor == PUBLISHED["defaults"]["scale_factor"]
    said = [record.getMessage() for record in caplog.records]
    assert any(
        re.search(rf"configs/{name}.yaml, line \d+: UNet.use_lgm_refine=\w+ is read as refine", line) for line in said
    )


def test_training_files_keep_their_paths_and_sizes(original):
    cfg = load_config("configs/t2v_train.yaml")
    assert cfg.vid_dataset.options.data_dir_list == ["/mnt/objaverse/dataset/raw/0"]
    assert cfg.Pretrain.options.resume_checkpoint == "./pretrained_models/modelscope_t2v/model_scope_0267000.pth"
    assert cfg.reconstruction.options.pretrained == "./pretrained_models/model.safetensors"
    assert (cfg.batch_sizes, cfg.TASK_TYPE) == ({"1": 32, "24": 8}, "train_t2v_entrance")
    laion = load_config("configs/t2v_train_laion.yaml")
    assert laion.is_joint
    assert laion.img_dataset.options.data_list == ["{00000..60580}.tar"]
    image = load_config("configs/i2vgen_xl_train.yaml")
    assert (image.Diffusion.options.mean_type, image.Diffusion.options.schedule) == ("v", "cosine")
    assert (image.vid_dataset.options.background, image.cameras.elevation_deg) == (1.0, 5)


def test_sampling_files_take_the_model_of_their_training_file(original, caplog):
    caplog.set_level("INFO")
    text = load_config("configs/t2v_infer.yaml")
    assert (text.test_model, text.precision) == ("./pretrained_modesl/t2v_00333000.pth", "float32")
    assert (text.cameras.num_views, text.guide_scale, text.seed, text.round) == (24, 9.0, 11, 2)
    assert text.reconstruction.pretrained is None
    assert list(text.reconstruction.options.refine_at) == [0.4, 0.6, 0.8]
    assert text.reconstruction.options.published_sampling_axes
    said = caplog.text
    assert "vldm_cfg=configs/t2v_train.yaml is read as the base" in said
    assert "max_frames=24 is read as cameras.num_views=24" in said
    assert "use_fp16=False is read as precision=float32" in said
    assert "lgm_pretrain is for training; in sampling the Gaussian head comes from test_model" in said
    caplog.clear()
    image = load_config("configs/i2vgen_xl_infer.yaml")
    assert (image.Diffusion.options.mean_type, image.Diffusion.options.noise_strength) == ("v", 0.1)
    assert (image.precision, image.cameras.elevation_deg, image.cameras.distance) == ("float16", 5, 1.7)
    assert "use_fp16 comes again (first in line 2); this last value counts" in caplog.text


@pytest.mark.parametrize(
    ("name", "key", "value", "read"),
    [
        ("t2v_infer", "ddim_timesteps", 20, lambda cfg: cfg.sampler.options.num_steps),
        ("t2v_infer", "max_frames", 16, lambda cfg: cfg.cameras.num_views),
        ("t2v_infer", "inference_list_path", "mine.txt", lambda cfg: cfg.test_list_path),
        ("t2v_infer", "lgm_pretrain", "./mine.safetensors", lambda cfg: cfg.reconstruction.pretrained),
        ("t2v_train", "lgm_pretrain", "./mine.safetensors", lambda cfg: cfg.reconstruction.pretrained),
    ],
)
def test_what_a_user_edits_has_its_effect(original, name, key, value, read):
    changes = {"test_list_path": "mine.txt"} if key == "inference_list_path" else {}
    write_original(original, name, **{key: value}, **changes)
    assert read(load_config(f"configs/{name}.yaml")) == value
    without = {item: one for item, one in PUBLISHED[name].items() if item not in (key, "test_list_path")}
    (original / "configs" / f"{name}.yaml").write_text(yaml.safe_dump({**without}))
    assert read(load_config(f"configs/{name}.yaml", [key, str(value)])) == value  # as `key value`, like there
    assert read(load_config(f"configs/{name}.yaml", [f"{key}={value}"])) == value


def test_an_edited_training_file_is_what_sampling_builds(original):
    diffusion = {**PUBLISHED["i2vgen_xl_train"]["Diffusion"], "mean_type": "eps", "noise_strength": 0.3}
    write_original(original, "i2vgen_xl_train", Diffusion=diffusion, auto_encoder={"pretrained": "mine.pth"})
    cfg = load_config("configs/i2vgen_xl_infer.yaml")
    assert (cfg.Diffusion.options.mean_type, cfg.Diffusion.options.noise_strength) == ("eps", 0.3)
    assert cfg.auto_encoder.pretrained == "mine.pth"
    without = {key: value for key, value in diffusion.items() if key != "noise_strength"}
    write_original(original, "i2vgen_xl_train", Diffusion=without, noise_strength=0.2)
    assert load_config("configs/i2vgen_xl_infer.yaml").Diffusion.options.noise_strength == 0.2


def test_a_short_file_in_the_form_of_the_original(tmp_path):
    """The training file is not there, so that of the repository is read; it has the schedule of the image model."""
    text = {
        "TASK_TYPE": "inference_i2vgen_entrance", "use_fp16": True, "guide_scale": 6.0, "max_frames": 24, "scale": 8,
        "vldm_cfg": "configs/i2vgen_xl_train.yaml", "test_list_path": "data/test_images.txt",
        "test_model": "./pretrained_models/i2v.pth",
        "UNet": {"type": "UNetSD_I2VGen", "in_dim": 4, "upper_len": 128, "default_fps": 8, "use_lgm_refine": True},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(text))
    cfg = load_config(tmp_path / "run.yaml")
    assert (cfg.Diffusion.options.mean_type, cfg.Diffusion.options.schedule, cfg.precision) == (
        "v",
        "cosine",
        "float16",
    )
    assert (cfg.refine, cfg.takes_images, cfg.test_model) == (True, True, "./pretrained_models/i2v.pth")
    del text["vldm_cfg"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(text))
    assert load_config(tmp_path / "run.yaml") == cfg


def test_the_training_file_of_the_other_model_is_refused(original):
    write_original(original, "i2vgen_xl_infer", vldm_cfg="configs/t2v_train.yaml")
    with pytest.raises(
        ConfigError, match=r"vldm_cfg=.*t2v_train.yaml has TASK_TYPE=train_t2v_entrance, but .*i2vgen_xl_train.yaml"
    ):
        load_config("configs/i2vgen_xl_infer.yaml")
    write_original(original, "i2vgen_xl_infer", vldm_cfg="configs/gone.yaml")
    with pytest.raises(ConfigError, match=r"vldm_cfg=configs/gone.yaml: no such file"):
        load_config("configs/i2vgen_xl_infer.yaml")
    write_original(original, "t2v_infer", vldm_cfg="configs/t2v_infer.yaml")
    with pytest.raises(ConfigError, match=r"vldm_cfg=.*has TASK_TYPE=inference_text2video_entrance"):
        load_config("configs/t2v_infer.yaml")


def test_old_and_new_name_must_agree(tmp_path):
    for text in ("use_fp16: true\nprecision: float32", "max_frames: 24\ncameras: {num_views: 12}"):
        (tmp_path / "run.yaml").write_text(f"base: {ROOT}/configs/mini/t2v_infer.yaml\n{text}\n")
        with pytest.raises(ConfigError, match=r"means .*; give only"):
            load_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text(f"base: {ROOT}/configs/mini/t2v_infer.yaml\nuse_fp16: maybe\n")
    with pytest.raises(ConfigError, match=r"run.yaml, line 2: use_fp16=maybe is not true or false"):
        load_config(tmp_path / "run.yaml")


MISSING = {
    "t2v_infer": ("inference", r"test_model=pretrained_modesl/t2v_00333000.pth, auto_encoder.*: no such files"),
    "i2vgen_xl_infer": ("inference", r"test_model=pretrained_models/i2v_00882000.pth, auto_encoder.*: no such files"),
    "t2v_train": (
        "train_net",
        r"Pretrain.resume_checkpoint=pretrained_models/modelscope_t2v/model_scope_0267000.pth",
    ),
    "t2v_train_laion": ("train_net", r"Pretrain.resume_checkpoint=pretrained_modesl/t2v_00333000.pth"),
    "i2vgen_xl_train": ("train_net", r"Pretrain.resume_checkpoint=pretrained_models/modelscope_i2v/I2VGen-XL/i2vgen"),
    "base": ("inference", r"TASK_TYPE"),
}


@pytest.mark.parametrize("name", MISSING)
def test_the_command_of_the_original_goes_to_where_weights_are_missing(original, name):
    script, message = MISSING[name]
    code, _, err = run_command(script, "--cfg", f"./configs/{name}.yaml")
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert re.search(message, last), last
    assert "Traceback" not in err


def tiny(name: str) -> dict:
    """The sections of a file of the original with the sizes of the tiny networks."""
    network = IMAGE_UNET if name.startswith("i2v") else UNET
    return {"UNet": {**PUBLISHED[name]["UNet"], **network}}


@pytest.mark.parametrize(
    ("train", "infer"),
    [pytest.param("t2v_train", "t2v_infer", marks=pytest.mark.slow), ("i2vgen_xl_train", "i2vgen_xl_infer")],
)
def test_the_files_of_the_original_run_to_the_end_with_tiny_sizes(original, train, infer):
    family = (write_image_family if infer.startswith("i2v") else write_family)(original)
    write_original(
        original,
        train,
        **tiny(train),
        auto_encoder={**AUTOENCODER, "pretrained": "autoencoder.pth"},
        embedder={**EMBEDDER_, "pretrained": "embedder.safetensors"},
        resolution=[32, 32],
    )
    listed = original / "one.txt"
    listed.write_text(str(original / "disc.png") if infer.startswith("i2v") else "a red mug")
    sizes = tiny(infer)
    sizes["UNet"]["use_lgm_refine"] = False
    write_original(
        original, infer, **sizes, test_model=family["test_model"], test_list_path="one.txt",
        max_frames=3, round=1, log_dir="out", ddim_timesteps=2,
    )  # fmt: skip
    code, _, err = run_command("inference", "--cfg", f"configs/{infer}.yaml")
    assert code == 0, err
    made = [json.loads(file.read_text()) for file in sorted((original / "out").glob("*/result.json"))]
    assert len(made) == 1
    assert {one["settings"]["sampler"]["num_steps"] for one in made} == {2}
    assert {one["settings"]["cameras"]["num_views"] for one in made} == {3}
    assert all((file.parent / "orbit.mp4").stat().st_size > 0 for file in (original / "out").glob("*/result.json"))

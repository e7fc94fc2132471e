"""The shipped configurations: they load, say what was published, and fit the budget of the repository."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from pipelines.sampling.conditioner import check_model_kind
from pipelines.sampling.inputs import read_list
from tests.conftest import ROOT
from tests.reference_cases import REFERENCE
from utils.config import load_config
from utils.object_image import input_view
from utils.registry import ENGINE, INFER_ENGINE

PUBLISHED = json.loads((REFERENCE / "published_settings.json").read_text())
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads_and_names_its_entrance(path):
    cfg = load_config(path)
    if cfg.TASK_TYPE in ENGINE.names():
        assert cfg.training.options
    else:
        INFER_ENGINE.resolve({"type": cfg.TASK_TYPE})


def test_the_text_model_trains_with_the_published_settings():
    check_published_training("t2v_train")


def test_the_image_model_trains_with_the_published_settings():
    cfg = check_published_training("i2vgen_xl_train")
    options = cfg.vid_dataset.options
    assert (options.background, options.empty_captions, options.random_start_view) == (1.0, True, True)


def test_the_image_model_samples_with_the_published_settings():
    cfg = load_config(ROOT / "configs" / "i2vgen_xl_infer.yaml")
    published = {**PUBLISHED["defaults"], **PUBLISHED["i2vgen_xl_infer"]}
    for key in ("TASK_TYPE", "guide_scale", "target_fps", "seed", "round", "batch_size",
                "use_zero_infer", "test_list_path", "test_model", "log_dir", "negative_prompt"):  # fmt: skip
        assert getattr(cfg, key) == published[key], key
    assert (cfg.cameras.elevation_deg, cfg.cameras.distance, cfg.cameras.num_views) == (5, 1.7, 24)
    assert (cfg.image_prompt, cfg.zero_local_image, cfg.precision) == ("", False, "float16")


def check_published_training(name):
    cfg = load_config(ROOT / "configs" / f"{name}.yaml")
    published = {**PUBLISHED["defaults"], **PUBLISHED[name]}
    for key in ("lr", "weight_decay", "eps", "p_zero", "num_steps", "frame_lens", "warmup_steps",
                "decay_mode", "use_ema", "ema_decay", "save_ckp_interval", "seed", "negative_prompt"):  # fmt: skip
        assert getattr(cfg, key) == published[key], key
    assert cfg.batch_sizes["24"] == published["batch_sizes"]["24"]
    for part in ("UNet", "Diffusion", "auto_encoder", "embedder"):
        section = getattr(cfg, part).given
        expected = {**PUBLISHED["defaults"][part], **PUBLISHED[name].get(part, {})}
        for key in section.keys() & expected.keys():
            if isinstance(expected[key], dict):  # what another schedule reads may stand beside it
                assert expected[key].items() <= section[key].items()
            else:
                assert section[key] == expected[key], key
    assert cfg.Pretrain.options.grad_scale == published["Pretrain"]["grad_scale"]
    assert cfg.Pretrain.options.fix_weight == published["Pretrain"]["fix_weight"]
    return cfg


def test_the_joint_training_has_the_published_settings():
    cfg = check_published_training("t2v_train_laion")
    published = PUBLISHED["t2v_train_laion"]
    assert (cfg.frame_lens, cfg.batch_sizes) == (published["frame_lens"], published["batch_sizes"])
    for key in ("type", "data_list", "resolution", "max_words"):
        assert cfg.img_dataset.given[key] == published["img_dataset"][key]
    options = cfg.img_dataset.options
    assert (options.max_watermark, options.max_unsafe, options.min_aesthetic, options.max_aspect) == (0.3, 0.2, 4, 3)


def test_the_mini_text_family_stays_under_30_megabytes():
    cfg = load_config(ROOT / "configs" / "mini" / "t2v_train.yaml")
    with torch.device("meta"):
        parts = [cfg.UNet.build(), cfg.auto_encoder.changed(pretrained=None).build()]
    parts.append(cfg.embedder.changed(pretrained=None).build())
    num_bytes = sum(2 * parameter.numel() for part in parts for parameter in part.parameters())
    assert num_bytes < 29.7e6  # headers of the files come on top


def test_the_mini_image_network_stays_under_20_megabytes():
    cfg = load_config(ROOT / "configs" / "mini" / "i2v_train.yaml")
    with torch.device("meta"):
        network = cfg.UNet.build()
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 19.9e6
    embedder = cfg.embedder.changed(pretrained=None).build()
    check_model_kind(network, embedder, image=True, option="test")


def test_the_listed_example_pictures_are_there():
    for picture in read_list(str(ROOT / "data" / "test_images.txt"), of="image"):
        view_3HW = input_view(ROOT / picture, resolution=(128, 128), recenter=True, object_share=0.7)
        assert view_3HW[:, 64, 64].min() < 0.99  # the object, in the middle of white
        assert view_3HW[:, 0, 0].min() == 1


@pytest.mark.parametrize(("name", "background"), [("t2v_infer", 0.5), ("i2vgen_xl_infer", 0.7)])
def test_3d_aware_sampling_has_the_published_settings(name, background):
    cfg = load_config(ROOT / "configs" / f"{name}.yaml")
    options = cfg.reconstruction.options
    assert options.views_of(24) == [0, 6, 12, 18]
    assert cfg.reconstruction.build(network=None, workshop=None).refine_steps(50) == {20, 30, 40}
    assert (options.render_size, options.resize, options.background, options.fov) == (512, "nearest", background, 49.1)
    assert (options.guidance, options.published_sampling_axes) == ("after", True)
    assert (options.head_config.rotation, options.head_config.anchor, cfg.results) == ("over_gaussians", "none", "both")


def test_what_takes_seconds_to_import_waits_and_training_machines_need_no_mesh_libraries():
    """So that mistakes are said at once, and several processes start soon. One start of Python answers both."""
    slow = {"open_clip", "diffusers", "transformers", "peft", "torchvision", "sympy", "torch._dynamo"}
    mesh_libraries = ["trimesh", "embreex", "OpenEXR"]
    code = f"import gc, sys; gc.disable(); sys.modules.update(dict.fromkeys({mesh_libraries}))\n"
    code += "import datasets, datasets.zoo\n"
    code += f"for name in {mesh_libraries}: del sys.modules[name]\n"
    code += "import models, pipelines.training.trainer, pipelines.sampling.inference\n"
    code += f"print(*{slow} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []

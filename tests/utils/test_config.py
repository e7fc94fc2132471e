"""What a command line says about its own changes."""

from __future__ import annotations

import dataclasses

import pytest

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from tests.conftest import ROOT
from tests.tiny import write_config
from utils.config import changes_text, load_config
from utils.errors import ConfigError
from utils.settings.assets import AssetOptions
from utils.settings.typed import identifying

MINI = ROOT / "configs" / "mini" / "t2v_train.yaml"
FILES = ("vid_dataset.data_list=[list.json]", "vid_dataset.data_dir_list=[views]")


def warnings(caplog, *overrides):
    caplog.clear()
    load_config(MINI, overrides)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_another_type_says_which_settings_it_does_not_take_along(caplog):
    (line,) = warnings(caplog, "vid_dataset.type=VideoDataset", *FILES)
    assert line == (
        "vid_dataset.type=VideoDataset starts from its own defaults; not kept: resolution=[128, 128], "
        "background=1.0; set them again to keep them"
    )
    given = (*FILES, "vid_dataset.resolution=[128,128]", "vid_dataset.background=0.5")
    assert warnings(caplog, "vid_dataset.type=VideoDataset", *given) == []


@pytest.mark.parametrize(
    "override",
    ["vid_dataset.type=PackedOrbits", "sampler.type=DDIM", "Pretrain.type=pretrain_specific_strategies", "seed=3"],
)
def test_nothing_is_said_where_nothing_is_missed(caplog, override):
    assert warnings(caplog, override) == []


def test_the_shipped_files_say_what_they_mean(caplog):
    for path in (ROOT / "configs").rglob("*.yaml"):
        load_config(path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_an_option_is_found_by_what_people_call_it():
    with pytest.raises(ConfigError, match=r"guidance is unknown to .*; did you mean guide_scale\?"):
        load_config(MINI, ["guidance=3"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_printed_is_the_run(path, tmp_path):
    cfg = load_config(path, ["seed=7"])
    (tmp_path / "printed.yaml").write_text(changes_text(cfg), encoding="utf-8")
    assert load_config(tmp_path / "printed.yaml") == cfg
    assert len(changes_text(cfg).splitlines()) < 120


T2V = "configs/mini/t2v_infer.yaml"


@pytest.mark.parametrize(
    ("in_file", "overrides", "expected"),
    [
        ({}, (), False),
        ({"refine": True}, (), True),
        ({"UNet": {"use_lgm_refine": True}}, (), True),
        ({"UNet": {"use_lgm_refine": True}}, ("refine=false",), False),
        ({"refine": True}, ("UNet.use_lgm_refine=false",), False),
        ({"refine": True, "UNet": {"use_lgm_refine": True}}, (), True),
    ],
)
def test_the_published_switch_of_3d_aware_sampling_is_the_runs(tmp_path, in_file, overrides, expected):
    base = load_config(ROOT / T2V)
    cfg = load_config(write_config(tmp_path / "run.yaml", {"base": str(ROOT / T2V), **in_file}), overrides)
    assert cfg.refine is expected
    assert cfg.UNet == base.UNet  # the network itself is the same


def test_two_names_of_one_setting_must_agree(tmp_path):
    path = write_config(tmp_path / "run.yaml", {"base": str(ROOT / T2V), "refine": False})
    with pytest.raises(ConfigError, match=r"UNet\.use_lgm_refine=True, but refine=False; give only refine"):
        load_config(path, ["UNet.use_lgm_refine=true", "refine=false"])


def test_a_section_is_checked_once_and_typed():
    cfg = load_config(ROOT / T2V)
    assert (cfg.UNet.type, cfg.UNet.options.dim_mult, cfg.takes_images) == ("UNetSD_T2VBase", (1, 2), False)
    wider = cfg.UNet.changed(dim=96)
    assert (wider.options.dim, cfg.UNet.options.dim) == (96, 64)
    with pytest.raises(ConfigError, match=r"UNet\.dmi is unknown to UNetSD_T2VBase; did you mean dim\?"):
        cfg.UNet.changed(dmi=96)
    assert not cfg.img_dataset
    with pytest.raises(ConfigError, match=r"the section img_dataset is empty; give it a type, one of ImageDataset, "):
        cfg.img_dataset.build()
    assert load_config(ROOT / T2V) == cfg


def test_newer_options_tell_results_apart_only_if_they_are_set():
    plain, more = identifying(AssetOptions()), identifying(AssetOptions(spz=True))
    assert "spz" not in plain
    assert more == {**plain, "spz": True}
    assert {"spz", "gltf", *plain} == {field.name for field in dataclasses.fields(AssetOptions)}

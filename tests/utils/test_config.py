"""What a command line says about its own changes."""

from __future__ import annotations

import pytest

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from tests.conftest import ROOT
from utils.config import changes_text, load_config
from utils.errors import ConfigError

MINI = ROOT / "configs" / "mini" / "t2v_train.yaml"
FILES = ("vid_dataset.data_list=[list.json]", "vid_dataset.data_dir_list=[views]")


def warnings(caplog, *overrides):
    caplog.clear()
    load_config(MINI, overrides)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_another_type_says_which_settings_it_does_not_take_along(caplog):
    (line,) = warnings(caplog, "vid_dataset.type=VideoDataset", *FILES)
    assert line == (
        "vid_dataset.type=VideoDataset starts from its own defaults; left behind: resolution=[128, 128], "
        "background=1.0; name them again if they shall stay"
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

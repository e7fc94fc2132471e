"""Settings side by side, on tiny models: rows, gains and files."""

from __future__ import annotations

import json

import pytest

from models.weights import save_safetensors
from pipelines.evaluation.consistency_orbits import CEILING, FLOOR
from pipelines.evaluation.settings_table import (
    SettingsOptions,
    evaluate_settings,
    settings_of,
    settings_table,
    without_refining,
)
from pipelines.reconstruction.gaussian_fit import FitOptions
from tests.tiny import load, write_family, write_head, write_image_family
from tests.tiny_orbits import write_turning_orbits
from utils.errors import ConfigError
from utils.registry import MODEL

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")
NO_FILES = [f"assets.{name}=false" for name in ("glb", "html", "splat", "ply", "turntable")]
ROWS = {
    "before": ["reconstruction.guidance=before"],
    "after": ["reconstruction.guidance=after", "results=refined"],
}


def compare(folder, family, rows):
    config = family | write_head(folder) | {"UNet": family["UNet"] | {"use_lgm_refine": True}}
    config |= {"sampler": {"type": "DDIM", "num_steps": 3}, "cameras": {"num_views": 4}}
    orbits = {"elevations": (10.0, 20.0), "num_views": 4, "attributes": {"kind": "disc", "color": "red"}}
    network = MODEL.build({"type": "ViewClassifier", "kinds": ["disc", "square"], "colors": ["blue", "red"]})
    save_safetensors(folder / "classifier.safetensors", network.state_dict(), metadata=network.metadata())
    options = SettingsOptions(
        held_out=write_turning_orbits(folder / "held_out", **orbits),
        classifier=str(folder / "classifier.safetensors"),
        num_objects=2,
        fit=FitOptions(num_gaussians=50, num_steps=2, views_per_step=2),
        batch_size=2,
        out=folder / "out",
    )
    return evaluate_settings({name: load(folder, config, *NO_FILES, *row) for name, row in rows.items()}, options)


@pytest.mark.slow
def test_results_of_images_are_held_against_the_plain_one(tmp_path):
    result = compare(tmp_path, write_image_family(tmp_path), ROWS)
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == result
    before, after = (row["results"] for row in result["settings"])
    assert [list(row) for row in (before, after)] == [["plain", "3D-aware"], ["3D-aware"]]
    mean = {name: sum(row["refit_by_object"]) / 2 for name, row in (*before.items(), ("after", after["3D-aware"]))}
    # by object the figures are rounded to 0.001 dB
    assert before["3D-aware"]["gain"] == pytest.approx(mean["3D-aware"] - mean["plain"], abs=2e-3)
    # the same plain samples, so the gain of the row below is over those of the row above
    assert after["3D-aware"]["gain"] == pytest.approx(mean["after"] - mean["plain"], abs=2e-3)
    assert before["plain"]["psnr"] != before["3D-aware"]["psnr"]
    assert list(result["bounds"]) == [CEILING, FLOOR]
    lines = settings_table(result).splitlines()
    assert len(lines) == 1 + 3 + 2
    assert lines[0].split()[:3] == ["PSNR", "back", "SSIM"]
    assert "kind" not in lines[0]


def test_plain_samples_are_shared_only_where_they_are_the_same(tmp_path):
    config = write_family(tmp_path) | write_head(tmp_path)
    rows = [[], ["reconstruction.guidance=before", "results=refined", "assets.glb=false"], ["sampler.num_steps=4"]]
    as_it_is, refining, steps = (without_refining(load(tmp_path, config, *row)) for row in rows)
    assert as_it_is == refining != steps


def test_prompts_are_counted_by_what_is_recognised(tmp_path):
    result = compare(tmp_path, write_family(tmp_path), {"": []})
    [row] = result["settings"]
    assert {row["results"][name]["kind"] for name in ("plain", "3D-aware")} <= {0.0, 1.0}
    lines = settings_table(result).splitlines()
    assert lines[0].split()[:3] == ["kind", "colour", "refit"]
    assert lines[1].startswith("as configured  plain")


def test_a_table_needs_settings():
    assert settings_of(["a=1", "", "a=1"]) == ["a=1", ""]
    with pytest.raises(ConfigError, match="--measure settings needs at least one --set"):
        settings_of([])

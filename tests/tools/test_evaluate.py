"""The command, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipelines.evaluation.held_out import TrueOrbits
from pipelines.evaluation.samples import write_sample
from tests.conftest import ROOT
from tests.tiny import write_config, write_family, write_head, write_image_family
from tests.tiny_orbits import write_turning_orbits
from tools.evaluate import main
from utils.config import load_config
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")


@pytest.fixture
def measure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "run.yaml", write_image_family(tmp_path) | {"cameras": {"num_views": 8}})
    write_turning_orbits(tmp_path / "held_out", elevations=(10.0, 20.0))

    def measure(*options):
        line = ["evaluate.py", "--cfg", "run.yaml", "--held-out", "held_out", "--out", "out", *options]
        monkeypatch.setattr(sys, "argv", line)
        main()
        return capsys.readouterr().out

    return measure


def test_an_image_model_is_measured_against_the_truth(tmp_path, measure):
    table = measure("--num", "2", "sampler.num_steps=1", "--known", "2")
    assert "2 objects, over the orbit: 6 views that were not given (1-3, 5-7)" in table
    assert "model, 2 given views:" in table
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "given_1", "given_2", "metrics.json", "azimuth.png", "sheet.png"
    }  # fmt: skip


@pytest.mark.slow
def test_it_is_started_as_a_file(tmp_path, measure):
    line = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "--cfg", "run.yaml", "--held-out", "held_out"]
    line += ["--num", "2", "sampler.num_steps=1", "--known", "2", "--out", "out"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "model, 2 given views:" in done.stdout


def test_samples_are_tested_for_consistency_and_mistakes_are_named(tmp_path, measure):
    cfg = load_config(tmp_path / "run.yaml")
    orbit = TrueOrbits(tmp_path / "held_out", cfg, limit=1, scratch=tmp_path, option="--held-out")[0]
    write_sample(tmp_path / "run" / "one", {"views": orbit.views_VCHW}, orbit=orbit, record={})
    consistency = ("--measure", "consistency", "--fit-steps", "2", "--fit-gaussians", "50", "--fit-batch", "1")
    table = measure(*consistency, "--runs", "run", "seed=3")
    assert all(name in table for name in ("run ", "true views (ceiling)", "mixed (floor)", "Chamfer"))
    before = (tmp_path / "out" / "consistency.json").read_text()
    damaged = ("[]", "null", "[" * 50_000, '{"orbit": 1}')
    for record, content in zip(sorted((tmp_path / "out" / "consistency").rglob("*.json")), damaged, strict=False):
        record.write_text(content)
    measure(*consistency, "--runs", "run", "seed=3")  # what is damaged is measured again
    now = (tmp_path / "out" / "consistency.json").read_text()
    rows, old_rows = (json.loads(text)["rows"] for text in (now, before))
    assert {name: row["num_objects"] for name, row in rows.items()} == {
        name: row["num_objects"] for name, row in old_rows.items()
    }
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"one"}
    write_config(tmp_path / "head.yaml", write_family(tmp_path) | write_head(tmp_path))
    assert "unseen cameras (4 views)" in measure("--measure", "head", "--cfg", "head.yaml", "assets.glb=false")
    for options, message in (
        (consistency, "--measure consistency needs --runs FOLDER"),
        (("--runs", "run"), "--runs does not apply to an image model"),
        (("--num", "0"), "--num must be at least 1, got 0"),
        (("--sheet", "0"), "--sheet must be at least 1, got 0"),
        (("--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("--part", "1/2"), "--part 1/2 applies to --measure fits, not to auto"),
        (("--measure", "fits", "--part", "3/2"), "--part 3/2 must be K/N with K from 1 to N"),
        (("--known", "3"), "--known 3 is not valid; use a divisor of the 8 views"),
    ):
        with pytest.raises(ConfigError, match=message):
            measure(*options)

"""The command, on tiny models."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT
from tests.tiny import write_config, write_image_family
from tests.tiny_orbits import write_turning_orbits


def test_an_image_model_is_measured_against_the_truth(tmp_path):
    family = write_image_family(tmp_path) | {"cameras": {"num_views": 8}}
    cfg = write_config(tmp_path / "run.yaml", family)
    write_turning_orbits(tmp_path / "held_out", elevations=(10.0, 20.0))
    line = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "--cfg", str(cfg), "--held-out", "held_out"]
    line += ["--num", "2", "sampler.num_steps=1", "--known", "2", "--out", "out"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 objects, over the orbit: 6 views that were not given (1-3, 5-7)" in done.stdout
    assert "model, 2 given views:" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "given_1", "given_2", "metrics.json", "azimuth.png", "sheet.png"
    }  # fmt: skip
    wrong = subprocess.run([*line, "guide_scal=2"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1].startswith("error: guide_scal is unknown")

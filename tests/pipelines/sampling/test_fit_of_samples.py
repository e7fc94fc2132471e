"""A run with a section `fit` also fits an object to the views of each sample."""

import json

import pytest

from pipelines.sampling.inference import OrbitInference
from pipelines.sampling.sample_folder import RESULT_FILE, ours_in
from tests.tiny import load, run, write_family
from tests.tiny_views import sphere_views, write_transforms
from utils.errors import ConfigError

FIT = {"type": "gs", "num_gaussians": 64, "num_steps": 2, "hull_grid": 24}
FEW = {"ply": True, "splat": False, "glb": False, "html": False, "turntable": False}


@pytest.fixture
def family(tmp_path):
    return write_family(tmp_path)


def write_ball(self, jobs, known, settings, **_):
    """Write views of a ball instead of samples of an untrained network, whose background is not plain."""
    for job in jobs:
        write_transforms(job.folder, sphere_views(num_views=6, size=32), over=1.0)
        (job.folder / RESULT_FILE).write_text(json.dumps(job.source.record | {"seed": job.seed}))


def test_each_sample_gets_a_fit_which_is_kept(tmp_path, family, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(OrbitInference, "_make", write_ball)
    monkeypatch.setattr("pipelines.sampling.inference.is_done", lambda job, _: (job.folder / RESULT_FILE).is_file())
    cfg = load(tmp_path, family | {"fit": FIT, "assets": FEW})
    folders = run(cfg)
    for folder in folders:
        assert {path.name for path in (folder / "fit").iterdir()} == {"gaussians.ply", "fit.png", "result.json"}
    assert json.loads((folders[0] / "fit" / "result.json").read_text())["seed"] == cfg.seed
    caplog.clear()
    run(cfg)
    assert caplog.text.count("finished before, kept") == len(folders)
    (folders[0] / "fit" / "mine.txt").write_text("mine")
    ours = ours_in(folders[0])
    assert {path.name for path in (folders[0] / "fit").iterdir() if not ours(path.relative_to(folders[0]))} == {
        "mine.txt"
    }


def test_samples_that_cannot_be_fitted_are_named(tmp_path, family):
    cfg = load(tmp_path, family | {"fit": FIT, "assets": FEW})
    task = OrbitInference(OrbitInference.Config(), cfg=cfg)
    folders = task.run()
    assert all((folder / "views" / "000.png").is_file() for folder in folders)
    assert len(task.failures) == len(folders)
    assert all("no fit: " in failure for failure in task.failures)


def test_wrong_options_of_a_fit_are_refused_before_sampling(tmp_path, family):
    with pytest.raises(ConfigError, match=r"fit.num_step is unknown to gs; did you mean num_steps"):
        load(tmp_path, family | {"fit": {"type": "gs", "num_step": 2}})
    with pytest.raises(ConfigError, match=r"fit.type=nurf is unknown; did you mean nerf"):
        load(tmp_path, family | {"fit": {"type": "nurf"}})

"""A run that others watch: progress, previews, stopping, and networks that are loaded once."""

from __future__ import annotations

import dataclasses
import filecmp

import pytest
import torch

from pipelines.reconstruction.fitting.loop import fit_object
from pipelines.sampling.inference import RunWatch
from pipelines.sampling.pipeline import ViewsPipeline
from tests.tiny import load, run, write_family, write_head
from tests.tiny_views import sphere_views
from utils.errors import ConfigError
from utils.registry import FITS, INFER_ENGINE


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def config(folder):
    return {**write_family(folder), **write_head(folder), "test_list_path": "", "prompts": ["a red mug"]}


@pytest.fixture(scope="module")
def pipeline(folder, config):
    return ViewsPipeline.from_config(load(folder, config))


def watched(cfg, pipeline, **calls):
    return INFER_ENGINE.build({"type": cfg.TASK_TYPE}, cfg=cfg).run(pipeline=pipeline, watch=RunWatch(**calls))


def test_everything_is_told_and_nothing_changes(folder, config, pipeline, tmp_path, one_thread):
    overrides = ["seed=5", "sampler.num_steps=4", "guide_scale=2", "assets.turntable=false", "assets.glb=false"]
    told = {"steps": [], "latents": [], "orbits": [], "files": []}
    cfg = load(folder, config, *overrides, f"log_dir={tmp_path / 'watched'}")
    [sample] = watched(
        cfg,
        pipeline,
        on_step=lambda done, total: told["steps"].append((done, total)),
        on_x0=lambda used, x0: told["latents"].append(used.decode(x0[:, :, :2]).shape),
        on_orbits=told["orbits"].append,
        on_file=told["files"].append,
    )
    assert told["steps"] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told["latents"] == [(1, 2, 3, 32, 32)] * 4
    assert [orbits.seeds for orbits in told["orbits"]] == [[5]]
    assert told["files"] == ["gaussians.ply", "gaussians.splat", "viewer.html"]
    [alone] = run(load(folder, config, *overrides, f"log_dir={tmp_path / 'alone'}"))
    names = [f"views/{view:03d}.png" for view in range(8)] + told["files"][:2]
    assert filecmp.cmpfiles(sample, alone, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize("call", ["on_step", "on_x0", "on_orbits", "on_file"])
def test_an_error_ends_the_run_and_no_sample_is_left(folder, config, pipeline, tmp_path, call):
    def stop(*_):
        raise Stopped

    cfg = load(folder, config, f"log_dir={tmp_path}")
    with pytest.raises(Stopped):
        watched(cfg, pipeline, **{call: stop})
    assert not list(tmp_path.glob("*_seed*"))
    assert not (tmp_path / ".in_use").exists()


def test_x0_of_each_step_is_what_the_solver_receives(folder, config, pipeline):
    seen = []
    orbits = pipeline("a red mug", seeds=3, on_x0=lambda x0: seen.append(x0.clone()))
    assert len(seen) == 5
    distance = [float((x0 - orbits.latents_BCVHW).abs().mean()) for x0 in seen]
    assert distance[4] < distance[1] < distance[0]
    refined = []
    pipeline("a red mug", seeds=3, results="refined", on_x0=refined.append)
    assert len(refined) == 5


def test_settings_of_the_networks_stay(folder, config, pipeline):
    cfg = load(folder, config)
    other = pipeline.with_settings(dataclasses.replace(cfg, guide_scale=1.0, seed=4))
    assert other.unet is pipeline.unet
    assert (other.cfg.guide_scale, pipeline.cfg.guide_scale) == (1.0, 3.0)
    with pytest.raises(ConfigError, match="test_model belongs to the loaded networks"):
        pipeline.with_settings(dataclasses.replace(cfg, test_model="another.pth"))


def test_a_fit_tells_its_steps_and_stops(one_thread):
    section = FITS.section({"type": "gs", "num_gaussians": 50, "num_steps": 6, "hull_grid": 16}, where="test")
    told = []
    fit_object(section, sphere_views(), seed=0, on_step=lambda done, total: told.append((done, total)))
    assert told == [(step, 6) for step in range(1, 7)]

    def stop(done, total):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit_object(section, sphere_views(), seed=0, on_step=stop)
    assert torch.is_grad_enabled()

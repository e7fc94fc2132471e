"""What counts as finished, and that no result is replaced by that of another input, on untrained tiny models."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.weights import read_weights, save_published
from pipelines.sampling.finished import facts_of, is_done, sample_settings
from pipelines.sampling.inference import plan_jobs
from pipelines.sampling.inputs import prompt_sources
from pipelines.sampling.pipeline import ViewsPipeline
from pipelines.sampling.sample_folder import VisualGeneratedVideos
from tests.campaign import run_command
from tests.odd_pictures import square
from tests.tiny import load, run, write_config, write_family, write_head, write_image_family
from utils import images
from utils.errors import ConfigError, DataError, WriteError

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")
SHORT = {"type": "DiffusionDDIM", "schedule_param": {"num_timesteps": 2}}
QUICK = {"sampler": {"type": "DDIM", "num_steps": 1}, "cameras": {"num_views": 1}, "guide_scale": 1.0}


@pytest.fixture
def family(tmp_path):
    return write_family(tmp_path) | QUICK


def stamps(folders):
    return [(folder / "result.json").stat().st_mtime_ns for folder in folders]


def prompts_of(folders):
    return [json.loads((folder / "result.json").read_text())["prompt"] for folder in folders]


def command(tmp_path, config, *arguments):
    return run_command("inference", "--cfg", str(write_config(tmp_path / "run.yaml", config)), *arguments)


# Kind 4: no result is replaced by that of another input


CLASHES = {
    "case and checksums": ["a red mug", "A red mug", "a red mug 7ab8e37c"],
    "punctuation": ["a red mug!", "a red, mug", "a (red) mug"],  # test_inference's list of prompts has it too
    "sixty characters": ["a red mug " * 6 + "left", "a red mug " * 6 + "right"],
    "other scripts": ["a 茶 mug", "a 馬 mug", "кружка", "чашка", "—"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "punctuation" else ()) for name in CLASHES]
)
def test_prompts_of_one_slug_keep_their_results(tmp_path, family, name):
    """In one run and in many, in any order; what is there is made once."""
    prompts = CLASHES[name]
    folders = run(load(tmp_path, {**family, "prompts": prompts[:1]}))
    folders = run(load(tmp_path, {**family, "prompts": prompts}))
    assert prompts_of(folders) == prompts
    before = stamps(folders)
    for order in (prompts[::-1], prompts[1:]):
        assert prompts_of(run(load(tmp_path, {**family, "prompts": order}))) == order
    assert stamps(folders) == before


def test_what_earlier_versions_named_is_found(tmp_path, family):
    """They gave both of two prompts with one slug a checksum."""
    first, second = run(load(tmp_path, {**family, "prompts": ["a red mug", "A red mug"]}))
    first.rename(first.with_name("a-red-mug-7ab8e37c_seed11"))
    before = stamps([second])
    folders = run(load(tmp_path, {**family, "prompts": ["a red mug", "A red mug"]}))
    assert [folder.name for folder in folders] == ["a-red-mug-7ab8e37c_seed11", second.name]
    assert stamps([second]) == before


def test_pictures_of_one_name_keep_their_results(tmp_path, monkeypatch):
    config = write_image_family(tmp_path) | QUICK
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        Image.fromarray(square(rgb=(200, 40 + 90 * number, 40))).save(tmp_path / folder / "front.png")
    paths = [str(tmp_path / folder / "front.png") for folder in "ab"]
    [first] = run(load(tmp_path, {**config, "images": paths[:1]}))
    before = stamps([first])
    both = run(load(tmp_path, {**config, "images": paths}))
    assert [json.loads((folder / "result.json").read_text())["image"] for folder in both] == paths
    assert both[0] == first
    assert stamps([first]) == before
    # the same name, relative to another folder, is another picture; the same picture elsewhere is the same
    monkeypatch.chdir(tmp_path / "b")
    assert run(load(tmp_path, {**config, "images": ["front.png"]})) == [both[1]]
    shutil.copy(paths[0], tmp_path / "moved.png")
    shutil.copy(tmp_path / "moved.png", "front.png")
    assert run(load(tmp_path, {**config, "images": ["front.png"]})) == [first]
    assert stamps([first]) == before


def test_weights_that_changed_are_noticed(tmp_path, family, caplog):
    caplog.set_level("INFO")
    folders = run(load(tmp_path, family))
    before = stamps(folders)
    weights = tmp_path / "t2v_00000007.pth"
    os.utime(weights)  # a copy with another time
    run(load(tmp_path, family))
    assert stamps(folders) == before
    state = dict(read_weights(weights, option="test").state)
    state["out.2.bias"] = state["out.2.bias"] + 0.01
    save_published(weights, state, 7)
    run(load(tmp_path, family))
    assert all(now > then for now, then in zip(stamps(folders), before, strict=True))
    assert f"was made with other weights ({weights} changed)" in caplog.text


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 100_001])
def test_the_digest_of_a_file_sees_every_byte(tmp_path, size):
    content = bytearray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    path, digests = tmp_path / "w", set()
    places = {n for n in (0, size // 2, size - 1) if 0 <= n < size}
    variants = [content, content + b"\0"]
    variants += [content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :] for n in places]
    variants += [content[4096:8192] + content[:4096] + content[8192:]] if size > 8192 else []
    for number, variant in enumerate(variants):
        path.write_bytes(variant)
        os.utime(path, ns=(number, number))
        digests.add(facts_of(path)["digest"])
    assert len(digests) == len(variants)


def test_planning_many_prompts_is_linear(tmp_path):
    prompts = [f"a red mug {number % 200} {'!' * (number // 200)}" for number in range(10_000)]  # 200 slugs
    began = time.process_time()
    jobs = plan_jobs(prompt_sources(prompts), num_rounds=3, seed=1, out=tmp_path)
    assert time.process_time() - began < 3
    assert len({job.folder for job in jobs}) == 30_000


# Kinds 13 and 14: the files decide


def damage_settings(folder):
    result = json.loads((folder / "result.json").read_text())
    return json.dumps({**result, "settings": None})


BROKEN = {
    "a list": lambda _: "[]",
    "null": lambda _: "null",
    "a number": lambda _: "3",
    "not UTF-8": lambda _: b'{"a\xff',
    "UTF-16": lambda folder: (folder / "result.json").read_text().encode("utf-16"),
    "nested too deeply": lambda _: "[" * 100_000,
    "no settings": damage_settings,
    "settings of another kind": lambda folder: damage_settings(folder).replace("null", '{"UNet": 3}', 1),
    "empty": lambda _: "",
    "cut": lambda folder: (folder / "result.json").read_text()[:50],
    "odd assets": lambda folder: damage_settings(folder).replace('"settings": null', '"assets": [1]'),
    "odd files": lambda folder: (folder / "result.json").read_text().replace('"views/000.png": ', '"views/000.png": -'),
}


@pytest.fixture(scope="module")
def one_sample(tmp_path_factory):
    """A finished sample, its job and its settings; tests damage copies of it."""
    folder = tmp_path_factory.mktemp("one")
    cfg = load(folder, write_family(folder) | QUICK | {"prompts": ["a red mug"]})
    run(cfg)
    [job] = plan_jobs(prompt_sources(["a red mug"]), num_rounds=1, seed=11, out=folder / "out")
    return job, sample_settings(cfg)


def copy_of(one_sample, tmp_path):
    job, settings = one_sample
    shutil.copytree(job.folder, tmp_path / job.folder.name)
    return dataclasses.replace(job, folder=tmp_path / job.folder.name), settings


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_result_is_no_sample(tmp_path, one_sample, name):
    job, settings = copy_of(one_sample, tmp_path)
    assert is_done(job, settings)
    content = BROKEN[name](job.folder)
    (job.folder / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not is_done(job, settings)
    assert plan_jobs([job.source], num_rounds=1, seed=11, out=tmp_path) == [job]


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("name", ["orbit.mp4", "sheet.png", "views/000.png", "transforms.json", "gone views"])
@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_sample_without_a_file_is_not_finished(tmp_path, one_sample, name, how, earlier, caplog):
    caplog.set_level("INFO")
    job, settings = copy_of(one_sample, tmp_path)
    if earlier:  # earlier versions did not list their files
        result = json.loads((job.folder / "result.json").read_text())
        for key in ("files", "weights"):
            del result[key]
        (job.folder / "result.json").write_text(json.dumps(result))
        assert is_done(job, settings)
    if name == "gone views":
        shutil.rmtree(job.folder / "views")
    elif how == "deleted":
        (job.folder / name).unlink()
    else:
        (job.folder / name).write_bytes(b"")
    assert not is_done(job, settings)
    assert ("has no" if how == "deleted" or "gone" in name else "is not as it was written") in caplog.text


def test_settings_that_are_newer_than_a_sample_do_not_make_it_again(tmp_path, one_sample):
    job, settings = copy_of(one_sample, tmp_path)
    result = json.loads((job.folder / "result.json").read_text())
    for name in ("spz", "gltf"):
        del result["settings"]["assets"][name]
    (job.folder / "result.json").write_text(json.dumps(result))
    assert is_done(job, settings)
    assert not is_done(job, {**settings, "assets": {**settings["assets"], "spz": True}})
    assert not is_done(job, {**settings, "assets": {**settings["assets"], "faces": 77}})


def test_a_cut_file_is_not_whole(tmp_path, one_sample):
    job, settings = copy_of(one_sample, tmp_path)
    content = (job.folder / "orbit.mp4").read_bytes()
    (job.folder / "orbit.mp4").write_bytes(content[: len(content) // 2])
    assert not is_done(job, settings)


def test_files_of_the_user_stay(tmp_path, family):
    """When a sample is made again, also what the user made of a file of ours; what was ours goes."""
    [folder] = run(load(tmp_path, {**family, "prompts": ["a red mug"]}))
    (folder / "notes.txt").write_text("good one")
    (folder / "renders").mkdir()
    (folder / "renders" / "a.png").write_bytes(b"mine")
    (folder / "views" / "painted.png").write_bytes(b"mine too")
    (folder / "link").symlink_to("nowhere")
    (folder / "sheet.png").write_bytes(b"painted over")
    (folder / "orbit_gs.mp4").write_bytes(b"of other settings")
    run(load(tmp_path, {**family, "prompts": ["a red mug"]}, "guide_scale=2"))
    assert json.loads((folder / "result.json").read_text())["settings"]["guide_scale"] == 2
    assert (folder / "notes.txt").read_text() == "good one"
    assert (folder / "renders" / "a.png").read_bytes() == b"mine"
    assert (folder / "views" / "painted.png").read_bytes() == b"mine too"
    assert (folder / "link").is_symlink()
    assert (folder / "sheet.kept1.png").read_bytes() == b"painted over"
    assert Image.open(folder / "sheet.png").size == (32, 32)
    assert not (folder / "orbit_gs.mp4").exists()
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_a_file_of_the_user_is_never_replaced_by_a_folder(tmp_path, family):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a-red-mug_seed11").write_text("mine")
    [folder] = run(load(tmp_path, {**family, "prompts": ["a red mug"]}))
    assert folder.name == "a-red-mug-7ab8e37c_seed11"
    assert (tmp_path / "out" / "a-red-mug_seed11").read_text() == "mine"


@pytest.fixture
def with_object(tmp_path):
    assets = {"glb": False, "html": False, "turntable_frames": 2, "turntable_size": 32}
    head = write_head(tmp_path)
    return write_family(tmp_path) | QUICK | head | {
        "assets": assets, "prompts": ["a red mug"], "sampler": QUICK["sampler"],
    }  # fmt: skip


def test_a_video_that_could_not_be_written_is_made_by_the_next_run(tmp_path, with_object, monkeypatch):
    """The disk is full when the turntable comes."""
    write = images.iio.imwrite

    def full(path, *args, **options):
        if "turntable" in str(path):
            raise OSError(28, "No space left on device")
        write(path, *args, **options)

    monkeypatch.setattr(images.iio, "imwrite", full)
    code, _, err = command(tmp_path, with_object)
    assert code == 2
    assert "turntable.mp4 cannot be written: ffmpeg failed; check the space on the disk" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.yaml"]
    monkeypatch.setattr(images.iio, "imwrite", write)
    [folder] = run(load(tmp_path, with_object))
    assert (folder / "turntable.mp4").stat().st_size
    before = stamps([folder])
    result = json.loads((folder / "result.json").read_text())
    result["assets"]["turntable.mp4"] = {"error": "turntable.mp4 cannot be written: ffmpeg failed"}  # as it once was
    (folder / "result.json").write_text(json.dumps(result))
    run(load(tmp_path, with_object))
    assert "error" not in json.loads((folder / "result.json").read_text())["assets"]["turntable.mp4"]
    before = stamps([folder])
    run(load(tmp_path, with_object))
    assert stamps([folder]) == before
    (folder / "gaussians.ply").unlink()
    run(load(tmp_path, with_object))
    assert (folder / "gaussians.ply").stat().st_size


# Kinds 5, 11 and 16: what stops, and where


@pytest.mark.parametrize("kind", [torch.nan, torch.inf])
def test_latents_that_are_no_numbers_are_no_sample(tmp_path, family, kind):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    with torch.no_grad():
        pipeline.unet.out[-1].bias[0] = kind
    with pytest.raises(DataError, match=r"the latents of 'a red mug' are not finite .*; check test_model=.*7\.pth"):
        pipeline("a red mug")


def test_views_and_conditions_that_are_no_numbers_are_named(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    for value in (torch.nan, torch.inf, -torch.inf):  # infinity would be white or black
        with torch.no_grad():
            pipeline.autoencoder.network.decoder.conv_out.bias[0] = value
        with pytest.raises(DataError, match=r"the views of 'a red mug' .*; check auto_encoder.pretrained="):
            pipeline("a red mug")
    pipeline.conditioner.embedder.encode_text = lambda prompts: torch.full((len(prompts), 16, 24), torch.inf)
    steps = []
    with pytest.raises(DataError, match=r"the conditions \(y\) of 'a red mug' .*; check embedder.pretrained="):
        pipeline("a red mug", on_step=lambda: steps.append(1))
    assert not steps  # before sampling


@pytest.mark.parametrize("bad", ["all", "one"])
def test_one_sample_that_is_none_does_not_end_the_list(tmp_path, family, monkeypatch, bad):
    decode = ViewsPipeline._check_finite

    def check(self, values, inputs, *, what, options):
        values = values.clone()
        for index, prompt in enumerate(inputs):
            if what == "latents" and (bad == "all" or prompt == "b"):
                values[index] = torch.nan
        decode(self, values, inputs, what=what, options=options)

    monkeypatch.setattr(ViewsPipeline, "_check_finite", check)
    code, _, err = command(tmp_path, {**family, "prompts": ["a", "b", "c"], "batch_size": 2})
    made = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert "Traceback" not in err
    if bad == "all":
        assert (code, made) == (2, [])
        assert err.splitlines()[-1].startswith("error: a_seed11: the latents of 'a' are not finite")
    else:
        assert (code, made) == (1, ["a_seed11", "c_seed11"])
        assert len([line for line in err.splitlines() if line.startswith("error: b_seed11: ")]) == 1


@pytest.mark.parametrize("place", ["views", "result", "sheet"])
def test_a_full_disk_is_one_line_with_the_folder(tmp_path, family, monkeypatch, place):
    def full(self, *args, **options):
        if place in str(self) and ".part" in str(self):
            raise OSError(28, "No space left on device")
        return write(self, *args, **options)

    name = "write_text" if place == "result" else "write_bytes"
    write = getattr(Path, name)
    monkeypatch.setattr(Path, name, full)
    code, _, err = command(tmp_path, {**family, "prompts": ["a red mug"]})
    assert code == 2
    folder = str(tmp_path / "out" / "a-red-mug_seed11")
    assert err.splitlines()[-1].startswith(f"error: {folder}/{place}")
    assert "No space left on device" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_inference": {"type": "VisualGeneratedVideos", "columns": 0}}, r"visual_inference.columns must be at"),
        ({"cameras": {"num_views": 10**9}}, r"cameras.num_views must lie in \[1, 1000\]"),
        ({"resolution": [8192, 8192], "cameras": {"num_views": 1000}}, r"of 8192 x 8192 pixels .* GiB are free"),
        ({"resolution": [32, 32000]}, r"resolution must lie in \[8, 8192\]"),
        ({"cameras": {"fov_deg": 180}}, r"cameras.fov_deg must lie in \[1, 150\]"),
        ({"cameras": {"fov_deg": 0}}, r"cameras.fov_deg must lie in \[1, 150\]"),
        ({"target_fps": 10**6}, r"target_fps must lie in \[1, 1000\]"),
        ({"round": 10**9}, r"round must lie in \[1, 1000000\]"),
        ({"round": 10**6, "prompts": [f"mug {number}" for number in range(11)]}, r"samples are too many"),
        ({"seed": 2**63 - 2, "round": 3}, r"seed must lie in .*, got 9223372036854775806"),
        ({"prompts": ["a\udcffb"]}, r"prompt 'a\\udcffb' is not valid UTF-8"),
        ({"Diffusion": SHORT, "sampler": {"type": "DDIM", "num_steps": 3}}, r"=3 is more than the 2 timesteps"),
    ],
)  # fmt: skip
def test_settings_that_would_fail_late_are_refused_first(tmp_path, family, monkeypatch, change, message):
    monkeypatch.setattr(ViewsPipeline, "from_config", None)
    config = {**family, **change}
    prompts = {"prompts": config.pop("prompts", ["a red mug"])}
    with pytest.raises((ConfigError, DataError), match=message):
        run(dataclasses.replace(load(tmp_path, config), **prompts))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["DDIM", "DPMSolver++", "UniPC"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_timestep_can_be_a_step(tmp_path, family, kind, spacing):
    param = {"type": "DiffusionDDIM", "schedule_param": {"num_timesteps": 10}}
    config = {**family, "Diffusion": param, "sampler": {"type": kind, "spacing": spacing, "num_steps": 10}}
    cfg = load(tmp_path, config)
    diffusion = cfg.Diffusion.build()
    if kind != "DDIM" and spacing != "trailing":  # diffusers repeats some
        with pytest.raises(ConfigError, match=rf"sampler.spacing={spacing} uses timesteps twice .*=trailing"):
            cfg.sampler.build().check(diffusion)
        fewer = load(tmp_path, config, "sampler.num_steps=9")
        timesteps = fewer.sampler.build().scheduler(diffusion).timesteps
        assert timesteps.tolist() == list(range(9, 0, -1))
        return
    timesteps = cfg.sampler.build().scheduler(diffusion).timesteps
    assert timesteps.tolist() == list(range(9, -1, -1))
    assert ViewsPipeline.from_config(cfg)("a red mug").views_BVCHW.isfinite().all()


def test_two_runs_do_not_share_a_folder(tmp_path, family):
    writer = VisualGeneratedVideos.write

    def again(self, *args, **options):
        with pytest.raises(DataError, match=r"log_dir=.*out is used by another run \(process \d+ on .*\); wait until"):
            run(load(tmp_path, {**family, "prompts": ["b"]}))
        writer(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisualGeneratedVideos, "write", again)
        run(load(tmp_path, {**family, "prompts": ["a"]}))
    assert len(run(load(tmp_path, {**family, "prompts": ["b"]}))) == 1


def test_a_full_disk_ends_the_list(tmp_path, family, monkeypatch):
    def full(self, folder, *args, **options):
        raise WriteError(f"{folder} cannot be written")

    monkeypatch.setattr(VisualGeneratedVideos, "write", full)
    code, _, err = command(tmp_path, {**family, "prompts": ["a", "b"], "batch_size": 2})
    assert (code, err.count("cannot be written")) == (2, 1)

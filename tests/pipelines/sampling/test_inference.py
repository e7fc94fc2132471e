"""Prompts to files, end to end on untrained tiny models: what is written, resume, seeds, refusals."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys

import imageio.v3
import numpy as np
import pytest
import torch
from PIL import Image

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.zoo import KINDS
from models.weights import read_weights, save_published
from pipelines.sampling.inference import plan_jobs
from pipelines.sampling.inputs import prompt_sources, read_prompts, sources_of
from pipelines.sampling.pipeline import ViewsPipeline
from tests.campaign import run_command
from tests.conftest import ROOT
from tests.tiny import TWO_LEVELS, UNET, load, run, write_config, write_family
from utils.config import load_config
from utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread", "kept_networks")


@pytest.fixture
def family(tmp_path):
    return write_family(tmp_path)


def command(tmp_path, config, *arguments):
    """Run `inference.py` in this process: (exit code, stdout, stderr)."""
    return run_command("inference", "--cfg", str(write_config(tmp_path / "run.yaml", config)), *arguments)


def test_writes_every_file(tmp_path, family):
    folders = run(load(tmp_path, family))
    assert [folder.name for folder in folders] == ["a-red-mug_seed11", "a-blue-chair-3d-asset_seed11"]
    for folder in folders:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        views = {f"views/{number:03d}.png" for number in range(3)}
        assert found == views | {"orbit.mp4", "sheet.png", "transforms.json", "result.json"}
        assert len(imageio.v3.imread(folder / "orbit.mp4", plugin="FFMPEG")) == 3
        assert Image.open(folder / "views" / "001.png").size == (32, 32)
    transforms = json.loads((folders[0] / "transforms.json").read_text())
    position = np.array(transforms["frames"][0]["transform_matrix"])[:3, 3]
    elevation = math.radians(15)
    np.testing.assert_allclose(position, [2 * math.cos(elevation), 0, 2 * math.sin(elevation)], atol=1e-5)
    assert math.degrees(transforms["camera_angle_x"]) == pytest.approx(39.6, abs=0.05)
    result = json.loads((folders[0] / "result.json").read_text())
    assert (result["prompt"], result["seed"], result["settings"]["guide_scale"]) == ("a red mug", 11, 3.0)


def test_resumes_and_notices_other_settings(tmp_path, family):
    cfg = load(tmp_path, family)
    first, second = run(cfg)
    (second / "result.json").unlink()
    stamp = (first / "result.json").stat().st_mtime_ns
    run(cfg)
    assert (first / "result.json").stat().st_mtime_ns == stamp
    assert (second / "result.json").is_file()
    run(load(tmp_path, family, "guide_scale=5"))
    assert json.loads((first / "result.json").read_text())["settings"]["guide_scale"] == 5.0


def test_settings_that_do_not_change_a_sample_keep_it(tmp_path, family):
    """Nor those that a result of an earlier version has written down."""
    first, second = run(load(tmp_path, family))
    result = json.loads((first / "result.json").read_text())
    assert "use_ddp" not in result["settings"]
    result["settings"] |= {"use_ddp": True, "save_ckp_interval": 1000}
    (first / "result.json").write_text(json.dumps(result))
    stamps = [(folder / "result.json").stat().st_mtime_ns for folder in (first, second)]
    others = ("batch_size=2", "decoder_bs=1", "chunk_size=1", "known_objects=[dragon]", "low_memory=true")
    run(load(tmp_path, family, "use_ddp=true", "save_ckp_interval=7", "num_steps=9", *others))
    assert stamps == [(folder / "result.json").stat().st_mtime_ns for folder in (first, second)]


def test_one_seed_gives_one_result_for_any_batch_size(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    both = pipeline(["a red mug", "a blue chair"], seeds=[4, 5])
    alone = pipeline("a blue chair", seeds=5)
    torch.testing.assert_close(both.latents_BCVHW[1:], alone.latents_BCVHW, atol=1e-4, rtol=0)
    assert (pipeline("a blue chair", seeds=6).latents_BCVHW - alone.latents_BCVHW).abs().max() > 0.1


def test_views_resolution_and_cameras_are_settings(tmp_path, family):
    family["cameras"] = {"views": [{"azimuth_deg": 0}, {"azimuth_deg": 90, "elevation_deg": -30, "distance": 1.5}]}
    orbits = ViewsPipeline.from_config(load(tmp_path, family, "resolution=[48,16]"))("a red mug")
    assert orbits.views_BVCHW.shape == (1, 2, 3, 16, 48)
    assert orbits.c2w_V44[1, 2, 3] == pytest.approx(-0.75, abs=1e-5)
    assert 0 <= orbits.views_BVCHW.min() <= orbits.views_BVCHW.max() <= 1


def test_a_call_refuses_a_resolution_that_does_not_fit(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    for side in (0, 36):
        with pytest.raises(ConfigError, match="must be multiples of 8 for these networks"):
            pipeline("a red mug", resolution=(side, 32))


def test_outside_the_guided_part_one_branch_runs(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family, "sampler.num_steps=4", "guide_range=[0.25,0.75]"))
    branches, steps = [], []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: branches.append(len(inputs[0])))
    pipeline("a red mug", on_step=lambda: steps.append(1))
    assert branches == [1, 2, 2, 1]
    assert len(steps) == pipeline.steps_per_call == 4


def test_pipeline_from_a_folder(tmp_path, family):
    family["test_model"] = "t2v_00000007.pth"
    write_config(tmp_path / "config.yaml", family)
    pipeline = ViewsPipeline.from_folder(tmp_path, "sampler.num_steps=2")
    assert pipeline("a red mug").views_BVCHW.shape == (1, 3, 3, 32, 32)


def test_a_saved_pipeline_opens_again(tmp_path, family):
    pipeline = ViewsPipeline.from_config(load(tmp_path, family))
    pipeline.save(tmp_path / "saved")
    again = ViewsPipeline.from_folder(tmp_path / "saved")
    assert again.cfg.guide_scale == family["guide_scale"]
    # Weights went through float16.
    difference = again("a red mug").views_BVCHW - pipeline("a red mug").views_BVCHW
    assert float(difference.abs().max()) < 0.05


def test_prompt_list_skips_comments_and_rounds_count_seeds(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# comment\n\n a cat \na dog\na cat\n")
    prompts = read_prompts(str(path))
    jobs = plan_jobs(prompt_sources(prompts), num_rounds=2, seed=3, out=tmp_path)
    assert [(job.source.text, job.seed) for job in jobs] == [("a cat", 3), ("a dog", 3), ("a cat", 4), ("a dog", 4)]
    clash = plan_jobs(prompt_sources(["a cat", "a  cat!"]), num_rounds=1, seed=0, out=tmp_path)
    assert len({job.folder for job in clash}) == 2


@pytest.mark.slow
def test_command_line(tmp_path, family):
    cfg = write_config(tmp_path / "run.yaml", family)
    line = [sys.executable, str(ROOT / "inference.py"), "--cfg", str(cfg), "seed=2", "--prompt", "a green tree"]
    line += ["sampler.num_steps=2"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "guide_scale: 3.0" in done.stdout
    assert (tmp_path / "out" / "a-green-tree_seed2" / "orbit.mp4").is_file()
    assert "seed: 2" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guide_scal": 3}, "did you mean guide_scale"),
        ({"TASK_TYPE": "inference_text2vide_entrance"}, "did you mean inference_text2video_entrance"),
        ({"sampler": {"type": "DDMI"}}, "did you mean DDIM"),
        ({"test_model": "nowhere.pth"}, "nowhere.pth: no such file; the authors of VideoMV"),
        ({"test_model": ""}, "configs/mini/t2v_infer.yaml"),
        ({"test_list_path": "nowhere.txt"}, "no such file"),
        ({"guide_range": [0.5, 0.5]}, "guide_range must be two fractions with 0 <= start"),
        (
            {"UNet": TWO_LEVELS, "resolution": [30, 32]},
            "must be multiples of 64 for the published networks, of 16 for",
        ),
        ({"UNet": TWO_LEVELS, "resolution": [40, 32]}, "resolution=[40, 32] must be multiples of 16"),
        ({"UNet": {**UNET, "attention": "xformers"}}, "UNet.attention=xformers"),
        ({"frame_lens": [1, 24]}, "frame_lens=[1, 24]"),
        ({"device": "cuda:99"}, "device=cuda:99"),
        ({"vldm_cfg": "x.yaml"}, "vldm_cfg=x.yaml: no such file"),
    ],
)
def test_refuses_in_one_line_and_writes_nothing(tmp_path, family, change, message):
    with pytest.raises((ConfigError, DataError)) as error:
        run(load(tmp_path, {**family, **change}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*/"))


def test_the_command_line_prints_one_line_and_exits_with_2(tmp_path, family):
    code, _, stderr = command(tmp_path, {**family, "test_model": "nowhere.pth"})
    assert code == 2
    assert [line for line in stderr.splitlines() if line.startswith("error: test_model=nowhere.pth")]
    assert "Traceback" not in stderr


def test_refuses_an_empty_prompt_file(tmp_path, family):
    (tmp_path / "prompts.txt").write_text("# nothing\n\n")
    with pytest.raises(DataError, match="contains no prompt"):
        run(load(tmp_path, family))


def test_refuses_an_unwritable_folder(tmp_path, family):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="log_dir="):
        run(load(tmp_path, family, f"log_dir={tmp_path}/file/out"))


class Code:
    def __reduce__(self):
        return (print, ("the pickle ran code",))


@pytest.mark.parametrize("kind", ["missing", "unexpected", "misshapen", "code"])
def test_refuses_weights_that_do_not_fit(tmp_path, family, kind, capsys):
    path = tmp_path / "t2v_00000007.pth"
    state = dict(read_weights(path, option="test").state)
    key = "time_embed.0.weight"
    if kind == "missing":
        del state[key]
    elif kind == "unexpected":
        state["surplus"] = torch.zeros(1)
    elif kind == "misshapen":
        state[key] = torch.zeros(3, 3)
    if kind == "code":
        path.write_bytes(pickle.dumps({"state_dict": Code()}))
    else:
        save_published(path, state, 7)
    with pytest.raises(DataError, match=r"could run code|surplus|time_embed") as error:
        run(load(tmp_path, family))
    assert "\n" not in str(error.value)
    assert "the pickle ran code" not in capsys.readouterr().out


def test_a_prompt_that_the_small_model_cannot_draw_is_noted(caplog):
    line = ["prompts=[a dragon, two Red chairs, a pine tree, a cartoon]"]
    cfg = load_config(ROOT / "configs/mini/t2v_infer.yaml", line)
    assert cfg.known_objects == sorted(KINDS)
    assert len(sources_of(cfg, kind="prompt")) == 4
    noted = [record.getMessage() for record in caplog.records]
    assert [text.split("contains no object")[0] for text in noted] == ["prompt 'a dragon' ", "prompt 'a cartoon' "]
    caplog.clear()
    taught = load_config(ROOT / "configs/mini/t2v_infer.yaml", [*line, "lora.path=dragon.safetensors"])
    sources_of(taught, kind="prompt")
    assert not caplog.records


def test_a_long_prompt_is_cut_with_a_warning(tmp_path, family, caplog):
    run(load(tmp_path, {**family, "prompts": ["word " * 400]}))
    assert "only the first" in caplog.text


def test_a_section_that_changes_type_starts_afresh(tmp_path, family):
    family["sampler"] = {"type": "DDIM", "eta": 0.5}
    cfg = load(tmp_path, family)
    write_config(tmp_path / "child.yaml", {"base": "run.yaml", "sampler": {"type": "UniPC"}})
    assert cfg.sampler.options.eta == 0.5
    assert "eta" not in load_config(tmp_path / "child.yaml").sampler.given


def test_a_base_that_leads_back_is_refused(tmp_path):
    write_config(tmp_path / "a.yaml", {"base": "a.yaml"})
    with pytest.raises(ConfigError, match=r"refers back.*remove it"):
        load_config(tmp_path / "a.yaml")


def test_a_list_with_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# my prompts\r\na red mug\r\n  \r\nune tasse bleutée\r\n".encode())
    assert read_prompts(str(path)) == ["a red mug", "une tasse bleutée"]
    path.write_bytes("a bleutée mug".encode("latin-1"))
    with pytest.raises(DataError, match=r"prompts.txt is not UTF-8 text \(byte 0xe9 in line 1; .*save it as UTF-8"):
        read_prompts(str(path))


def test_a_prompt_that_is_no_text_is_refused_before_sampling(tmp_path, family):
    code, _, stderr = command(tmp_path, family, "--prompt", os.fsdecode(b"a\xffb"))
    assert code == 2
    assert stderr.splitlines()[-1] == ("error: prompt 'a\\udcffb' is not valid UTF-8 (character 2); write it in UTF-8")
    assert not (tmp_path / "out").exists()

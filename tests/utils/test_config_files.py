"""Faults in configuration files: all at once, in one line, with the line and the key."""

from __future__ import annotations

import logging
import os

import pytest

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from tests.conftest import ROOT
from utils.config import load_config, save_config
from utils.errors import ConfigError
from utils.settings.paths import config_names, found_path

T2V = ROOT / "configs" / "mini" / "t2v_infer.yaml"
TRAIN = ROOT / "configs" / "mini" / "t2v_train.yaml"


def written(folder, text: str | bytes, base=T2V):
    path = folder / "run.yaml"
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(f"base: {base}\n".encode() + content)
    return path


def refused(path, *overrides: str, **values) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **values)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


FAULTS = {
    "base: [a.yaml, b.yaml]": "line 1: base=['a.yaml', 'b.yaml'] is not a file name; name one file",
    "base: 3": "line 1: base=3 is not a file name",
    "base: not_there.yaml": "not_there.yaml: no such file",
    "- a\n- b": "the top level is not a mapping",
    "just text": "the top level is not a mapping",
    "": "the top level is not a mapping",
    "a: b: c": "line 1: not valid YAML (mapping values are not allowed here)",
    "seed: 3\n  x: [": "line 2: not valid YAML",
    "seed: *there": "line 1: not valid YAML (found undefined alias 'there')",
    "seed: !!python/object/apply:os.system [ls]": "line 1: not valid YAML (could not determine a constructor",
    "a: &a {b: *a}": "line 1: not valid YAML (an alias that contains itself)",
    "seed: 1\n---\nseed: 2": "line 2: not valid YAML (expected a single document",
    "{a: 1}: 2": "line 1: not valid YAML (a key is not a name)",
    "a: " + "[" * 60 + "]" * 60: "not valid YAML (nested too deeply)",
    "a: " + "[" * 3000: "not valid YAML",
    "a: &a0 [x]\n" + "".join(f"b{n}: &a{n + 1} [*a{n}, *a{n}, *a{n}, *a{n}]\n" for n in range(9)): "more than 100,000",
    "seed: " + "9" * 5000: "not valid YAML",
    "log_dir: a\x00b": "not valid YAML",
    "log_dir: \x07": "not valid YAML",
}


@pytest.mark.parametrize(("text", "message"), FAULTS.items(), ids=[text[:20] for text in FAULTS])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    found = refused(path)
    assert message in found
    assert str(tmp_path) in found


def test_other_encodings_are_named_with_the_line(tmp_path):
    assert "run.yaml, line 3: not UTF-8 text (byte 0xf6); save the file as UTF-8" in refused(
        written(tmp_path, "\nlog_dir: größe".encode("latin-1"))
    )
    assert "not UTF-8 text" in refused(written(tmp_path, "seed: 3".encode("utf-16")))
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + f"base: {T2V}\nlog_dir: größe\n".encode())
    assert load_config(path).log_dir == "größe"


def test_a_path_that_is_no_file_is_refused(tmp_path):
    assert f"--cfg {tmp_path} is a folder; name a file in it" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "none.yaml")
    assert "--cfg a\x00b cannot be read" in refused("a\x00b")
    assert "cannot be read (" in refused(tmp_path / ("x" * 300))
    link = tmp_path / "link.yaml"
    link.symlink_to(link)
    assert "cannot be read" in refused(link)


REFERENCES = {
    "log_dir: ${oc.env:NOT_THERE}/out": "line 2: log_dir=${oc.env:NOT_THERE}/out: ",
    "log_dir: ???": "line 2: log_dir=???: a value is missing; give one",
    "negative_prompt: ${does.not.exist}": "line 2: negative_prompt=${does.not.exist}: ",
    "negative_prompt: ${negative_prompt}": "line 2: negative_prompt=${negative_prompt}: ",
    "negative_prompt: ${eval:1+1}": "line 2: negative_prompt=${eval:1+1}: ",
    "negative_prompt: a ${ b": "line 2: negative_prompt=a ${ b: ",
    "UNet:\n  dim: ???": "line 3: UNet.dim=???: ",
    "cameras: {views: [{azimuth_deg: '${x}'}]}": "line 2: cameras.views[0].azimuth_deg=${x}: ",
    "seed: ${round}\nround: ${seed}": "2 settings are wrong: ",
}


@pytest.mark.parametrize(("text", "message"), REFERENCES.items(), ids=REFERENCES)
def test_a_reference_that_leads_nowhere_is_refused_with_file_and_key(tmp_path, text, message):
    assert message in refused(written(tmp_path, text))


def test_references_between_settings_work(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", "there")
    text = "seed: 5\nlog_dir: ${oc.env:SOME_FOLDER}/${seed}\nround: ${cameras.num_views}\ncameras: {num_views: 3}"
    cfg = load_config(written(tmp_path, text), ["target_fps=${seed}"])
    assert (cfg.log_dir, cfg.round, cfg.target_fps) == ("there/5", 3, 5)


TEXTS = ["a ${seed} mug", "a ${price} tag", "???", "${oc.env:HOME}", "${ broken", "a: b", "- x", "24", "~", "null", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_are_texts(tmp_path, text):
    assert load_config(T2V, (), prompts=[text]).prompts == [text]
    path = tmp_path / "run.yaml"
    save_config(load_config(T2V, (), prompts=[text]), path)
    assert load_config(path).prompts == [text]
    if text.startswith("${"):
        assert load_config(T2V, [f"prompts=['{text}']"]).prompts == [text]
        assert load_config(TRAIN, [f"visual_train.prompts=['{text}']"]).visual_train.options.prompts == [text]
        images = load_config(ROOT / "configs" / "mini" / "i2v_infer.yaml", (), images=[text]).images
        assert images == [text]


def test_all_faults_of_all_files_come_at_once(tmp_path):
    (tmp_path / "below.yaml").write_text(f"base: {TRAIN}\nlr: .nan\nUNet:\n  dmi: 3\nsede: 1\n")
    text = "base: below.yaml\nround: 0\nlog_dir: ???\nseed: 1\nseed: 2\ncameras:\n  elevation_deg: 95\n"
    (tmp_path / "run.yaml").write_text(text)
    message = refused(tmp_path / "run.yaml", "guide_scale=inf")
    assert message.startswith("8 settings are wrong: ")
    for part in (
        "below.yaml, line 2: lr=nan is not a finite number",
        "below.yaml, line 4: UNet.dmi is unknown to UNetSD_T2VBase; did you mean dim?",
        "below.yaml, line 5: sede is unknown to ",
        "run.yaml, line 2: round must be >= 1, got 0",
        "run.yaml, line 3: log_dir=???",
        "run.yaml, line 5: seed comes again (first in line 4); keep one",
        "run.yaml, line 7: cameras.elevation_deg must lie in (-90, 90), got 95.0",
        "; guide_scale=inf is not a finite number",
    ):
        assert part in message, message


def test_a_key_that_comes_twice_is_named_with_its_lines(tmp_path):
    message = refused(written(tmp_path, "use_fp16: true\nguide_scale: 6.0\nuse_fp16: true\n"))
    assert "run.yaml, line 4: use_fp16 comes again (first in line 2); keep one" in message
    message = refused(written(tmp_path, "UNet:\n  dim: 64\n  dim: 64\n"))
    assert "run.yaml, line 4: UNet.dim comes again (first in line 3); keep one" in message
    assert "cameras={distance: 1, distance: 2}': distance comes again; keep one" in refused(
        T2V, "cameras={distance: 1, distance: 2}"
    )
    merged = "cameras: &orbit {distance: 3}\nvisual_train: {<<: *orbit, distance: 4}\n"  # no key comes twice here
    assert "distance is unknown to VisualTrainTextImageToVideo" in refused(written(tmp_path, merged, base=TRAIN))


def test_keys_may_be_numbers(tmp_path):
    cfg = load_config(written(tmp_path, "batch_sizes:\n  24: 2\n", base=TRAIN))
    assert cfg.batch_sizes == {"24": 2}
    assert load_config(TRAIN, ["batch_sizes={24: 2}"]).batch_sizes == {"24": 2}
    assert load_config(TRAIN, ["batch_sizes.24=3"]).batch_sizes == {"24": 3}


NOT_FINITE = [
    "cameras.distance=nan", "cameras.distance=inf", "guide_scale=nan", "guide_scale=inf",
    "cameras.azimuth_start_deg=nan", "cameras.views=[{distance: nan}]", "cameras.fov_deg=nan",
    "guide_scale=.nan", "guide_scale=-.inf", "guide_scale=1e999", "guide_range=[0,nan]", "object_share=nan",
    "UNet.dropout=nan", "Diffusion.schedule_param.cosine_s=nan", "known_views=[{image: a, azimuth_deg: .nan}]",
    "lora.weight=nan", "lora.alpha=inf", "assets.background=nan", "assets.turntable_distance=inf",
    "auto_encoder.scale_factor=nan", "sampler.warp=nan", "reconstruction.background=nan", "objective={x: .nan}",
    "lr=nan", "eps=nan", "betas=[nan,0.9]", "grad_clip=nan", "max_minutes=inf", "cache_memory_gb=nan", "p_zero=nan",
    "ema_decay=nan", "weight_decay=nan", "vid_dataset.background=nan", "input_elevation_deg=nan",
]  # fmt: skip


@pytest.mark.parametrize("override", NOT_FINITE)
def test_numbers_that_are_none_are_refused_by_name(override):
    key = override.partition("=")[0]
    message = refused(T2V, override)
    assert message.startswith(key)
    assert "is not a finite number" in message


OUT_OF_RANGE = [
    "seed=99999999999999999999", "seed=-9223372036854775808", "seed=1.5", "seed=true",
    "round=0", "round=-1", "round=1000000000", "cameras.num_views=0", "cameras.num_views=1e9",
    "cameras.fov_deg=180", "cameras.fov_deg=0", "cameras.distance=-1", "cameras.distance=1e30",
    "cameras.azimuth_start_deg=1e300", "cameras.views=[{distance: -1}]", "cameras.views=[{elevation_deg: 90}]",
    "cameras.views=[{azimuth: 3}]", "batch_size=0", "target_fps=0", "decoder_bs=-3", "guide_scale=1e30",
    "resolution=[0,0]", "resolution=[1e6,1e6]", "resolution=[64]", "resolution=64", "lr=0", "lr=-1", "lr=1e9",
    "betas=[0.9,1]", "betas=[1]", "eps=-1", "warmup_steps=-1", "num_workers=-1", "num_workers=1e9",
    "prefetch_factor=0", "grad_clip=-1", "max_minutes=-1", "num_steps=1e30", "batch_sizes={24: 0}",
    "batch_sizes={a: 2}", "batch_sizes={24: 1e12}", "weight_decay=-1", "Diffusion.schedule_param.num_timesteps=0",
    "Diffusion.schedule_param.init_beta=-1", "compile=maybe", "device=[cpu]", "prompts=a red mug", "UNet=3",
    "UNet=null", "refine=2", "keep_states=0",
]  # fmt: skip


@pytest.mark.parametrize("override", OUT_OF_RANGE)
def test_values_out_of_range_are_refused_by_name(override):
    assert override.partition("=")[0].split(".views")[0] in refused(T2V, override)


def test_the_seed_of_the_last_round_fits_too():
    assert load_config(T2V, ["seed=9223372036854775807"]).seed == 2**63 - 1
    assert "seed must lie in" in refused(T2V, "seed=9223372036854775807", "round=2")


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("num_steps=1e6", "num_steps", 10**6),
        ("seed='3'", "seed", 3),
        ("seed=-3", "seed", -3),
        ("compile=on", "compile", True),
        ("compile=0", "compile", False),
        ("lr=3e-5", "lr", 3e-5),
        ("guide_scale=7", "guide_scale", 7.0),
        ("log_dir=2024", "log_dir", "2024"),
        ("log_dir=2024-01-02", "log_dir", "2024-01-02"),
        ("input_elevation_deg=null", "input_elevation_deg", None),
        ("guide_range=[0,0.5]", "guide_range", (0.0, 0.5)),
    ],
)
def test_values_are_converted_to_the_type_of_the_setting(override, key, expected):
    value = getattr(load_config(T2V, [override]), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed"], "override 'seed' is not of the form key=value"),
        (["=3"], "override '=3' is not of the form key=value"),
        (["a b=3"], "override 'a b=3' is not of the form key=value"),
        (["seed=[1"], "override 'seed=[1'"),
        (["seed=1", "seed.x=2"], "an earlier override makes seed a value"),
        (["log_dir=${oc.env:NOT_THERE}"], "log_dir=${oc.env:NOT_THERE}: "),
        (["log_dir=???"], "log_dir=???: a value is missing"),
    ],
)
def test_faults_of_the_command_line_are_one_line(overrides, message):
    assert message in refused(T2V, *overrides)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "log_dir: ~/out\ntest_model: ~/unet.pth\nauto_encoder: {pretrained: ~/a.pth}\nlora: {path: ~/l.safetensors}"
    cfg = load_config(written(tmp_path, text), ["cache_dir=~/cache"], images=["~/a.png"])
    assert cfg.log_dir == f"{tmp_path}/out"
    assert cfg.cache_dir == f"{tmp_path}/cache"
    assert cfg.test_model == f"{tmp_path}/unet.pth"
    assert cfg.auto_encoder.pretrained == f"{tmp_path}/a.pth"
    assert (cfg.lora.path, cfg.images) == (f"{tmp_path}/l.safetensors", [f"{tmp_path}/a.png"])


def test_shipped_files_are_found_from_every_working_directory(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    at_home = load_config(T2V)
    assert at_home.test_model == "data/mini/unet_t2v.safetensors"  # unchanged where it is
    assert "not in the working directory" not in caplog.text
    monkeypatch.chdir(tmp_path)
    cfg = load_config("configs/mini/t2v_infer.yaml")
    files = (
        cfg.test_model,
        cfg.test_list_path,
        *(getattr(cfg, name).pretrained for name in ("auto_encoder", "embedder")),
    )
    assert all(os.path.isfile(file) and os.path.isabs(file) for file in files)
    assert cfg.log_dir == at_home.log_dir  # what is written is relative to the working directory
    assert "data/mini/unet_t2v.safetensors" in caplog.text
    (tmp_path / "data" / "mini").mkdir(parents=True)
    (tmp_path / "data" / "mini" / "unet_t2v.safetensors").write_text("own")
    assert load_config(T2V).test_model == "data/mini/unet_t2v.safetensors"  # that of the working directory comes first
    assert found_path("not/there.pth") == "not/there.pth"


def test_a_configuration_of_the_project_is_found_by_its_name(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    for name in ("mini/t2v_infer", "mini/t2v_infer.yaml", "configs/mini/t2v_infer.yaml"):
        caplog.clear()
        assert load_config(name).log_dir == "workspace/visualization/mini_t2v"
        assert f"--cfg {name} is not in the working directory, so read from {T2V}" in caplog.text
    assert {"mini/t2v_infer", "wan/ti2v_5b_train"} <= set(config_names())
    assert "mini/base" not in config_names()
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "t2v_infer").write_text("seed: 5\n")  # a file here comes first
    caplog.clear()
    assert load_config("mini/t2v_infer").seed == 5
    assert "--cfg" not in caplog.text
    with pytest.raises(ConfigError, match=r"--cfg mini/t2v_inver: no such file .*; did you mean mini/t2v_infer\?"):
        load_config("mini/t2v_inver")

"""Sampling and training from a folder in the published layout of Wan, with tiny random weights."""

import json
import re
import shutil

import pytest
import torch

from models.weights import read_weights
from pipelines import ViewsPipeline
from pipelines.parts import check_fit
from pipelines.reconstruction.loading import load_network_of
from pipelines.training.trainer import train
from tests.conftest import ROOT
from tests.tiny import HEAD, load, run, write_config
from tests.tiny_orbits import SIZE, training_config, write_orbits, write_turning_orbits
from tests.tiny_wan import AUTOENCODER, write_wan
from tools.random_weights import write_random_weights
from utils.config import load_config
from utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")


def sampling_config(folder, **changes):
    return {
        **write_wan(folder / "wan"),
        "TASK_TYPE": "inference_text2video_entrance",
        "prompts": ["a red mug", "a cup"],
        "log_dir": str(folder / "out"),
        "resolution": [32, 32],
        "cameras": {"num_views": 3},
        "device": "cpu",
        "guide_scale": 3.0,
        **changes,
    }


def test_it_samples_keeps_what_is_done_and_notices_new_weights(tmp_path, caplog):
    caplog.set_level("INFO")
    cfg = load(tmp_path, sampling_config(tmp_path))
    folders = run(cfg)
    assert caplog.text.count("loading the text encoder") == 1  # for all prompts of the run
    result = json.loads((folders[0] / "result.json").read_text())
    parts = {path.split("/")[-2] for path in result["weights"]}
    assert parts == {"transformer", "vae", "text_encoder"}
    shutil.rmtree(tmp_path / "wan" / "text_encoder")  # the words are on disk
    elsewhere = f"embedder.cache_dir={tmp_path / 'elsewhere'}"
    run(load_config(tmp_path / "run.yaml", [elsewhere, "embedder.device=cpu"]))
    assert "0 of 2 samples to make" in caplog.text
    cfg.auto_encoder.options.write_random(tmp_path / "wan", seed=9)
    run(cfg)
    assert "2 of 2 samples to make" in caplog.text.split("0 of 2 samples")[1]
    assert "was made with other weights" in caplog.text
    another = load(tmp_path, sampling_config(tmp_path, prompts=["a new thing"]))
    shutil.rmtree(tmp_path / "wan" / "text_encoder")
    with pytest.raises(DataError, match=r"lacks 1 prompts \(first: 'a new thing, 3d asset'\)"):
        run(another)


def test_a_saved_pipeline_samples_the_same(tmp_path):
    pipeline = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path)))
    orbits = pipeline("a red mug", seeds=1)
    assert orbits.views_BVCHW.shape == (1, 3, 3, 32, 32)
    pipeline.save(tmp_path / "saved")
    again = ViewsPipeline.from_folder(tmp_path / "saved")
    assert again.autoencoder.latents_std == pipeline.autoencoder.latents_std
    torch.testing.assert_close(
        again("a red mug", seeds=1).views_BVCHW, orbits.views_BVCHW, atol=2e-2, rtol=0
    )  # float16


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"resolution": [24, 32]}, ConfigError, r"resolution=\[24, 32\] must be multiples of 16"),
        ({"test_model": "workspace/none"}, DataError, r"test_model=workspace/none: no such folder"),
        (
            {"auto_encoder": {**AUTOENCODER, "network": {"base_dim": 4, "z_dim": 6}}},
            ConfigError,
            "UNet takes latents of 4 channels, but those of auto_encoder.type=WanAutoencoder have 6",
        ),
        (
            {"embedder": {"type": "UMT5TextEncoder"}},
            ConfigError,
            "UNet takes words of 24 channels, but those of embedder.type=UMT5TextEncoder have 4096",
        ),
        (
            {"UNet": {"type": "WanOrbit", "in_dim": 4, "text_dim": 24}},
            DataError,
            r"transformer is another model \(.*num_layers=2.*\), but the configuration has .*UNet.num_layers=30",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_loaded(tmp_path, monkeypatch, changes, error, message):
    cfg = load(tmp_path, sampling_config(tmp_path, **changes))
    monkeypatch.setattr("pipelines.parts.load_unet", lambda cfg: pytest.fail("weights are loaded"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(tmp_path / "nowhere"))
    with pytest.raises(error, match=message):
        ViewsPipeline.from_config(cfg)


def test_a_published_folder_has_no_head(tmp_path, caplog):
    caplog.set_level("INFO")
    section = {"type": "GaussianReconstruction", "head": HEAD, "render_size": 32}
    config = sampling_config(tmp_path, reconstruction=section, cameras={"num_views": 8})
    assert load_network_of(load(tmp_path, config)) is None
    assert "no Gaussians: test_model contains no head" in caplog.text
    with pytest.raises(DataError, match="contains no Gaussian head"):
        load_network_of(load(tmp_path, config | {"refine": True}))


def test_it_learns_a_low_rank_addition_that_sampling_uses(tmp_path):
    write_orbits(tmp_path / "orbits", copies=1)
    lora = {"rank": 2, "targets": ["to_q", "to_v", "ray_embedding"]}
    changes = {"TASK_TYPE": "train_t2v_entrance", "cache_latents": True, "num_steps": 3, "lr": 0.05, "lora": lora}
    final = train(load(tmp_path, training_config(tmp_path, **changes, **write_wan(tmp_path / "wan"))))
    state = read_weights(final, option="test").state
    assert state["ray_embedding.lora_B.weight"].abs().sum() > 0
    assert state["blocks.0.attn1.to_q.lora_B.weight"].abs().sum() > 0
    plain = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path)))("a red mug", seeds=1)
    changed = sampling_config(tmp_path, lora={"path": str(final)})
    orbits = ViewsPipeline.from_config(load(tmp_path, changed))("a red mug", seeds=1)
    assert not torch.allclose(orbits.views_BVCHW, plain.views_BVCHW, atol=1e-3)


def test_training_starts_from_a_folder_and_continues_from_its_own_file(tmp_path):
    write_orbits(tmp_path / "orbits", copies=1)
    start = {"type": "pretrain_specific_strategies", "resume_checkpoint": str(tmp_path / "wan")}
    changes = {"TASK_TYPE": "train_t2v_entrance", "cache_latents": True, "num_steps": 1, "lr": 1e-8}
    config = training_config(tmp_path, **changes, **write_wan(tmp_path / "wan"), Pretrain=start)
    train(load(tmp_path, config))
    final = train(load(tmp_path, config | {"num_steps": 2}, "embedder.device=cpu"))
    assert read_weights(final, option="test").step == 2  # resumed
    state = read_weights(final, option="test").state
    first = read_weights(next((tmp_path / "wan" / "transformer").glob("*.safetensors")), option="test").state
    torch.testing.assert_close(state["proj_out.weight"].float(), first["proj_out.weight"].float(), atol=1e-3, rtol=0)
    trained = load(tmp_path, sampling_config(tmp_path, test_model=str(final)))
    assert ViewsPipeline.from_config(trained)("a red mug", seeds=1).views_BVCHW.isfinite().all()


def test_the_tool_writes_a_folder_that_the_configuration_loads(tmp_path):
    cfg = load(tmp_path, sampling_config(tmp_path))
    overrides = write_random_weights(cfg, tmp_path / "random")
    out = tmp_path / "random"
    assert overrides == [f"{name}={out}" for name in ("test_model", "auto_encoder.pretrained", "embedder.pretrained")]
    names = {"model_index.json", "transformer", "vae", "text_encoder", "tokenizer"}
    assert {path.name for path in out.iterdir()} == names
    pipeline = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path), *overrides))
    orbits = pipeline("a red mug", seeds=1)
    overrides.append("low_memory=true")
    pipeline = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path), *overrides))
    assert torch.equal(pipeline("a red mug", seeds=1).views_BVCHW, orbits.views_BVCHW)


CONFIGS = sorted((ROOT / "configs" / "wan").glob("*.yaml"))
VIEWS = 4  # a frame of packed views
FOLDERS = {"t2v_1.3b": "Wan2.1-T2V-1.3B-Diffusers", "ti2v_5b": "Wan2.2-TI2V-5B-Diffusers"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_of_one_model_each(path):
    cfg = load_config(path)
    check_fit(cfg, torch.device("cpu"))
    name = f"pretrained_models/{FOLDERS[re.match('t2v_1.3b|ti2v_5b', path.stem)[0]]}"
    assert cfg.auto_encoder.pretrained == cfg.embedder.pretrained == name
    unet = cfg.UNet.options
    assert cfg.auto_encoder.options.packed == unet.packed == unet.temporal_rope == ("packed" in path.stem)
    if path.stem.endswith("_lora"):
        assert (cfg.test_model, cfg.checkpoint) == (name, None)
        assert cfg.lora.rank >= unet.ray_channels  # or the cameras would not fit through
    elif path.stem.endswith("_train"):
        assert cfg.checkpoint == name
    assert cfg.auto_encoder.options.network.z_dim == cfg.UNet.options.in_dim == (48 if "5b" in path.stem else 16)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_run_in_tiny_form(path, tmp_path):
    """With fewer and narrower layers, smaller views and made-up orbits; everything else is as shipped."""
    tiny = {"num_layers": 1, "num_heads": 1, "head_dim": 12, "ffn_dim": 16, "in_dim": 4, "text_dim": 24, "freq_dim": 16}
    network = {"base_dim": 4, "z_dim": 4} | ({"decoder_base_dim": 4} if "5b" in path.stem else {})
    changes = {
        "UNet": tiny, "auto_encoder": {"network": network},
        "embedder": {"width": 24, "precision": "float32", "cache_dir": str(tmp_path / "words")},
        "sampler": {"num_steps": 2}, "resolution": [SIZE, SIZE], "frame_lens": [VIEWS], "device": "cpu",
        "cameras": {"num_views": VIEWS}, "log_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "latents"),
        "vid_dataset": {**training_config(tmp_path)["vid_dataset"], "num_views": VIEWS},
        "batch_sizes": {str(VIEWS): 2}, "num_steps": 1,
        "test_list_path": "", "lora": {"path": ""}, "use_fsdp": False, "num_workers": 0,
        "visual_train": {"prompts": []}, "objective": {"max_known": 2} if "5b" in path.stem else {},
    }  # fmt: skip
    file = write_config(tmp_path / f"tiny_{path.name}", {"base": str(path), **changes})
    folder = tmp_path / "random"
    overrides = write_random_weights(load_config(file), folder)
    if path.stem.endswith("_infer"):
        pipeline = ViewsPipeline.from_config(load_config(file, overrides))
        pictures = [torch.rand(3, SIZE, SIZE)] if "5b" in path.stem else None
        orbits = pipeline(pictures, prompts="a red mug", seeds=1)
        assert orbits.views_BVCHW.shape == (1, VIEWS, 3, SIZE, SIZE)
        return
    write_turning_orbits(tmp_path / "orbits", elevations=(0.0, 20.0), num_views=VIEWS)
    start = [] if path.stem.endswith("_lora") else [f"Pretrain.resume_checkpoint={folder}"]
    names = read_weights(train(load_config(file, [*overrides, *start])), option="test").state
    assert ("ray_embedding.lora_A.weight" in names) == path.stem.endswith("_lora")
    assert any(name.startswith("blocks.0.attn2.to_k") for name in names)


def test_training_refuses_a_size_that_patches_do_not_divide(tmp_path):
    write_orbits(tmp_path / "orbits", copies=1)
    config = training_config(tmp_path, TASK_TYPE="train_t2v_entrance", **write_wan(tmp_path / "wan"))
    config["vid_dataset"] |= {"resolution": [24, 24]}
    with pytest.raises(ConfigError, match=r"resolution=\[24, 24\] must be multiples of 16 for these networks"):
        train(load(tmp_path, config | {"resolution": [24, 24]}))

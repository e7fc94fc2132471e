"""Low-rank additions: they train alone, load with a weight, and become part of the weights."""

from __future__ import annotations

import re

import pytest
import torch

from models.lora import add_lora, lora_state, merge_lora
from models.weights import load_strict, read_weights, save_safetensors
from pipelines.parts import load_unet
from pipelines.sampling.pipeline import ViewsPipeline
from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train
from tests.pipelines.training.test_resume import stopped_after
from tests.pipelines.training.test_training import load, losses
from tests.tiny import UNET, write_family
from tests.tiny import load as load_family
from tests.tiny_orbits import write_orbits
from utils.errors import ConfigError, DataError
from utils.registry import MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

# untrained transformers end in a projection of zeros, so theirs is needed; out.2 is a convolution
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_out", "out.2"]


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


def lora_run(folder, **changes):
    start = write_family(folder)["test_model"]
    given = {
        "TASK_TYPE": "train_t2v_entrance",
        "test_model": start,
        "lora": {"rank": 4, "alpha": 8, "targets": TARGETS},
    }
    return load(folder, **(given | changes))


def predicted(unet):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 3, 4, 4, generator=draw), torch.randn(2, 5, 24, generator=draw)
    camera = torch.randn(2, 3, 16, generator=draw)
    with torch.no_grad():
        return unet.eval()(x, torch.tensor([5, 700]), y, camera_data=camera)


def adapted_unet(folder):
    """A UNet with factors that are no longer zero."""
    unet = MODEL.build(UNET)
    load_strict(unet, write_family(folder)["test_model"], option="test")
    plain = predicted(unet)
    add_lora(unet, rank=4, alpha=8, targets=TARGETS)
    torch.testing.assert_close(predicted(unet), plain, atol=0, rtol=0)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet, plain


def test_only_factors_train_and_are_saved(folder, caplog):
    caplog.set_level("INFO")
    before = read_weights(write_family(folder)["test_model"], option="test").state
    final = train(lora_run(folder, num_steps=15, lr=4e-2, use_ema=True, cache_latents=True))
    assert final.name == "t2v_lora.safetensors"
    assert f"UNet: {folder / 't2v_00000007.pth'}, step 7\n" in caplog.text
    first, *_, last = losses(caplog)
    assert last < 0.95 * first
    state = read_weights(final, option="test").state
    assert all(re.search(r"\.lora_[AB]\.weight$", name) for name in state)
    assert any(value.abs().max() > 0 for name, value in state.items() if "lora_B" in name)
    assert sum(value.numel() for value in state.values()) < 0.2 * sum(value.numel() for value in before.values())
    saved = read_weights(folder / "run" / "checkpoints" / "t2v_lora_00000015.pth", option="test")
    assert set(saved.state) == set(state)
    assert all("lora_" in name for name in read_state(latest(folder / "run" / "state")).average)


def test_it_goes_on_bit_for_bit(folder):
    short = {"decay_mode": "constant", "use_ema": True}
    train(lora_run(folder, **short, num_steps=4, save_ckp_interval=2, log_dir=str(folder / "whole")))
    stopped_after(folder, 2, of="whole", as_="halves")
    train(lora_run(folder, **short, num_steps=4, log_dir=str(folder / "halves")))
    one, two = (read_state(latest(folder / name / "state")) for name in ("whole", "halves"))
    torch.testing.assert_close(one.model, two.model, atol=0, rtol=0)


def test_merged_weights_are_the_trained_network(folder):
    unet, plain = adapted_unet(folder)
    save_safetensors(folder / "lora.safetensors", lora_state(unet), dtype=torch.float32)
    trained = predicted(unet)
    assert not torch.allclose(trained, plain, atol=1e-2)
    effects = []
    for weight in (0.0, 0.5, 1.0):
        cfg = load_family(
            folder, write_family(folder), f"lora.path={folder / 'lora.safetensors'}", f"lora.weight={weight}"
        )
        merged = load_unet(cfg)
        assert set(merged.state_dict()) == set(MODEL.build(UNET).state_dict())
        effects.append(predicted(merged))
    # B A x and (B A) x round differently
    torch.testing.assert_close(effects[0], plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(effects[2], trained, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(effects[1], effects[0], atol=1e-2)
    assert not torch.allclose(effects[1], effects[2], atol=1e-2)


def test_a_saved_pipeline_has_the_addition_in_its_weights(folder):
    unet, _ = adapted_unet(folder)
    save_safetensors(folder / "lora.safetensors", lora_state(unet), dtype=torch.float32)
    cfg = load_family(folder, write_family(folder), f"lora.path={folder / 'lora.safetensors'}")
    pipeline = ViewsPipeline.from_config(cfg)
    pipeline.save(folder / "saved")
    again = ViewsPipeline.from_folder(folder / "saved")
    assert not again.cfg.lora.path
    # saved as float16
    torch.testing.assert_close(predicted(again.unet), predicted(pipeline.unet), atol=2e-2, rtol=2e-2)


def test_what_does_not_fit_is_refused(folder):
    unet = MODEL.build(UNET)
    with pytest.raises(ConfigError, match=r"lora.targets: no linear layer .* of OrbitUNet is called to_x"):
        add_lora(unet, rank=4, alpha=4, targets=["to_q", "to_x"])
    with pytest.raises(ConfigError, match="set test_model to its weights"):
        train(lora_run(folder, test_model=""))
    with pytest.raises(ConfigError, match="trains no UNet"):
        train(lora_run(folder, TASK_TYPE="train_embedder_entrance"))
    save_safetensors(
        folder / "other.safetensors", {"a.lora_A.weight": torch.zeros(4, 2), "a.lora_B.weight": torch.zeros(2, 4)}
    )
    with pytest.raises(DataError, match=r"lora.path=.*has no layer a$"):
        merge_lora(unet, folder / "other.safetensors", weight=1)
    with pytest.raises(DataError, match=r"has no lora_A"):
        merge_lora(unet, write_family(folder)["test_model"], weight=1)
    wide, _ = adapted_unet(folder)
    state = lora_state(wide)
    name = next(iter(state))
    save_safetensors(folder / "wide.safetensors", {**state, name: torch.zeros(4, 3)})
    with pytest.raises(DataError, match=r"1 misshapen"):
        merge_lora(MODEL.build(UNET), folder / "wide.safetensors", weight=1)

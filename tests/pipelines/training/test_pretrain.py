import dataclasses
import json
import math

import pytest
import torch

from pipelines.training.optimization import MovingAverage, learning_rate
from pipelines.training.pretrain import is_sd_key
from tests.reference_cases import REFERENCE
from utils.config import load_config
from utils.settings.run import RunConfig

PUBLISHED = list(json.loads((REFERENCE / "checkpoints" / "unet_t2v.json").read_text()))


def test_sd_keys_are_those_of_the_image_model():
    # the UNet of Stable Diffusion 2.1 has 686 tensors, four of them `time_embed`, which trains as a new part
    assert sum(map(is_sd_key, PUBLISHED)) == 686 - 4


def test_sd_keys_of_every_kind_of_layer():
    inside = ["input_blocks.0.0.weight", "input_blocks.3.op.bias", "input_blocks.1.0.in_layers.2.weight",
              "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "middle_block.1.proj_in.weight",
              "middle_block.3.emb_layers.1.bias", "output_blocks.2.1.conv.weight", "output_blocks.5.3.conv.bias",
              "output_blocks.0.0.skip_connection.weight", "out.2.bias"]  # fmt: skip
    outside = ["input_blocks.0.1.proj_in.weight", "input_blocks.1.2.norm.weight", "middle_block.2.proj_out.bias",
               "input_blocks.1.0.temopral_conv.conv1.0.weight",
               "output_blocks.5.2.transformer_blocks.0.attn1.to_q.weight", "time_embed.0.weight",
               "camera_embedding.2.weight"]  # fmt: skip
    assert set(inside) | set(outside) <= set(PUBLISHED)
    assert [name for name in inside if not is_sd_key(name)] == []
    assert [name for name in outside if is_sd_key(name)] == []


def test_the_image_condition_is_no_sd_key():
    image_model = json.loads((REFERENCE / "checkpoints" / "unet_i2v.json").read_text())
    assert not any(map(is_sd_key, set(image_model) - set(PUBLISHED)))


@pytest.mark.parametrize(("mode", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_learning_rate_rises_then_decays(mode, half):
    cfg = RunConfig(lr=2.0, num_steps=100, warmup_steps=10, decay_mode=mode)
    rates = [learning_rate(cfg, own_step=step, first_step=0) / 2 for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[50] == pytest.approx(half)
    assert rates[100] == pytest.approx(1.0 if mode == "constant" else 0.0)
    assert rates[4] < rates[9]


def test_learning_rate_follows_the_clock_where_it_is_ahead_of_the_steps():
    cfg = RunConfig(lr=1.0, num_steps=100, warmup_steps=0)
    rates = [learning_rate(cfg, own_step=20, first_step=0, time_share=share) for share in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([0.5 * (1 + math.cos(0.2 * math.pi)), 0.5, 0.0])


@pytest.mark.parametrize(
    ("name", "checkpoint_step", "last"), [("t2v_train", 267_000, 0.165), ("i2vgen_xl_train", 854_500, 0.949)]
)
def test_published_fine_tuning_begins_at_the_full_rate(name, checkpoint_step, last):
    cfg = load_config(f"configs/{name}.yaml")
    own_steps = cfg.num_steps - checkpoint_step

    def fraction(cfg: RunConfig, own_step: int) -> float:
        return learning_rate(cfg, own_step=own_step, first_step=checkpoint_step) / cfg.lr

    # After the warm-up of 10 steps: the cosine over the run's own steps, divided by all of num_steps (the original's).
    assert fraction(cfg, 0) == pytest.approx(0.1)
    assert fraction(cfg, 9) == pytest.approx(1.0, abs=1e-6)
    assert fraction(cfg, own_steps // 2) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * own_steps / 2e6), abs=1e-4)
    assert fraction(cfg, own_steps - 1) == pytest.approx(last, abs=1e-3)

    short = dataclasses.replace(cfg, decay_over="own_steps")
    assert fraction(short, 9) == pytest.approx(1.0, abs=1e-6)
    assert fraction(short, own_steps // 2) == pytest.approx(0.5, abs=1e-4)
    assert fraction(short, own_steps - 1) == pytest.approx(0.0, abs=1e-4)


def test_moving_average_follows_and_is_put_in_place():
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.data.fill_(1.0)
    average = MovingAverage(module, decay=0.9)
    module.weight.data.fill_(2.0)
    average.update()
    expected = 1 + (1 - 2 / 11)  # the first update looks back over (1 + 1) / (10 + 1)
    with average.in_place():
        torch.testing.assert_close(module.weight.data, torch.full((1, 2), expected))
    torch.testing.assert_close(module.weight.data, torch.full((1, 2), 2.0))

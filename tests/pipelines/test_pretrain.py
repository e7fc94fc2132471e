import json

import pytest
import torch

from pipelines.optimization import MovingAverage, lr_factor
from pipelines.pretrain import is_sd_key
from tests.reference_cases import REFERENCE

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
    factors = [lr_factor(step / 100, step, warmup_steps=10, decay_mode=mode) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[50] == pytest.approx(half)
    assert factors[100] == pytest.approx(1.0 if mode == "constant" else 0.0)
    assert factors[4] < factors[9]


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

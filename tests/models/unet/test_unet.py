"""The UNet against its recorded cases and the published parameter lists."""

import json

import pytest
import torch

import models  # noqa: F401
from tests.reference_cases import REFERENCE, assert_matches, case_input, fill_by_recipe, load_case
from utils.errors import ConfigError
from utils.registry import MODEL

TINY = {
    "dim": 32, "dim_mult": [1, 2], "num_heads": 2, "head_dim": 16, "num_res_blocks": 1, "attn_scales": [1, 0.5],
    "y_dim": 24, "context_dim": 24, "dropout": 0.0,
}  # fmt: skip


def case_inputs(name: str) -> dict:
    spec, _ = load_case(name)
    inputs = spec["inputs"]
    conditions = {
        "t": torch.tensor(inputs["t"]),
        "fps": torch.full((2,), inputs["fps"]),
        **{key: case_input(name, key, inputs[key]) for key in ("x", "y", "camera_data")},
    }
    if "local_image" in inputs:
        conditions["image"] = case_input(name, "image", inputs["image"])
        conditions["local_image"] = case_input(name, "local_image", inputs["local_image"]).repeat(1, 1, 5, 1, 1)
    return conditions


@pytest.mark.parametrize("name", ["t2v_unet", "i2v_unet"])
@torch.no_grad()
def test_reference(name):
    spec, expected = load_case(name)
    unet = fill_by_recipe(MODEL.build({"type": spec["kind"], **spec["config"]}))
    inputs = case_inputs(name)
    assert_matches(unet(**inputs), expected["out"])
    left_out = "camera_data" if name == "t2v_unet" else "image"
    inputs.pop(left_out)
    assert_matches(unet(**inputs), expected[f"out_without_{left_out.removesuffix('_data')}"])


@pytest.mark.parametrize(("kind", "names"), [("UNetSD_T2VBase", "unet_t2v"), ("UNetSD_I2VGen", "unet_i2v")])
def test_published_names_and_shapes(kind, names):
    published = json.loads((REFERENCE / "checkpoints" / f"{names}.json").read_text())
    with torch.device("meta"):
        unet = MODEL.build({"type": kind})
    assert {key: list(value.shape) for key, value in unet.state_dict().items()} == published


@torch.no_grad()
def test_orbits_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    unet = fill_by_recipe(MODEL.build({"type": "UNetSD_T2VBase", **TINY}))
    x, y, camera = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 5, 24), torch.randn(2, 3, 16)
    t = torch.tensor([5, 900])
    both = unet(x, t, y, camera_data=camera)
    alone = unet(x[1:], t[1:], y[1:], camera_data=camera[1:])
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_first_level_may_be_wider_than_dim():
    unet = fill_by_recipe(MODEL.build({"type": "UNetSD_T2VBase", **TINY, "dim_mult": [2, 3]}))
    out = unet(torch.randn(1, 4, 2, 8, 8), torch.tensor([5]), torch.randn(1, 5, 24), fps=8)
    assert out.shape == (1, 4, 2, 8, 8)


@torch.no_grad()
def test_views_talk_to_each_other():
    torch.manual_seed(0)
    unet = fill_by_recipe(MODEL.build({"type": "UNetSD_T2VBase", **TINY}))
    x, y, t = torch.randn(1, 4, 6, 8, 8), torch.randn(1, 5, 24), torch.tensor([500])
    changed = x.clone()
    changed[:, :, 5] += 1.0
    assert (unet(x, t, y)[:, :, 0] - unet(changed, t, y)[:, :, 0]).abs().max() > 1e-3


def test_checkpointing_keeps_the_gradients():
    x, y, t = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 24), torch.tensor([500])
    gradients = []
    for use_checkpoint in (False, True):
        unet = MODEL.build({"type": "UNetSD_T2VBase", **TINY, "use_checkpoint": use_checkpoint})
        fill_by_recipe(unet).train()
        unet(x, t, y).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_xformers_agrees_with_sdpa():
    pytest.importorskip("xformers.ops")
    x, y, t = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 24), torch.tensor([500])
    outputs = []
    for backend in ("sdpa", "xformers"):
        unet = fill_by_recipe(MODEL.build({"type": "UNetSD_T2VBase", **TINY, "attention": backend}))
        try:
            outputs.append(unet(x, t, y))
        except NotImplementedError as err:
            pytest.skip(f"xformers has no kernel for this device: {str(err).splitlines()[0]}")
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dmi": 3}, "UNet.dmi is unknown to UNetSD_T2VBase; did you mean dim"),
        ({"dim": 33}, "multiple of 32"),
        ({"dim": "big"}, "UNet.dim"),
        ({"attention": "flash"}, "UNet.attention=flash is unknown"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        MODEL.build({"type": "UNetSD_T2VBase", **options}, where="UNet")


def test_refuses_latents_that_do_not_fit():
    unet = MODEL.build({"type": "UNetSD_T2VBase", **TINY})
    with pytest.raises(ValueError, match="multiples of 2"):
        unet(torch.zeros(1, 4, 2, 9, 8), torch.tensor([1]), torch.zeros(1, 5, 24))


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    recomputed = (
        {"checkpoint_level": "block"},
        {"checkpoint_level": "layer"},
        {"checkpoint_level": "transformers"},
        {"checkpoint_level": "block", "checkpoint_places": 16},
        {"checkpoint_level": "block", "checkpoint_places": 17},
    )
    for options in ({"use_checkpoint": False}, *recomputed):
        torch.manual_seed(0)
        unet = MODEL.build({"type": "UNetSD_T2VBase", **TINY, "use_checkpoint": True, **options})
        torch.nn.init.normal_(unet.out[-1].weight, std=0.1)
        draw = torch.Generator().manual_seed(1)
        x, y = torch.randn(2, 4, 3, 4, 4, generator=draw), torch.randn(2, 5, 24, generator=draw)
        kept: list[int] = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = unet(x, torch.tensor([5, 700]), y).square().mean()
        loss.backward()
        named = unet.named_parameters()
        gradients.append(({name: value.grad for name, value in named if value.grad is not None}, sum(kept)))
    plain, *others = [named for named, _ in gradients]
    for other in others:
        torch.testing.assert_close(other, plain, atol=0, rtol=0)
    kept_plain, block, layer, transformers, wide_block, no_block = [kept for _, kept in gradients]
    assert block < wide_block < no_block == kept_plain
    assert block < layer < transformers < kept_plain


def test_an_unknown_checkpoint_level_is_refused():
    with pytest.raises(ConfigError, match="checkpoint_level=all is unknown; valid: block, layer"):
        MODEL.resolve({"type": "UNetSD_T2VBase", "checkpoint_level": "all"})

"""The arrangement for speed computes what the plain networks compute."""

import pytest
import torch

import models  # noqa: F401
from models.autoencoder import NetworkConfig, build_network
from models.fused.autoencoder import FusedCoder
from models.fused.head import FusedHead
from models.fused.kernels import reference
from models.fused.unet import FusedUNet
from models.unet.model import DeepFeatures
from tests.models.unet.test_unet import case_inputs
from tests.reference_cases import assert_matches, fill_by_recipe, load_case
from utils.registry import MODEL
from utils.torch_settings import channels_last


def unet_of(name: str):
    spec, expected = load_case(name)
    return fill_by_recipe(MODEL.build({"type": spec["kind"], **spec["config"]})).eval(), expected


@pytest.mark.parametrize("name", ["t2v_unet", "i2v_unet"])
@pytest.mark.parametrize("last", [False, True])
def test_reference(name, last):
    unet, expected = unet_of(name)
    fused, inputs = FusedUNet(channels_last(unet) if last else unet), case_inputs(name)
    assert_matches(fused(**inputs), expected["out"])
    left_out = "camera_data" if name == "t2v_unet" else "image"
    inputs.pop(left_out)
    assert_matches(fused(**inputs), expected[f"out_without_{left_out.removesuffix('_data')}"])


def test_conditions_are_prepared_once_and_again_when_they_change(monkeypatch):
    unet, _ = unet_of("t2v_unet")
    fused, inputs = FusedUNet(unet), case_inputs("t2v_unet")
    prepared = []
    anew = fused._prepare_anew
    monkeypatch.setattr(fused, "_prepare_anew", lambda *args, **kwargs: prepared.append(1) or anew(*args, **kwargs))
    fused(**inputs)
    fused(**inputs | {"x": inputs["x"] + 1, "t": inputs["t"] - 1})
    assert len(prepared) == 1
    other = inputs | {"y": inputs["y"].flip(0)}
    with torch.no_grad():
        torch.testing.assert_close(fused(**other), unet(**other), atol=1e-4, rtol=1e-4)
    fused(**inputs)
    assert len(prepared) == 2


def test_the_weights_keep_names_and_values():
    unet, expected = unet_of("i2v_unet")
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    FusedUNet(unet)
    after = unet.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert_matches(unet(**case_inputs("i2v_unet")), expected["out"])


@pytest.mark.parametrize("attention", [[], [16]])
def test_autoencoder(attention):
    torch.manual_seed(0)
    config = NetworkConfig(
        ch=32, ch_mult=[1, 2, 2], num_res_blocks=1, resolution=32, z_channels=4, attn_resolutions=attention
    )
    network = build_network(config, embed_dim=4).eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    coder, latent, image = FusedCoder(network), torch.randn(3, 4, 8, 12), torch.rand(3, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(coder.decode(latent), network.decode(latent).sample, atol=1e-4, rtol=1e-4)
        moments = network.encode(image).latent_dist.parameters
    torch.testing.assert_close(coder.encode(image), moments, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_head():
    spec, _ = load_case("lgm")
    head = fill_by_recipe(MODEL.build({"type": "LGM", **spec["config"]}))
    views = torch.randn(2, head.config.num_input_views, 9, head.config.input_size, head.config.input_size)
    plain = head(views)
    head.twin = FusedHead(head.unet, dtype=torch.float32)
    fused = head(views)
    for name, value in vars(plain).items():
        torch.testing.assert_close(getattr(fused, name), value, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as the pipeline calls it in half precision
        halved = head(views)
    assert halved.means_BN3.dtype == torch.float32
    assert float((halved.means_BN3 - plain.means_BN3).norm() / plain.means_BN3.norm()) < 0.05


def operations_on(device: str, dtype: torch.dtype, *, channels: int, ops) -> dict[str, torch.Tensor]:
    """Every operation on the same random input."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    V, L, C = 5, 12, channels
    x, weight, bias, wide = make(2 * V * L, C), make(C), make(C), make(2 * V * L, 2 * C)
    norm = {"rows": V * L, "eps": 1e-5}
    return {
        "image norm": ops.group_norm(x, weight, bias, rows=L, eps=1e-5),
        "shifted": ops.group_norm(x, weight, bias, silu=True, shift=make(2 * V, 3 * C)[:, C : 2 * C], rows=L, eps=1e-5),
        "window": ops.group_norm(x, weight, bias, silu=True, window=L, shift=make(1, C), **norm),
        "layer norm": ops.layer_norm(x, weight, bias, eps=1e-5, shift_C=bias)[1],
        "add": ops.add(x, x.flip(0), bias, scale=0.7),
        "gate": ops.gate(wide, make(2 * C)),
        "attention": ops.views_attention(make(2 * V * L, 3 * C), num_views=V, places=L, head_dim=32),
        "doubled": ops.doubled(x, height=3, width=4),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [64, 320])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_kernels_agree_with_their_twins(channels, dtype, tolerance):
    from models.fused.kernels import triton_forward

    fast = operations_on("cuda", dtype, channels=channels, ops=triton_forward)
    exact = operations_on("cpu", torch.float64, channels=channels, ops=reference)
    for name, value in exact.items():
        error = float((fast[name].double().cpu() - value).norm() / value.norm())
        print(f"{name}, {channels} channels, {dtype}: {error:.1e}")
        assert error < tolerance, name


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [64 * 65_536 + 3])
def test_rows_of_many_images_fit_a_grid(num_rows):
    """256 images of 128 x 128 are more blocks of rows than the second number of a CUDA grid may count."""
    from models.fused.kernels import triton_forward

    x, bias = torch.randn(num_rows, 16, device="cuda", dtype=torch.bfloat16), torch.randn(16, device="cuda").bfloat16()
    for name, given in {"add": (x, x.flip(0), bias), "gate": (x, bias)}.items():
        fast, exact = (getattr(ops, name)(*given).float() for ops in (triton_forward, reference))
        assert float((fast - exact).norm() / exact.norm()) < 1e-2, name
        assert float((fast - exact)[-3:].abs().max()) < 0.1, name


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["t2v_unet", "i2v_unet"])
@torch.no_grad()
def test_graph_follows_its_inputs(name):
    unet, expected = unet_of(name)
    unet = channels_last(unet).cuda().bfloat16()
    inputs = {
        key: value.cuda() if key in ("t", "fps") else value.cuda().bfloat16()
        for key, value in case_inputs(name).items()
    }
    plain = unet(**inputs)
    eager, graph = FusedUNet(unet), FusedUNet(unet, graph=True)
    others = {key: value if key in ("t", "fps") else value.flip(0).contiguous() for key, value in inputs.items()}
    first = graph(**inputs)
    assert torch.equal(graph(**others), eager(**others))
    assert torch.equal(graph(**inputs), first)
    assert torch.equal(eager(**inputs), first)
    exact = torch.as_tensor(expected["out"])
    error, floor = (float((out.float().cpu() - exact).norm() / exact.norm()) for out in (first, plain))
    print(f"{name} in bfloat16: error {error:.1e}, of the plain network {floor:.1e}")
    assert error < max(1.5 * floor, 0.03)


@pytest.mark.parametrize("arranged", [False, True])
@torch.no_grad()
def test_the_inner_part_is_taken_again(arranged):
    unet, _ = unet_of("t2v_unet")
    network, inputs = FusedUNet(unet) if arranged else unet, case_inputs("t2v_unet")
    whole, deep = unet(**inputs), DeepFeatures(num_outer=1)
    assert_matches(network(**inputs, deep=deep), whole)
    inner = deep.value.clone()
    ran = []
    unet.middle_block[0].register_forward_hook(lambda *_: ran.append(1))
    assert_matches(network(**inputs, deep=deep), whole)
    later = inputs | {"t": inputs["t"] // 2}
    again = network(**later, deep=deep)
    assert torch.equal(deep.value, inner)
    assert not ran
    assert 0.001 < float((again - unet(**later)).norm() / whole.norm()) < 1
    with pytest.raises(ValueError, match="num_outer must lie in"):
        network(**inputs, deep=DeepFeatures(num_outer=99))

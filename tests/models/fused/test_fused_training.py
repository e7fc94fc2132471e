"""Training with fused operations: the same function, the same gradients."""

import pytest
import torch
from torch import nn

from models.fused.graphs import graph_for_training
from models.fused.kernels import reference
from models.fused.training import fuse_for_training, fused_forward
from models.lora import add_lora
from models.unet.blocks import ResBlock
from models.unet.transformers import SpatialTransformer, TemporalTransformer
from utils.registry import MODEL
from utils.torch_settings import channels_last

VIEWS, SIDE, EMBED, CONTEXT = 3, 4, 48, 40


def parts(dtype=torch.float32, *, dropout=0.0):
    """One of each kind with all parameters drawn, and what it is called with."""
    torch.manual_seed(0)
    heads = {"num_heads": 2, "head_dim": 32, "backend": "sdpa"}
    made = {
        "residual": ResBlock(32, EMBED, 64, dropout),
        "same width": ResBlock(64, EMBED, 64, dropout),
        "space": SpatialTransformer(64, context_dim=CONTEXT, **heads),
        "views": TemporalTransformer(64, **heads),
    }
    context_BSC, embedding_FE = torch.randn(2, 5, CONTEXT), torch.randn(2 * VIEWS, EMBED)
    rest = {"space": (VIEWS, context_BSC), "views": (VIEWS,)}
    for name, part in made.items():
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.2, mean=0.5 if parameter.dim() == 1 else 0)
        part.to(dtype)
        args = rest.get(name, (embedding_FE, VIEWS))
        yield name, part, [arg.to(dtype) if isinstance(arg, torch.Tensor) else arg for arg in args]


def gradients(forward, part, args, device="cpu", *, in_half=None):
    """The output, and the gradients of everything that has one, of a random weighting of the output."""
    generator = torch.Generator().manual_seed(1)
    width = part.in_layers[0].num_channels if isinstance(part, ResBlock) else part.norm.num_channels
    dtype = in_half or next(part.parameters()).dtype
    x = torch.randn(2 * VIEWS, width, SIDE, SIDE, generator=generator, dtype=torch.float64).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    given = [arg.detach().to(device).requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in args]
    part.zero_grad()
    with torch.autocast(device, dtype=in_half or torch.bfloat16, enabled=in_half is not None):
        out = forward(part, x, *given)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(device)
    (out.double() * weights).sum().backward()
    found = {"output": out.detach(), "input": x.grad}
    found |= {f"argument {place}": arg.grad for place, arg in enumerate(given) if isinstance(arg, torch.Tensor)}
    return found | {name: parameter.grad.clone() for name, parameter in part.named_parameters()}


def plain(part, x, *args):
    return part(x, *args)


def test_the_twins_have_the_gradients_of_the_plain_blocks():
    for name, part, args in parts(torch.float64):
        expected, found = gradients(plain, part, args), gradients(fused_forward, part, args)
        assert expected.keys() == found.keys()
        for what, value in expected.items():
            assert float(value.abs().max()) > 0, (name, what)
            torch.testing.assert_close(found[what], value, atol=1e-9, rtol=1e-7, msg=f"{name}: {what}")


def test_dropout_drops_its_share_and_the_same_for_the_same_seed():
    x = torch.randn(40, 64)
    norm = {"rows": 20, "eps": 1e-5, "silu": True}
    whole = reference.group_norm(x, torch.ones(64), torch.zeros(64), **norm)
    norm |= {"dropout": 0.25, "seed_1": torch.tensor([3])}
    dropped, again = (reference.group_norm(x, torch.ones(64), torch.zeros(64), **norm) for _ in range(2))
    assert 0.2 < float((dropped == 0).float().mean()) < 0.3
    torch.testing.assert_close(dropped[dropped != 0] * 0.75, whole[dropped != 0])
    assert torch.equal(dropped, again)


def test_blocks_with_additions_and_on_a_cpu_stay_as_they_are():
    _, part, args = list(parts())[2]
    expected = gradients(plain, part, args)
    before = part.forward
    fuse_for_training([part])
    assert part.forward != before
    found = gradients(plain, part, args)
    assert all(torch.equal(found[what], value) for what, value in expected.items())
    holder = nn.ModuleList([list(parts())[2][1]])
    add_lora(holder, rank=2, alpha=2, targets=["to_q"])
    before = holder[0].forward
    fuse_for_training(holder)
    assert holder[0].forward == before


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_have_the_gradients_of_the_plain_blocks(dtype):
    """As far from float64 as the plain blocks under autocast, or nearer."""
    for name, part, args in parts(torch.float64):
        exact = gradients(plain, part, args)
        part.float().cuda()
        args = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args]
        fused = gradients(fused_forward, part, args, "cuda", in_half=dtype)
        usual = gradients(plain, part, args, "cuda", in_half=dtype)
        for what, value in exact.items():
            size = value.norm().clamp(min=1e-9)
            error, floor = (float((one[what].double().cpu() - value).norm() / size) for one in (fused, usual))
            print(f"{name}, {what}, {dtype}: {error:.1e}, plain {floor:.1e}")
            assert error < max(1.5 * floor, 0.01), (name, what)


@pytest.mark.gpu
def test_dropout_of_the_kernels_has_its_own_gradient():
    """Where the mask is known from the output, the gradient is that of the same mask."""
    from models.fused.kernels import autograd

    C, rows = 64, 48
    x = torch.randn(2 * rows, C, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    seed = torch.tensor([5], dtype=torch.int32, device="cuda")
    gain, bias = torch.rand(C, device="cuda") + 0.5, torch.randn(C, device="cuda")
    for window in (0, 16):
        x.grad = None
        eye = torch.eye(3 * C if window else C, device="cuda", dtype=torch.bfloat16)
        how = {"rows": rows, "eps": 1e-5, "silu": True, "window": window}
        _, out = autograd.normed_product(x, gain, bias, eye, **how, dropout=0.3, seed_1=seed)
        assert 0.25 < float((out[:, C : 2 * C] if window else out).eq(0).float().mean()) < 0.35
        weights = torch.randn_like(out)
        out.backward(weights)
        found, exact = x.grad.double(), x.detach().double().requires_grad_()
        whole = reference.group_norm(exact, gain.double(), bias.double(), **how)
        (whole * (out.detach() != 0) / 0.7 * weights.double()).sum().backward()
        assert float((found - exact.grad).norm() / exact.grad.norm()) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize(("num_views", "head_dim"), [(3, 24), (70, 32)])
def test_attention_over_views_of_any_size(num_views, head_dim):
    from models.fused.kernels import autograd, triton_forward

    sizes = {"num_views": num_views, "places": 4, "head_dim": head_dim}
    qkv = torch.randn(2 * num_views * 4, 3 * 2 * head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    expected = reference.views_attention(qkv.detach().double().cpu(), **sizes)
    with torch.no_grad():
        plain = triton_forward.views_attention(qkv, **sizes)
    out = autograd.views_attention(qkv, **sizes)
    for one in (plain, out.detach()):
        assert float((one.double().cpu() - expected).norm() / expected.norm()) < 0.01
    out.sum().backward()
    assert qkv.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["none", "transformers"])
def test_graphs_give_the_gradients_of_the_passes_they_replay(level):
    options = {"dim": 64, "dim_mult": [1, 2], "num_res_blocks": 1, "context_dim": 24, "y_dim": 24, "attn_scales": [1.0]}
    options |= {"use_checkpoint": level != "none", "checkpoint_level": level.replace("none", "block")}

    def made(dropout):
        torch.manual_seed(0)
        unet = MODEL.build({"type": "UNetSD_T2VBase", **options, "dropout": dropout})
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        unet = channels_last(unet).cuda()
        fuse_for_training(unet.parts_to_compile())
        return unet

    def step(unet, seed):
        draw = torch.Generator("cuda").manual_seed(seed)
        x, y = (torch.randn(shape, generator=draw, device="cuda") for shape in ((2, 4, 5, 8, 8), (2, 7, 24)))
        cameras = torch.randn(2, 5, 16, generator=draw, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = unet(x, torch.tensor([5, 700], device="cuda"), y, camera_data=cameras).float()
        unet.zero_grad(set_to_none=True)
        out.square().mean().backward()
        return {"out": out.detach().clone()} | {name: value.grad.clone() for name, value in unet.named_parameters()}

    eager, graphed, dropping = made(0.0), made(0.0), made(0.5)
    assert dropping.can_be_graphed
    graph_for_training(graphed)
    graph_for_training(dropping)
    for seed in (1, 2):
        expected, found = step(eager, seed), step(graphed, seed)
        for name, value in expected.items():
            assert float((found[name] - value).norm()) <= 0.02 * float(value.norm()) + 1e-6, name
    assert not torch.equal(step(dropping, 1)["out"], step(dropping, 1)["out"])
    graphed.eval()
    with torch.no_grad():
        other = (torch.randn(1, 4, 3, 8, 8), torch.tensor([3]), torch.randn(1, 7, 24))
        assert graphed(*(value.cuda() for value in other)).shape[2] == 3

"""The one door to rasterisers of 3D Gaussians.

`torch` (models/gaussians/splatting.py) runs everywhere and is the reference; `gsplat` is several times faster and needs
CUDA and the gsplat package. Remaining differences of gsplat 1.5 from the published rules, which `torch` follows:

- alpha is capped at 0.999 instead of 0.99. Only pixels where one Gaussian alone is more opaque than 0.99 differ: by
  less than 0.01, or where rays stop one Gaussian earlier, by 0.051 in the worst pixel measured (1e-5 in the mean).
- `exp` is the approximate one of the GPU: about 1e-6.
- The gradient of a needle's shape goes through its inverse 2D covariance in float32: 1.4 % of the gradient of rotations
  was lost that way for needles 300 times as long as thick, where `torch` loses 0.07 %.
- Gradients of means and covariances leak between the scenes of a batch whose scenes have under 32 Gaussians, see WARP.

Everything else agrees: low-pass 0.3, alphas under 1/255 skipped, rays stopped at a transmittance of 1e-4, near plane
0.2, covariance from the numbers as they are. tests/models/gaussians/test_rasterizers.py measures it, with the cap of
gsplat.

Letters: B scenes, V cameras of each, N Gaussians, H W pixels.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from models.gaussians import splatting
from models.gaussians.scene import Gaussians
from utils.errors import ConfigError, first_line

log = logging.getLogger(__name__)

RASTERIZERS = ("auto", "torch", "gsplat")
MIN_GSPLAT = (1, 5)
# gsplat 1.5 adds up what the threads of a warp find for one number of a Gaussian, whichever scene it belongs to, and
# gives the sum to one scene. With this many Gaussians or more, no warp meets a number twice.
WARP = 32


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Images of each scene from each of its cameras.

    Attributes:
        colors_BV3HW: over the background, in [0, 1].
        alphas_BV1HW: in [0, 1].
        depths_BV1HW: distance along the camera's axis, the mean over what a pixel shows; 0 where it shows nothing.
    """

    colors_BV3HW: Tensor
    alphas_BV1HW: Tensor
    depths_BV1HW: Tensor


def render(
    gaussians: Gaussians,
    c2w_BV44: Tensor,
    K_33: Tensor,
    *,
    size: tuple[int, int],
    background: float | Tensor,
    backend: str = "auto",
) -> Rendering:
    """Render scenes from cameras, differentiably, in the dtype that the Gaussians have (float32 with gsplat).

    Args:
        gaussians: B scenes.
        c2w_BV44: camera to world, OpenCV axes, on any device.
        K_33: intrinsics in pixels, pixel centres at +0.5.
        size: height and width.
        background: grey, or RGB of shape (3,), (B, 3) or (B, V, 3).
        backend: see `pick_rasterizer`.

    Raises:
        ValueError: cameras of another number of scenes than the Gaussians.
        ConfigError: the backend cannot run here.
    """
    means = gaussians.means_BN3
    if c2w_BV44.shape[:1] != means.shape[:1] or c2w_BV44.shape[2:] != (4, 4):
        raise ValueError(f"cameras of shape {tuple(c2w_BV44.shape)} do not fit {len(means)} scenes; want (B, V, 4, 4)")
    c2w_BV44, K_33 = c2w_BV44.to(means), K_33.to(means)
    draw = {"torch": _torch, "gsplat": _gsplat}[pick_rasterizer(backend, means.device)]
    with torch.autocast(means.device.type, enabled=False):
        painted_BV5HW = draw(gaussians, c2w_BV44, K_33, size)
    rgb, depth, alpha = painted_BV5HW.split([3, 1, 1], dim=2)
    behind = torch.as_tensor(background, dtype=means.dtype, device=means.device)
    if behind.ndim == 2:
        behind = behind[:, None]
    return Rendering(
        colors_BV3HW=rgb + (1 - alpha) * behind.expand(*c2w_BV44.shape[:2], 3)[..., None, None],
        alphas_BV1HW=alpha,
        depths_BV1HW=depth / alpha.clamp_min(splatting.MIN_ALPHA),
    )


def pick_rasterizer(name: str, device: torch.device) -> str:
    """The backend that draws: `auto` is gsplat on a CUDA device where it is compiled, else torch.

    The gsplat of PyPI compiles itself when first used, for minutes and with CUDA's compiler, and keeps what it made for
    this version of PyTorch; that happens only when gsplat is asked for by name. From then on `auto` takes it too.

    Raises:
        ConfigError: an unknown name, or gsplat where it cannot run.
    """
    if name not in RASTERIZERS:
        raise ConfigError(f"rasterizer={name} is unknown; valid: {', '.join(RASTERIZERS)}")
    if name == "auto":
        name = _automatic(device.type)
    if name == "gsplat":
        if device.type != "cuda":
            raise ConfigError(f"rasterizer=gsplat needs a CUDA device, this is {device.type}; use auto or torch")
        if lack := _lack_of_gsplat(compiles=True):
            raise ConfigError(f"rasterizer=gsplat: {lack}; use auto or torch")
    return name


@functools.cache
def _automatic(device_type: str) -> str:
    lack = f"the device is {device_type}" if device_type != "cuda" else _lack_of_gsplat(compiles=False)
    chosen = "torch" if lack else "gsplat"
    log.info("rasterizer: %s%s", chosen, f" ({lack})" if lack else "")
    return chosen


@functools.cache
def _lack_of_gsplat(*, compiles: bool) -> str | None:
    """Why gsplat cannot draw; None when it can.

    Args:
        compiles: let it compile itself where its compiled part is not installed.
    """
    try:
        version = importlib.metadata.version("gsplat")
        importlib.import_module("gsplat")
    except importlib.metadata.PackageNotFoundError:
        return "gsplat is not installed (pip install gsplat), with which rendering is several times faster"
    except ImportError as err:
        return f"gsplat does not import ({err})"
    if tuple(int(number) for number in version.split("+")[0].split(".")[:2]) < MIN_GSPLAT:
        return f"gsplat {version} draws no batches of scenes; install 1.5 or later"
    try:
        importlib.import_module("gsplat.csrc")
    except ModuleNotFoundError:
        reason = "gsplat is not compiled"
    except ImportError as err:  # made for another PyTorch
        reason = f"the compiled part of gsplat does not load ({first_line(err)})"
    else:
        return None
    if not (compiles or _compiled_before()):
        return f"{reason}; rasterizer=gsplat compiles it, for minutes and with CUDA's compiler"
    try:
        from gsplat.cuda._backend import _C  # compiles, or loads what was compiled before
    except (ImportError, OSError, RuntimeError) as err:
        return f"gsplat cannot compile itself here ({first_line(err)})"
    return None if _C is not None else "gsplat cannot compile itself here, because CUDA's compiler is missing"


def _compiled_before() -> bool:
    """Whether gsplat has compiled itself for this PyTorch: it would load that, and else begin to compile."""
    from torch.utils.cpp_extension import _get_build_directory  # where gsplat looks

    folder = Path(_get_build_directory("gsplat_cuda", verbose=False))
    return any((folder / f"gsplat_cuda.{ending}").is_file() for ending in ("so", "lib"))


def _torch(gaussians: Gaussians, c2w_BV44: Tensor, K_33: Tensor, size: tuple[int, int]) -> Tensor:
    B, V = c2w_BV44.shape[:2]
    splats = splatting.project(gaussians, c2w_BV44, K_33, size=size)
    return splatting.rasterise(splats, num_images=B * V, size=size).unflatten(0, (B, V))


def _gsplat(gaussians: Gaussians, c2w_BV44: Tensor, K_33: Tensor, size: tuple[int, int]) -> Tensor:
    from gsplat import rasterization

    height, width = size
    missing = max(0, WARP - gaussians.means_BN3.shape[1])

    def filled(values_BNC: Tensor) -> Tensor:
        """With Gaussians of zeros, which are transparent, up to the size of a warp."""
        return functional.pad(values_BNC.float(), (0, 0, 0, missing)).contiguous()

    # Covariances, because gsplat would normalise quaternions.
    painted, alpha, _ = rasterization(
        means=filled(gaussians.means_BN3),
        quats=None,
        scales=None,
        covars=filled(gaussians.covariances().flatten(2)).unflatten(-1, (3, 3)),
        opacities=filled(gaussians.opacities_BN1)[..., 0].contiguous(),
        colors=filled(gaussians.colors_BN3),
        viewmats=torch.linalg.inv_ex(c2w_BV44.float())[0].contiguous(),
        Ks=K_33.float().expand(*c2w_BV44.shape[:2], 3, 3).contiguous(),
        width=width,
        height=height,
        near_plane=splatting.NEAR,
        eps2d=splatting.LOW_PASS,
        render_mode="RGB+D",
        packed=False,
    )
    return torch.cat([painted, alpha], dim=-1).movedim(-1, 2)

"""Renders 3D Gaussians with one of three rasterisers.

`torch` (models/gaussians/splatting.py) runs everywhere and is the reference; `gsplat` is several times faster and needs
CUDA and the gsplat package; `gswarp` (warp_rasterizer.py) needs CUDA and no compiler, and is only used by its name.
Differences of gsplat 1.5 from the published rules, which `torch` follows:

- alpha is capped at 0.999 instead of 0.99. Only pixels in which a single Gaussian is more opaque than 0.99 differ: by
  less than 0.01, or where rays stop one Gaussian earlier, by 0.051 in the worst measured pixel (1e-5 in the mean).
- `exp` is the approximate function of the GPU: about 1e-6.
- The gradient of the shape goes through the inverse 2D covariance in float32. For needles that are 300 times as long as
  thick, this lost 1.4 % of the gradient of rotations; `torch` loses 0.07 %.
- Gradients of means and covariances leak between the scenes of a batch whose scenes have under 32 Gaussians, see WARP.

Everything else agrees: low-pass 0.3, alphas under 1/255 skipped, rays stopped at a transmittance of 1e-4, near plane
0.2, covariance from unnormalised quaternions. tests/models/gaussians/test_rasterizers.py measures this, with the cap
of gsplat.

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

from models.gaussians import splatting, warp_rasterizer
from models.gaussians.harmonics import view_colors
from models.gaussians.scene import Gaussians
from utils.errors import ConfigError, first_line

log = logging.getLogger(__name__)

RASTERIZERS = ("auto", "torch", "gsplat", "gswarp")
MIN_GSPLAT = (1, 5)
# gsplat 1.5 sums gradients of a warp by the index of the Gaussian within its scene, ignores which scene it is, and
# gives the sum to one scene. With at least this number of Gaussians per scene, a warp has no index twice.
WARP = 32


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Images of each scene from each of its cameras.

    Attributes:
        colors_BV3HW: over the background, in [0, 1].
        alphas_BV1HW: in [0, 1].
        depths_BV1HW: distance along the camera's axis, the weighted mean of a pixel's Gaussians; 0 in empty pixels.
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
    """Render scenes from cameras; differentiable, in the dtype of the Gaussians (float32 with gsplat and gswarp).

    Args:
        gaussians: B scenes.
        c2w_BV44: camera to world, OpenCV axes, on any device.
        K_33: intrinsics in pixels, pixel centres at +0.5; (3, 3), or (V, 3, 3) with one matrix per camera.
        size: height and width.
        background: grey, or RGB of shape (3,), (B, 3) or (B, V, 3).
        backend: see `pick_rasterizer`.

    Raises:
        ValueError: cameras and Gaussians have different numbers of scenes.
        ConfigError: the backend cannot run on this machine.
    """
    means = gaussians.means_BN3
    if c2w_BV44.shape[:1] != means.shape[:1] or c2w_BV44.shape[2:] != (4, 4):
        raise ValueError(
            f"cameras of shape {tuple(c2w_BV44.shape)} do not fit {len(means)} scenes; the shape must be (B, V, 4, 4)"
        )
    c2w_BV44, K_33 = c2w_BV44.to(means), K_33.to(means)
    draw = {"torch": _torch, "gsplat": _gsplat, "gswarp": _gswarp}[pick_rasterizer(backend, means.device)]
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
    """The backend for a name: `auto` is gsplat if it is compiled and the device is CUDA, else torch.

    gsplat from PyPI compiles itself at the first use. This takes minutes, needs the CUDA compiler, and is valid for one
    version of PyTorch. It happens only with the name `gsplat`; afterwards `auto` uses gsplat too.

    Raises:
        ConfigError: the name is unknown, or this rasteriser cannot run here.
    """
    if name not in RASTERIZERS:
        raise ConfigError(f"rasterizer={name} is unknown; valid: {', '.join(RASTERIZERS)}")
    if name == "auto":
        name = _automatic(device.type)
    if name != "torch":
        if device.type != "cuda":
            raise ConfigError(f"rasterizer={name} needs a CUDA device, but device={device.type}; use auto or torch")
        if lack := _lack_of_gsplat(compiles=True) if name == "gsplat" else warp_rasterizer.lack():
            raise ConfigError(f"rasterizer={name}: {lack}; use auto or torch")
    return name


@functools.cache
def _automatic(device_type: str) -> str:
    lack = f"the device is {device_type}" if device_type != "cuda" else _lack_of_gsplat(compiles=False)
    chosen = "torch" if lack else "gsplat"
    log.info("rasterizer: %s%s", chosen, f" ({lack})" if lack else "")
    return chosen


@functools.cache
def _lack_of_gsplat(*, compiles: bool) -> str | None:
    """Why gsplat cannot render; None if it can.

    Args:
        compiles: let gsplat compile itself if it is not compiled.
    """
    try:
        version = importlib.metadata.version("gsplat")
        importlib.import_module("gsplat")
    except importlib.metadata.PackageNotFoundError:
        return "gsplat is not installed (pip install gsplat); it renders several times faster"
    except ImportError as err:
        return f"gsplat cannot be imported ({err})"
    if tuple(int(number) for number in version.split("+")[0].split(".")[:2]) < MIN_GSPLAT:
        return f"gsplat {version} cannot render batches of scenes; install 1.5 or later"
    try:
        importlib.import_module("gsplat.csrc")
    except ModuleNotFoundError:
        reason = "gsplat is not compiled"
    except ImportError as err:  # compiled for another PyTorch
        reason = f"the compiled part of gsplat cannot be loaded ({first_line(err)})"
    else:
        return None
    if not (compiles or _compiled_before()):
        return f"{reason}; rasterizer=gsplat compiles it, which takes minutes and needs the CUDA compiler"
    try:
        from gsplat.cuda._backend import _C  # compiles, or loads the result of an earlier compilation
    except (ImportError, OSError, RuntimeError) as err:
        return f"gsplat cannot compile itself here ({first_line(err)})"
    return None if _C is not None else "gsplat cannot compile itself here, because the CUDA compiler is missing"


def _compiled_before() -> bool:
    """Whether gsplat is already compiled for this PyTorch, so that importing it does not start a compilation."""
    from torch.utils.cpp_extension import _get_build_directory  # the folder in which gsplat looks

    folder = Path(_get_build_directory("gsplat_cuda", verbose=False))
    if (folder / "lock").exists():  # another process compiles it now, and the file is not whole yet
        return False
    return any((folder / f"gsplat_cuda.{ending}").is_file() for ending in ("so", "lib"))


def _torch(gaussians: Gaussians, c2w_BV44: Tensor, K_33: Tensor, size: tuple[int, int]) -> Tensor:
    B, V = c2w_BV44.shape[:2]
    splats = splatting.project(gaussians, c2w_BV44, K_33, size=size)
    return splatting.rasterise(splats, num_images=B * V, size=size).unflatten(0, (B, V))


def _gswarp(gaussians: Gaussians, c2w_BV44: Tensor, K_33: Tensor, size: tuple[int, int]) -> Tensor:
    return warp_rasterizer.draw(gaussians, c2w_BV44, K_33, size, near=splatting.NEAR)


def _gsplat(gaussians: Gaussians, c2w_BV44: Tensor, K_33: Tensor, size: tuple[int, int]) -> Tensor:
    from gsplat import rasterization

    height, width = size
    missing = max(0, WARP - gaussians.means_BN3.shape[1])

    def filled(values_BNC: Tensor) -> Tensor:
        """Add transparent Gaussians of zeros up to the size of a warp."""
        return functional.pad(values_BNC.float(), (0, 0, 0, missing)).contiguous()

    colors = gaussians.colors_BN3
    if gaussians.harmonics_BNK3 is not None:  # one colour per camera: the same numbers as those of `torch`
        colors = view_colors(colors, gaussians.harmonics_BNK3, gaussians.means_BN3, c2w_BV44)
    # gsplat gets covariances, because it would normalise quaternions.
    painted, alpha, _ = rasterization(
        means=filled(gaussians.means_BN3),
        quats=None,
        scales=None,
        covars=filled(gaussians.covariances().flatten(2)).unflatten(-1, (3, 3)),
        opacities=filled(gaussians.opacities_BN1)[..., 0].contiguous(),
        colors=filled(colors),
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

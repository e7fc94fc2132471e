"""The nodes: text to orbit, images to orbit, cameras, reconstruct.

Letters: B images, V views, H W pixels. Images are as ComfyUI has them: (B, H, W, 3 or 4) in [0, 1].
"""

from __future__ import annotations

import logging
import shlex
from typing import Any

import torch
from torch import Tensor

from . import host
from .process import Worker, WorkerError

log = logging.getLogger(__name__)

CATEGORY = "VideoMV"
CAMERAS = "VIDEOMV_CAMERAS"
TEXT_CONFIG, IMAGE_CONFIG = "configs/mini/t2v_infer.yaml", "configs/mini/i2v_infer.yaml"
DATA_FOV_DEG = 39.6  # of the views that the shipped models make, see utils/cameras.py
LARGEST_SEED = 2**32 - 1
OBJECT, BACKGROUND = "object", "background (LoadImage)"  # what is 1 in a mask
METHODS = ("head", "gs", "neus", "nerf")
ON, OFF, AS_CONFIGURED = "on", "off", "as configured"

WORKER = Worker()


def _ask(kind: str, header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Any:
    return WORKER.request(kind, header, tensors, on_step=host.progress_bar(), check_stopped=host.raise_if_stopped)


def _number(default: float, low: float, high: float, step: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    kind = "INT" if isinstance(default, int) else "FLOAT"
    return kind, {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def _text(default: str, tooltip: str, *, multiline: bool = False) -> tuple[str, dict[str, Any]]:
    return "STRING", {"default": default, "multiline": multiline, "tooltip": tooltip}


SEED = ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True})
SETTINGS = _text("", "settings as on the command line, e.g. guide_scale=5 precision=bfloat16", multiline=True)
STEPS = _number(0, 0, 1000, 1, "steps of the sampler; 0: as configured")
VIEWS = _number(24, 1, 128, 1, "number of views in one turn")
REFINE = ([AS_CONFIGURED, ON, OFF], {"tooltip": "3D-aware sampling: all views show one object"})


class _Orbit:
    """What both samplers share."""

    RETURN_TYPES = ("IMAGE", "MASK", CAMERAS)
    RETURN_NAMES = ("views", "masks", "cameras")
    OUTPUT_TOOLTIPS = ("one image for each view", "1 where the object is", "the camera of each view")
    FUNCTION = "sample"
    CATEGORY = CATEGORY

    @staticmethod
    def _sampled(
        config: str, settings: str, *, num_views: int, steps: int, refine: str, tensors: Any = None, **request: Any
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        values = [f"cameras.num_views={num_views}"]
        values += [f"sampler.num_steps={steps}"] if steps else []
        values += [] if refine == AS_CONFIGURED else [f"refine={str(refine == ON).lower()}"]
        values += ["results=refined"] if refine == ON else []
        header = {"config": config, "settings": [*values, *_words(settings)], **request}
        answer, found = _ask("sample", header, tensors)
        for note in answer["notes"]:
            log.warning("VideoMV: %s", note)
        cameras = {"c2w_V44": found["c2w_V44"], "fov_deg": answer["fov_deg"]}
        return found["views_VHW3"], found["masks_VHW"], cameras


class TextToOrbit(_Orbit):
    """Samples the views of an object that a sentence describes."""

    DESCRIPTION = "Views of an object around a circle, from a sentence."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "prompt": _text("a red mug", "the object", multiline=True),
                "config": _text(TEXT_CONFIG, "configuration file of the repository, or a path"),
                "seed": SEED,
                "num_views": VIEWS,
                "elevation_deg": _number(15.0, -80.0, 80.0, 1.0, "height angle of the cameras"),
                "steps": STEPS,
                "refine": REFINE,
            },
            "optional": {"settings": SETTINGS},
        }

    def sample(
        self,
        prompt: str,
        config: str,
        seed: int,
        num_views: int,
        elevation_deg: float,
        steps: int,
        refine: str,
        settings: str = "",
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Sample one orbit: views (V, H, W, 3), masks (V, H, W) and the cameras."""
        if not prompt.strip():
            raise WorkerError("prompt is empty; describe an object, e.g. a red mug")
        settings = f"cameras.elevation_deg={elevation_deg:g}\n{settings}"
        options = {"num_views": num_views, "steps": steps, "refine": refine}
        return self._sampled(config, settings, prompt=prompt.strip(), seed=seed, **options)


class ImagesToOrbit(_Orbit):
    """Samples the views of an object that one or several pictures show."""

    DESCRIPTION = "Views of an object around a circle, from one picture or several with known directions."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "pictures of one object; the first is view 0"}),
                "config": _text(IMAGE_CONFIG, "configuration file of the repository, or a path"),
                "seed": SEED,
                "num_views": VIEWS,
                "azimuths_deg": _text("0", "direction of each picture relative to the first, e.g. 0, 90"),
                "input_elevation_deg": _text("auto", "height angle of the first picture; auto: estimated"),
                "mask_shows": (
                    [OBJECT, BACKGROUND],
                    {"tooltip": "what is 1 in the mask"},
                ),
                "steps": STEPS,
                "refine": REFINE,
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "cuts the object out; not needed for images with alpha"}),
                "prompt": _text("", "a sentence, for models that take both", multiline=True),
                "settings": SETTINGS,
            },
        }

    def sample(
        self,
        images: Tensor,
        config: str,
        seed: int,
        num_views: int,
        azimuths_deg: str,
        input_elevation_deg: str,
        mask_shows: str,
        steps: int,
        refine: str,
        mask: Tensor | None = None,
        prompt: str = "",
        settings: str = "",
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Sample one orbit: views (V, H, W, 3), masks (V, H, W) and the cameras."""
        elevation = input_elevation_deg.strip() or "auto"
        settings = f"input_elevation_deg={elevation}\n{settings}"
        request = {"azimuths_deg": _angles(azimuths_deg), "prompt": prompt.strip(), "seed": seed}
        tensors = {"rgba_BHW4": with_alpha(images, mask, shows=mask_shows)}
        options = {"num_views": num_views, "steps": steps, "refine": refine}
        return self._sampled(config, settings, tensors=tensors, **request, **options)


class OrbitCameras:
    """Makes cameras for views that other nodes made."""

    DESCRIPTION = "Cameras on a circle around the object, for images that were not sampled here."
    RETURN_TYPES = (CAMERAS,)
    RETURN_NAMES = ("cameras",)
    FUNCTION = "place"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "num_views": VIEWS,
                "elevation_deg": _number(15.0, -80.0, 80.0, 1.0, "height angle of the cameras"),
                "distance": _number(2.0, 0.1, 100.0, 0.1, "distance to the middle of the object"),
                "azimuth_start_deg": _number(0.0, -360.0, 360.0, 1.0, "direction of the first view"),
                "azimuth_span_deg": _number(360.0, -360.0, 360.0, 1.0, "angle that the views divide"),
                "fov_deg": _number(DATA_FOV_DEG, 1.0, 170.0, 0.1, "horizontal field of view"),
            }
        }

    def place(self, fov_deg: float, **options: Any) -> tuple[dict[str, Any]]:
        """Place cameras: c2w_V44 and the field of view."""
        _, found = _ask("cameras", options)
        return ({"c2w_V44": found["c2w_V44"], "fov_deg": fov_deg},)


class Reconstruct:
    """Makes Gaussians and a mesh from views with cameras."""

    DESCRIPTION = "3D Gaussians and a mesh from views with cameras."
    RETURN_TYPES = ("SPLAT", "MESH")
    RETURN_NAMES = ("splat", "mesh")
    FUNCTION = "reconstruct"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "views": ("IMAGE", {"tooltip": "one image for each camera"}),
                "cameras": (CAMERAS, {}),
                "method": (list(METHODS), {"tooltip": "head: a network, at once; the others are fitted to the views"}),
                "config": _text(TEXT_CONFIG, "configuration file with the head; not used by fits"),
                "seed": SEED,
                "mesh": ("BOOLEAN", {"default": True, "tooltip": "make a mesh too"}),
            },
            "optional": {
                "masks": ("MASK", {"tooltip": "1 where the object is; without them, the background must be plain"}),
                "settings": _text("", "options of the method, e.g. num_steps=500", multiline=True),
            },
        }

    def reconstruct(
        self,
        views: Tensor,
        cameras: dict[str, Any],
        method: str,
        config: str,
        seed: int,
        mesh: bool,
        masks: Tensor | None = None,
        settings: str = "",
    ) -> tuple[Any, Any]:
        """Reconstruct one object: ComfyUI's SPLAT and MESH. A part that is not there blocks the nodes that need it."""
        tensors = {"views_VHW3": views[..., :3], "c2w_V44": cameras["c2w_V44"]}
        if masks is not None and method != "head":
            tensors["masks_VHW"] = masks
        header = {"method": method, "config": config, "settings": _words(settings), "seed": seed, "with_mesh": mesh}
        answer, found = _ask("reconstruct", {**header, "fov_deg": cameras["fov_deg"]}, tensors)
        missing = {"mesh": "the switch `mesh` of the node Reconstruct is off", **answer["missing"]}
        for part, reason in answer["missing"].items():
            log.warning("VideoMV: no %s: %s", part, reason)
        names = ("positions", "scales", "rotations", "opacities", "sh")
        splat = host.splat_of({name: found[name] for name in names}) if "positions" in found else None
        shape = [found[name][None] for name in ("points_N3", "faces_F3", "colors_N3")] if "points_N3" in found else None
        return (
            host.blocker(f"VideoMV: no Gaussians: {missing['splat']}") if splat is None else splat,
            host.blocker(f"VideoMV: no mesh: {missing['mesh']}") if shape is None else host.mesh_of(*shape),
        )


def with_alpha(images_BHWC: Tensor, mask_BHW: Tensor | None, *, shows: str) -> Tensor:
    """Join images and their mask to RGBA: (B, H, W, 4).

    Args:
        images_BHWC: RGB or RGBA.
        mask_BHW: one mask for all images, or one for each; None: alpha stays, or is 1.
        shows: what is 1 in the mask.

    Raises:
        WorkerError: the mask has another size or number.
    """
    images_BHWC = images_BHWC.float()
    if mask_BHW is None:
        alpha_BHW = images_BHWC[..., 3] if images_BHWC.shape[-1] == 4 else torch.ones(images_BHWC.shape[:3])
    else:
        mask_BHW = mask_BHW.float().reshape(-1, *mask_BHW.shape[-2:])
        if mask_BHW.shape[-2:] != images_BHWC.shape[1:3] or len(mask_BHW) not in (1, len(images_BHWC)):
            raise WorkerError(
                f"mask has the shape {tuple(mask_BHW.shape)}, but the images have {tuple(images_BHWC.shape[:3])}; "
                "LoadImage gives an empty mask for a picture without alpha: disconnect it, or scale the mask"
            )
        alpha_BHW = (1 - mask_BHW if shows == BACKGROUND else mask_BHW).expand(images_BHWC.shape[:3])
    return torch.cat([images_BHWC[..., :3], alpha_BHW[..., None].to(images_BHWC)], dim=-1)


def _words(settings: str) -> list[str]:
    """Split settings like a shell does: by spaces and lines, with quotes."""
    try:
        return shlex.split(settings, comments=True)
    except ValueError as err:
        raise WorkerError(f"settings: {err}; close the quote") from err


def _angles(text: str) -> list[float]:
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError as err:
        raise WorkerError(f"azimuths_deg={text} is not a list of angles; write e.g. 0, 90") from err


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "VideoMVTextToOrbit": TextToOrbit,
    "VideoMVImagesToOrbit": ImagesToOrbit,
    "VideoMVOrbitCameras": OrbitCameras,
    "VideoMVReconstruct": Reconstruct,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "VideoMVTextToOrbit": "Text to orbit (VideoMV)",
    "VideoMVImagesToOrbit": "Images to orbit (VideoMV)",
    "VideoMVOrbitCameras": "Orbit cameras (VideoMV)",
    "VideoMVReconstruct": "Reconstruct (VideoMV)",
}

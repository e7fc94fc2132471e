"""What a sampling run starts from: lists of prompts or of pictures, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipelines.sampling.known_views import view_at
from utils.cameras import camera_elevations_deg
from utils.errors import ConfigError, DataError
from utils.object_image import input_view
from utils.settings.run import RunConfig
from utils.settings.sampling import ELEVATION_TOLERANCE_DEG

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one orbit starts from.

    Attributes:
        text: the sentence, or the picture's path.
        slug: begins the name of its folders.
        record: what result.json says about it; an orbit made from another record is made again.
    """

    text: str
    slug: str
    record: dict[str, str]


def prompt_sources(prompts: Sequence[str]) -> list[Source]:
    """Each prompt once."""
    return [Source(text=prompt, slug=slug_of(prompt), record={"prompt": prompt}) for prompt in dict.fromkeys(prompts)]


def image_sources(images: Sequence[str], cfg: RunConfig) -> list[Source]:
    """Each picture once; every file is read once to see that it can be used.

    Raises:
        DataError: a file cannot be used; names it and the remedy.
    """
    known = [str(view["image"]) for view in cfg.known_views]
    for image in dict.fromkeys([*images, *known]):
        input_view(image, resolution=cfg.resolution, recenter=cfg.recenter, object_share=cfg.object_share)
    sources = []
    for image in dict.fromkeys(images):
        digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (image, *known))).hexdigest()
        sources.append(Source(text=image, slug=slug_of(Path(image).stem), record={"image": image, "sha256": digest}))
    return sources


def sources_of(cfg: RunConfig, *, kind: str) -> list[Source]:
    """Everything that a run samples from.

    Args:
        kind: "prompt" or "image", as the entrance has it.

    Raises:
        ConfigError: the network, or another setting, belongs to the other kind.
        DataError: the list or a picture cannot be used.
    """
    of_images = cfg.takes_images
    if of_images != (kind == "image"):
        entrance = "inference_i2vgen_entrance" if of_images else "inference_text2video_entrance"
        raise ConfigError(f"UNet.type={cfg.UNet.type} does not fit TASK_TYPE={cfg.TASK_TYPE}; use {entrance}")
    if kind == "prompt":
        for name in ("images", "known_views", "input_elevation_deg"):
            if getattr(cfg, name) not in ([], None):
                raise ConfigError(f"{name} (--image) belong to image models; use e.g. configs/mini/i2v_infer.yaml")
        prompts = list(cfg.prompts) or read_prompts(cfg.test_list_path)
        _note_unknown(prompts, cfg)
        return prompt_sources(prompts)
    if cfg.prompts:
        raise ConfigError("prompts (--prompt) belong to text models; give --image, and words with image_prompt=...")
    elevations_V = camera_elevations_deg(cfg.cameras.c2w())
    if float((elevations_V - elevations_V[0]).abs().max()) > ELEVATION_TOLERANCE_DEG:
        log.warning(
            "cameras.views: views at other elevations than view 0, which the picture is; only a network that was "
            "trained on such orbits draws them well (those of configs/ were trained on one elevation an orbit)"
        )
    sources = image_sources(list(cfg.images) or read_list(cfg.test_list_path, of="image"), cfg)
    if cfg.known_views and len(sources) > 1:
        raise ConfigError(f"known_views belong to one object, but {len(sources)} images are listed; give one --image")
    if cfg.known_views and cfg.recenter:
        log.warning(
            "known_views: recentring scales each picture by its own outline, so that an object changes its size from "
            "view to view; give recenter=false for pictures from one camera at one distance"
        )
    return sources


def _note_unknown(prompts: Sequence[str], cfg: RunConfig) -> None:
    """A small model draws something for any prompt; say so where it cannot be what was asked for."""
    if not cfg.known_objects or cfg.lora.path:  # which teaches it another
        return
    known = re.compile(rf"\b({'|'.join(map(re.escape, cfg.known_objects))})s?\b", re.IGNORECASE)
    for prompt in prompts:
        if not known.search(prompt):
            names = ", ".join(cfg.known_objects)
            log.warning("prompt %r names nothing that this model knows (known_objects: %s)", prompt, names)


def known_view_files(cfg: RunConfig, c2w_V44: Tensor) -> dict[int, str]:
    """Place in the orbit -> picture, of the setting `known_views`.

    Raises:
        ConfigError: no view has a given azimuth, or two pictures have the same view.
    """
    files: dict[int, str] = {}
    for index, known in enumerate(cfg.known_views):
        where = f"known_views[{index}].azimuth_deg"
        view = view_at(c2w_V44, float(known["azimuth_deg"]), where=where)
        if view in files:
            raise ConfigError(f"{where}={known['azimuth_deg']:g}: {files[view]} is that view already; leave one out")
        files[view] = str(known["image"])
    return files


def read_prompts(path: str) -> list[str]:
    """Prompts of a text file, see `read_list`."""
    return read_list(path, of="prompt")


def read_list(path: str, *, of: str) -> list[str]:
    """Lines of a text file; empty ones and those that begin with # are skipped.

    Args:
        of: what a line is, prompt or image, for messages.

    Raises:
        DataError: the file is missing, is no UTF-8 text, or holds no such line.
    """
    if not path or not Path(path).is_file():
        raise DataError(f"test_list_path={path}: no such file; give a text file with one {of} a line, or --{of}")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as err:
        raise DataError(f"test_list_path={path} is no UTF-8 text ({err.reason}); give one {of} a line") from err
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise DataError(f"test_list_path={path} holds no {of}; write one a line (lines with # are comments)")
    return found


def slug_of(text: str) -> str:
    """A file name that says the text: at most 60 letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or f"{zlib.crc32(text.encode()):08x}"

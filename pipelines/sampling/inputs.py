"""The inputs of a sampling run: lists of prompts or images, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.sampling.known_views import view_at
from utils.cameras import camera_elevations_deg
from utils.errors import ConfigError, DataError
from utils.files import check_text, read_lines
from utils.object_image import input_view
from utils.settings.paths import found_path
from utils.settings.run import RunConfig
from utils.settings.sampling import ELEVATION_TOLERANCE_DEG

log = logging.getLogger(__name__)

PLACES = ("image", "image_path")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The input of one orbit.

    Attributes:
        text: the prompt, or the path of the image.
        slug: the first part of the name of its folders.
        record: facts for result.json. Those in `PLACES` say where a picture was found; an orbit with other values of
            the others is made again.
    """

    text: str
    slug: str
    record: dict[str, Any]

    def made(self, result: Mapping[str, Any], *, exactly: bool = False) -> bool:
        """Whether a result.json is of this input. A picture that changed in its place is the same input.

        Args:
            exactly: only if the content of the picture is the same too.
        """
        facts = [name for name in self.record if name not in PLACES]
        if all(result.get(name) == self.record[name] for name in facts):
            return True
        place = "image_path" if "image_path" in result else "image"  # as earlier versions wrote it
        return not exactly and place in self.record and result.get(place) == self.record[place]


def prompt_sources(prompts: Sequence[str]) -> list[Source]:
    """Make one source for each different prompt.

    Raises:
        DataError: a prompt is not valid UTF-8.
    """
    return [
        Source(text=check_text(prompt, name="prompt"), slug=slug_of(prompt), record={"prompt": prompt})
        for prompt in dict.fromkeys(prompts)
    ]


def image_sources(images: Sequence[str], cfg: RunConfig) -> list[Source]:
    """Make one source for each different image; every file is read to check that it can be used.

    Raises:
        DataError: files cannot be used; the message has the first file, the remedy, and the names of the others.
    """
    images = list(dict.fromkeys(os.path.expanduser(image) for image in images))
    known = [str(view["image"]) for view in cfg.known_views]
    failures = {}
    for image in dict.fromkeys([*images, *known]):
        try:
            input_view(image, resolution=cfg.resolution, recenter=cfg.recenter, object_share=cfg.object_share)
        except DataError as err:
            failures[image] = str(err)
    if failures:
        first, *others = failures
        more = f" (as are {len(others)} other images: {', '.join(others[:5])})" if others else ""
        raise DataError(f"{failures[first]}{more}")
    sources = []
    for image in images:
        digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (image, *known))).hexdigest()
        record = {"image": image, "image_path": str(Path(image).resolve()), "sha256": digest}
        sources.append(Source(text=image, slug=slug_of(Path(image).stem), record=record))
    return sources


def sources_of(cfg: RunConfig, *, kind: str) -> list[Source]:
    """Return all sources of a run.

    Args:
        kind: "prompt" or "image", set by TASK_TYPE.

    Raises:
        ConfigError: the network or another setting belongs to the other kind.
        DataError: the list or an image cannot be used.
    """
    of_images = cfg.takes_images
    if of_images != (kind == "image"):
        entrance = "inference_i2vgen_entrance" if of_images else "inference_text2video_entrance"
        raise ConfigError(f"UNet.type={cfg.UNet.type} does not fit TASK_TYPE={cfg.TASK_TYPE}; use {entrance}")
    if kind == "prompt":
        for name in ("images", "known_views", "input_elevation_deg"):
            if getattr(cfg, name) not in ([], None):
                raise ConfigError(f"{name} (--image) is only for image models; use e.g. configs/mini/i2v_infer.yaml")
        prompts = list(cfg.prompts) or read_prompts(cfg.test_list_path)
        for prompt in prompts:
            check_text(prompt, name="prompt")
        _note_unknown(prompts, cfg)
        return prompt_sources(prompts)
    if cfg.prompts:
        raise ConfigError("prompts (--prompt) is only for text models; use --image, and image_prompt=... for a text")
    elevations_V = camera_elevations_deg(cfg.cameras.c2w())
    if float((elevations_V - elevations_V[0]).abs().max()) > ELEVATION_TOLERANCE_DEG:
        log.warning(
            "cameras.views: some views have another elevation than view 0, the input; only a network that was trained "
            "on such orbits gives good results (those of configs/ were trained with one elevation per orbit)"
        )
    images = list(cfg.images) or [found_path(image) for image in read_list(cfg.test_list_path, of="image")]
    sources = image_sources(images, cfg)
    if cfg.known_views and len(sources) > 1:
        raise ConfigError(f"known_views is for one object, but there are {len(sources)} images; give only one --image")
    if cfg.known_views and cfg.recenter:
        log.warning(
            "known_views: with recenter=true each image is scaled by its own outline, so the object changes size "
            "between views; set recenter=false if all images have the same camera and distance"
        )
    return sources


def _note_unknown(prompts: Sequence[str], cfg: RunConfig) -> None:
    """Warn about prompts without a known object, because a small model makes some image for any prompt."""
    if not cfg.known_objects or cfg.lora.path:  # LoRA can teach it another object
        return
    known = re.compile(rf"\b({'|'.join(map(re.escape, cfg.known_objects))})s?\b", re.IGNORECASE)
    for prompt in prompts:
        if not known.search(prompt):
            names = ", ".join(cfg.known_objects)
            log.warning("prompt %r contains no object that this model knows (known_objects: %s)", prompt, names)


def known_view_files(cfg: RunConfig, c2w_V44: Tensor) -> dict[int, str]:
    """Return the image files in `known_views`, by the index of their view.

    Raises:
        ConfigError: no view has a given azimuth, or two images belong to the same view.
    """
    files: dict[int, str] = {}
    for index, known in enumerate(cfg.known_views):
        where = f"known_views[{index}].azimuth_deg"
        view = view_at(c2w_V44, float(known["azimuth_deg"]), where=where)
        if view in files:
            raise ConfigError(f"{where}={known['azimuth_deg']:g}: {files[view]} is already this view; remove one")
        files[view] = str(known["image"])
    return files


def read_prompts(path: str) -> list[str]:
    """Read the prompts of a text file, see `read_list`."""
    return read_list(path, of="prompt")


def read_list(path: str, *, of: str) -> list[str]:
    """Read the lines of a text file, without empty lines and lines that start with #.

    Args:
        of: kind of a line, prompt or image, for messages.

    Raises:
        DataError: the file is missing, is not UTF-8 text, or has no such line.
    """
    if not path or not Path(path).is_file():
        raise DataError(f"test_list_path={path}: no such file; use a text file with one {of} per line, or --{of}")
    lines = read_lines(path, option="test_list_path")
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise DataError(f"test_list_path={path} contains no {of}; write one per line (lines with # are comments)")
    return found


def slug_of(text: str) -> str:
    """Turn a text into a file name of at most 60 letters, digits and dashes. Different texts may have the same."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or f"{zlib.crc32(text.encode()):08x}"


def names_of(source: Source) -> Iterator[str]:
    """Yield the names that the folders of an input may have; the first that no other input has is used."""
    yield source.slug
    checked = f"{source.slug}-{zlib.crc32(source.text.encode()):08x}"
    # The path of a picture can be written in many ways, so its content comes first.
    content = source.record.get("sha256")
    longer = f"{source.slug}-{(content or hashlib.sha256(source.text.encode()).hexdigest())[:16]}"
    yield from (longer, checked) if content else (checked, longer)
    yield from (f"{longer}-{number}" for number in itertools.count(2))

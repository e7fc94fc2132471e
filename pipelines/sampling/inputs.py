"""The inputs of a sampling run: lists of prompts or images, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.sampling.input_elevation import check_estimator, estimate_elevations, load_estimator, preparation_of
from pipelines.sampling.known_views import view_at
from utils.background import background_remover
from utils.cameras import camera_elevations_deg
from utils.errors import ConfigError, DataError
from utils.files import check_text, read_lines
from utils.object_image import PICTURE_SUFFIXES, input_view
from utils.settings.paths import found_path
from utils.settings.run import RunConfig
from utils.settings.sampling import ELEVATION_TOLERANCE_DEG

log = logging.getLogger(__name__)

PLACES = ("image", "image_path")
ESTIMATE = "input_elevation_deg"  # entry of a record, only if it was estimated


@dataclass(frozen=True, kw_only=True)
class Source:
    """The input of one orbit.

    Attributes:
        text: the path of the image, or the prompt if there is no image.
        slug: the first part of the name of its folders.
        record: facts for result.json. Those in `PLACES` say where a picture was found; an orbit with other values of
            the others is made again.
    """

    text: str
    slug: str
    record: dict[str, Any]

    @property
    def prompt(self) -> str | None:
        """The prompt, alone or with an image."""
        return self.record.get("prompt")

    @property
    def has_image(self) -> bool:
        """Whether the input is an image, with or without a prompt."""
        return _has_image(self.record)

    def made(self, result: Mapping[str, Any], *, exactly: bool = False) -> bool:
        """Whether a result.json is of this input. A picture that changed in its place is the same input.

        Args:
            exactly: only if the content of the picture is the same too.
        """
        if result.get("prompt") != self.prompt or _has_image(result) != self.has_image:
            return False
        facts = [name for name in self.record if name not in PLACES]
        if all(result.get(name) == self.record[name] for name in facts):
            return True
        place = "image_path" if "image_path" in result else "image"  # as earlier versions wrote it
        return not exactly and place in self.record and result.get(place) == self.record[place]


def _has_image(record: Mapping[str, Any]) -> bool:
    return any(place in record for place in PLACES)


def prompt_sources(prompts: Sequence[str]) -> list[Source]:
    """Make one source for each different prompt.

    Raises:
        DataError: a prompt is not valid UTF-8.
    """
    return [
        Source(text=check_text(prompt, name="prompt"), slug=slug_of(prompt), record={"prompt": prompt})
        for prompt in dict.fromkeys(prompts)
    ]


def image_sources(images: Sequence[str], cfg: RunConfig, prompts: Sequence[str] = ()) -> list[Source]:
    """Make one source for each different image; every file is read to check that it can be used.

    Args:
        prompts: none, one for all images, or one per image. Then each different pair is a source.

    Raises:
        ConfigError: the number of prompts does not fit.
        DataError: files cannot be used; the message has the first file, the remedy, and the names of the others.
    """
    images = [os.path.expanduser(image) for image in images]
    pairs = list(dict.fromkeys(zip(images, matched_prompts(prompts, len(images)) or [None] * len(images), strict=True)))
    known = [str(view["image"]) for view in cfg.known_views]
    if cfg.remove_background:
        background_remover("remove_background=true")  # a missing package is named once, before pictures are read
    failures = {}
    for image in dict.fromkeys([*images, *known]):
        try:
            input_view(image, resolution=cfg.resolution, **preparation_of(cfg))
        except DataError as err:
            failures[image] = str(err)
    if failures:
        first, *others = failures
        more = f" (as are {len(others)} other images: {', '.join(others[:5])})" if others else ""
        raise DataError(f"{failures[first]}{more}")
    sources = []
    for image, prompt in pairs:
        digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (image, *known))).hexdigest()
        record = {"image": image, "image_path": str(Path(image).resolve()), "sha256": digest}
        if prompt is not None:
            record["prompt"] = check_text(prompt, name="prompt")
        sources.append(Source(text=image, slug=slug_of(Path(image).stem), record=record))
    return sources


def matched_prompts(prompts: Sequence[str], num_images: int) -> list[str]:
    """Return one prompt per image, or none if there are none.

    Raises:
        ConfigError: there are several prompts, but not one per image.
    """
    if len(prompts) not in (0, 1, num_images):
        raise ConfigError(
            f"prompts (--prompt): {len(prompts)} prompts for {num_images} images; give one for all, or one per image"
        )
    return [*prompts] * (num_images if len(prompts) == 1 else 1)


def refused_prompts(cfg: RunConfig, prompts: Sequence[str]) -> str:
    """Say that an image model was not trained for prompts."""
    return (
        f"prompts (--prompt) is only for text models, but UNet.type={cfg.UNet.type} with takes_prompts=false got "
        f"{prompts[0]!r}; use --image, image_prompt=... for a text, or takes_prompts=true for weights trained with both"
    )


def sources_of(cfg: RunConfig, *, kind: str) -> list[Source]:
    """Return all sources of a run.

    Args:
        kind: "prompt" or "image", set by TASK_TYPE. With takes_prompts=true, image runs may have prompts too.

    Raises:
        ConfigError: the network or another setting belongs to the other kind.
        DataError: the list or an image cannot be used.
    """
    of_images = cfg.takes_images
    if of_images != (kind == "image"):
        entrance = "inference_i2vgen_entrance" if of_images else "inference_text2video_entrance"
        raise ConfigError(f"UNet.type={cfg.UNet.type} does not fit TASK_TYPE={cfg.TASK_TYPE}; use {entrance}")
    if kind == "prompt":
        _refuse_settings_of_images(cfg, "is only for image models; use e.g. configs/mini/i2v_infer.yaml")
        prompts = list(cfg.prompts) or read_prompts(cfg.test_list_path)
    else:
        prompts = list(cfg.prompts)
        _check_prompts_of_image_model(cfg)
    for prompt in prompts:
        check_text(prompt, name="prompt")
    _note_unknown(prompts, cfg)
    if kind == "prompt" or (prompts and not cfg.images):
        return prompt_sources(prompts)
    return _sources_with_images(cfg)


def _refuse_settings_of_images(cfg: RunConfig, remedy: str) -> None:
    for name in ("images", "known_views", "input_elevation_deg", "remove_background"):
        if name == "input_elevation_deg" and cfg.takes_images and cfg.estimates_elevation:
            log.info(
                "input_elevation_deg=auto: prompts alone have no picture to estimate from; view 0 has the elevation "
                "of cameras"
            )
        elif getattr(cfg, name) not in ([], None, False):
            raise ConfigError(f"{name} (--image) {remedy}")


def _check_prompts_of_image_model(cfg: RunConfig) -> None:
    if not cfg.prompts:
        return
    if not cfg.takes_prompts:
        raise ConfigError(refused_prompts(cfg, cfg.prompts))
    if cfg.image_prompt:
        raise ConfigError(f"prompts (--prompt) replace image_prompt={cfg.image_prompt}; give one of them")
    if not cfg.images:
        _refuse_settings_of_images(cfg, "needs an image as view 0, but there are only prompts; add --image")


def _sources_with_images(cfg: RunConfig) -> list[Source]:
    """Return the sources of images, each with its prompt if there are prompts."""
    if cfg.estimates_elevation:
        check_estimator(cfg)  # before all pictures are read
    elevations_V = camera_elevations_deg(cfg.cameras.c2w())
    if float((elevations_V - elevations_V[0]).abs().max()) > ELEVATION_TOLERANCE_DEG:
        log.warning(
            "cameras.views: some views have another elevation than view 0, the input; only a network that was trained "
            "on such orbits gives good results (those of configs/ were trained with one elevation per orbit)"
        )
    images = list(cfg.images) or [found_path(image) for image in read_list(cfg.test_list_path, of="image")]
    sources = image_sources(images, cfg, cfg.prompts)
    if cfg.known_views and len(sources) > 1:
        raise ConfigError(f"known_views is for one object, but there are {len(sources)} images; give only one --image")
    if cfg.known_views and cfg.recenter:
        log.warning(
            "known_views: with recenter=true each image is scaled by its own outline, so the object changes size "
            "between views; set recenter=false if all images have the same camera and distance"
        )
    return with_elevations(sources, cfg) if cfg.estimates_elevation else sources


def with_elevations(sources: Sequence[Source], cfg: RunConfig) -> list[Source]:
    """Add the estimated elevation of each picture to its record, as `input_elevation_deg`, and log it.

    Raises:
        ConfigError, DataError: the elevation cannot be estimated.
    """
    images = list(dict.fromkeys(source.text for source in sources))
    found = dict(zip(images, estimate_elevations(load_estimator(cfg), images, **preparation_of(cfg)), strict=True))
    for image, elevation_deg in found.items():
        log.info(
            "%s: elevation estimated as %.1f degrees, for all its views (instead of cameras.elevation_deg=%g)",
            image, elevation_deg, cfg.cameras.elevation_deg,
        )  # fmt: skip
    return [replace(source, record={**source.record, ESTIMATE: found[source.text]}) for source in sources]


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


def are_sentences(inputs: Sequence[str | Path | Tensor]) -> bool:
    """Whether the inputs of a call are prompts: texts that are no files and do not end like the name of a picture.

    Raises:
        ValueError: some are prompts and some are pictures.
    """
    sentences = [
        isinstance(one, str) and Path(one).suffix.lower() not in PICTURE_SUFFIXES and not os.path.exists(one)
        for one in inputs
    ]
    if any(sentences) and not all(sentences):
        first = inputs[sentences.index(True)]
        raise ValueError(
            f"{first!r} is no file, but other inputs are pictures; correct its path, or give prompts in prompts= or in "
            "a call of their own"
        )
    return any(sentences)


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
    # The path of a picture can be written in many ways, so its content comes first.
    text, content = source.text, source.record.get("sha256")
    if source.has_image and source.prompt is not None:  # a picture may come with several prompts
        text, content = (hashlib.sha256(f"{one}\n{source.prompt}".encode()).hexdigest() for one in (text, content))
    checked = f"{source.slug}-{zlib.crc32(text.encode()):08x}"
    longer = f"{source.slug}-{(content or hashlib.sha256(text.encode()).hexdigest())[:16]}"
    yield from (longer, checked) if content else (checked, longer)
    yield from (f"{longer}-{number}" for number in itertools.count(2))

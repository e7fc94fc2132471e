"""What a visitor asks for, as the settings of the command line that does the same.

A request becomes `key=value` overrides of the model's configuration. The page runs these settings, and shows them as a
command, so both are the same by construction. Texts of visitors never become part of an override.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.reconstruction.fitting.loop import ready_methods
from pipelines.sampling.input_elevation import preparation_of
from tools.web.models import Model
from utils.config import load_config
from utils.errors import ConfigError
from utils.files import check_text
from utils.registry import FITS, Section
from utils.settings.run import RunConfig
from utils.settings.sampling import ESTIMATED

LONGEST_PROMPT = 500  # characters
MOST_PICTURES = 4
MOST_VIEWS = 48  # the page's limit; the models were trained with 24
LARGEST_SEED = 2**31 - 1
QUALITIES = {"quick": 0.3, "normal": 0.5, "full": 1.0}  # fractions of the configuration's number of steps
RISE_DEG = 20.0
# pipelines/sampling/README.md recommends it for sentences, if the configuration has none because of its pictures.
GUIDE_SCALE_OF_SENTENCES = 3.0
PATHS = ("full turn", "full turn, clockwise", "half turn", "rising turn")
# The 3D files that the page offers. A video of the Gaussians would take long, and the page turns them itself.
ASSETS = ("assets.spz=true", "assets.splat=false", "assets.turntable=false")
FIT_STEPS = {"quick": 0.25, "normal": 0.5, "full": 1.0}  # fractions of the method's number of steps


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A checked input picture.

    Attributes:
        path: our own copy.
        name: as the visitor named it; it must be escaped before it is shown.
        azimuth_deg: where it was taken, relative to the first picture, counter-clockwise from above.
        needs_removal: its background must be removed.
        note: what was done to it, or "".
    """

    path: Path
    name: str
    azimuth_deg: float = 0.0
    needs_removal: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class OrbitRequest:
    """An orbit that a visitor asks for, not yet checked; see `checked`.

    Attributes:
        prompt: sentence, or "".
        pictures: at most four; the first is view 0.
        elevation_deg: height angle of the cameras.
        estimate_elevation: use the elevation of the first picture instead.
        num_views: number of views.
        path: one of PATHS.
        seed: of the noise.
        quality: a key of QUALITIES.
        refine: 3D-aware sampling.
    """

    prompt: str = ""
    pictures: tuple[Picture, ...] = ()
    elevation_deg: float = 15.0
    estimate_elevation: bool = False
    num_views: int = 24
    path: str = PATHS[0]
    seed: int = 11
    quality: str = "normal"
    refine: bool = False

    @property
    def title(self) -> str:
        """Name of the result: the sentence, or the names of the pictures."""
        return self.prompt or ", ".join(picture.name for picture in self.pictures)


def checked(request: OrbitRequest, model: Model) -> OrbitRequest:
    """Return the request with whole numbers as such, if a model can do it.

    Raises:
        ConfigError: it cannot; one line for the visitor.
    """
    prompt = check_text(str(request.prompt or ""), name="the sentence").strip()
    if not prompt and not request.pictures:
        what = " or add a picture" if model.takes_pictures else ""
        raise ConfigError(f"there is nothing to make yet: write a sentence{what}")
    if len(prompt) > LONGEST_PROMPT:
        raise ConfigError(f"the sentence has {len(prompt)} characters; use at most {LONGEST_PROMPT}")
    if prompt and not model.takes_sentences:
        raise ConfigError(f"the model {model.name} takes no sentences; leave it empty and add a picture")
    if request.pictures and not model.takes_pictures:
        raise ConfigError(f"the model {model.name} takes no pictures; remove them and write a sentence")
    if len(request.pictures) > MOST_PICTURES:
        raise ConfigError(f"there are {len(request.pictures)} pictures; use at most {MOST_PICTURES}")
    one_of("path", request.path, PATHS)
    one_of("quality", request.quality, tuple(QUALITIES))
    if request.refine and not model.has_head:
        raise ConfigError(f"the model {model.name} has no 3D head, so 3D-aware sampling is not possible; switch it off")
    estimate = bool(request.estimate_elevation and request.pictures)
    if estimate and request.path == "rising turn":
        raise ConfigError("a rising turn has its own elevations; switch the estimate of the elevation off")
    return OrbitRequest(
        prompt=prompt,
        pictures=request.pictures,
        elevation_deg=number("elevation", request.elevation_deg, -60.0, 80.0 - RISE_DEG),
        estimate_elevation=estimate,
        num_views=whole("number of views", request.num_views, 1, MOST_VIEWS),
        path=request.path,
        seed=whole("seed", request.seed, 0, LARGEST_SEED),
        quality=request.quality,
        refine=bool(request.refine),
    )


def settings_of(request: OrbitRequest, model: Model, *, folder: Path | None) -> dict[str, Any]:
    """Return the arguments of `utils.config.load_config` for a checked request.

    Args:
        folder: of the pictures; None: they are named without a folder, as in the command that a visitor sees.
    """
    cfg = model.cfg
    num_steps = steps_of(model, request.quality)
    overrides = [f"seed={request.seed}", f"sampler.num_steps={num_steps}"]
    scale = guide_scale_of(model, sentence=bool(request.prompt), picture=bool(request.pictures))
    if scale != cfg.guide_scale:
        overrides.append(f"guide_scale={scale:g}")
    overrides += camera_settings(request)
    overrides += ["refine=true", "results=refined"] if request.refine else ["refine=false"]
    overrides += ASSETS
    files = [picture.path.name if folder is None else str(picture.path) for picture in request.pictures]
    known = [
        {"image": file, "azimuth_deg": picture.azimuth_deg}
        for file, picture in zip(files[1:], request.pictures[1:], strict=True)
    ]
    if known:
        overrides.append(f"known_views={json.dumps(known)}")
    given: dict[str, Any] = {"overrides": overrides}
    if request.prompt:
        given["prompts"] = [request.prompt]
    if files:
        given["images"] = files[:1]
    if any(picture.needs_removal for picture in request.pictures):
        given["remove_background"] = True
    return given


def config_of(request: OrbitRequest, model: Model, *, log_dir: Path) -> RunConfig:
    """Return the configuration of a checked request, which writes to `log_dir`.

    Raises:
        ConfigError: settings do not fit together.
    """
    given = settings_of(request, model, folder=log_dir)
    overrides = [*given.pop("overrides"), f"log_dir={json.dumps(str(log_dir))}"]
    return load_config(model.path, overrides, **given)


def command_of(request: OrbitRequest, model: Model) -> str:
    """Return the command line that makes the same orbit, with the pictures in the working directory."""
    given = settings_of(request, model, folder=None)
    words = ["python", "inference.py", "--cfg", model.path]
    words += [word for prompt in given.get("prompts", []) for word in ("--prompt", prompt)]
    words += [word for image in given.get("images", []) for word in ("--image", image)]
    words += ["--remove-background"] if given.get("remove_background") else []
    return shlex.join([*words, *given["overrides"]])


def camera_settings(request: OrbitRequest) -> list[str]:
    """Return the overrides of the cameras."""
    settings = [f"cameras.num_views={request.num_views}", f"cameras.elevation_deg={request.elevation_deg:g}"]
    spans = {"full turn": 360, "full turn, clockwise": -360, "half turn": 180}
    if request.path in spans:
        settings.append(f"cameras.azimuth_span_deg={spans[request.path]}")
    else:
        turned = [number / request.num_views for number in range(request.num_views)]
        views = [
            {"azimuth_deg": round(360 * part, 4), "elevation_deg": round(request.elevation_deg + RISE_DEG * part, 4)}
            for part in turned
        ]
        settings.append(f"cameras.views={json.dumps(views)}")
    return [*settings, f"input_elevation_deg={ESTIMATED if request.estimate_elevation else 'null'}"]


def steps_of(model: Model, quality: str) -> int:
    """Number of denoising steps of a quality."""
    return max(1, round(QUALITIES[quality] * model.cfg.sampler.options.num_steps))


def guide_scale_of(model: Model, *, sentence: bool, picture: bool) -> float:
    """Guidance of a request: that of the configuration, but never none for a sentence alone."""
    if sentence and not picture and model.takes_pictures and model.cfg.guide_scale == 1:
        return GUIDE_SCALE_OF_SENTENCES
    return model.cfg.guide_scale


def expected_seconds(request: OrbitRequest, model: Model) -> float:
    """Expected time until the views of a checked request are there; 3D-aware sampling takes longer."""
    scale = guide_scale_of(model, sentence=bool(request.prompt), picture=bool(request.pictures))
    steps = steps_of(model, request.quality)
    return model.seconds(num_steps=steps, guided=scale != 1, num_views=request.num_views)


def preparation(model: Model, *, remove_background: bool) -> dict[str, Any]:
    """Options of `utils.object_image.input_view`, as a run of the model has them."""
    return {**preparation_of(model.cfg), "resolution": model.cfg.resolution, "remove_background": remove_background}


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """A reconstruction that a visitor asks for.

    Attributes:
        method: a name of the registry FITS.
        quality: a key of FIT_STEPS.
        seed: of start values.
    """

    method: str = "gs"
    quality: str = "normal"
    seed: int = 0

    def section(self) -> Section:
        """Return the method with its options.

        Raises:
            ConfigError: a value is unknown or out of range.
        """
        one_of("method", self.method, tuple(ready_methods()))
        one_of("quality", self.quality, tuple(FIT_STEPS))
        whole("seed", self.seed, 0, LARGEST_SEED)
        return FITS.section({"type": self.method, "num_steps": self.num_steps}, where=f"--method {self.method}")

    @property
    def num_steps(self) -> int:
        """Number of steps of Adam; 0 for a method that takes none."""
        default = FITS.section({"type": self.method}, where="--method").options.num_steps
        return max(min(1, default), round(FIT_STEPS[self.quality] * default))

    def command(self) -> str:
        """Return the command line that does the same with the folder `views`."""
        words = ["python", "tools/reconstruct.py", "--method", self.method, "views", "--out", "reconstructed"]
        words += [f"num_steps={self.num_steps}", "--seed", str(self.seed), "--also", "spz"]
        return shlex.join([*words, "--without", "splat", "turntable"])


def number(name: str, value: Any, low: float, high: float) -> float:
    """Return a number of a visitor.

    Raises:
        ConfigError: it is not a number within [low, high].
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name}: {str(value)[:40]!r} is not a number; write one from {low:g} to {high:g}")
    if not low <= value <= high:
        raise ConfigError(f"{name}: {value:g} is out of range; write a number from {low:g} to {high:g}")
    return float(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number of a visitor; see `number`."""
    found = number(name, value, low, high)
    if found != int(found):
        raise ConfigError(f"{name}: {found:g} is not a whole number; write one from {low} to {high}")
    return int(found)


def one_of(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """Check a choice of a visitor.

    Raises:
        ConfigError: the value is not a valid one.
    """
    if value not in valid:
        raise ConfigError(f"{name}: {str(value)[:40]!r} is unknown; choose one of {', '.join(valid)}")

"""The settings of sampling, and those that training and sampling share.

Names published with VideoMV are kept. A section (a dict with a `type`) is checked by the registry in its metadata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils import registry
from utils.cameras import camera_elevations_deg, cameras_at, orbit_cameras
from utils.errors import ConfigError
from utils.prompts import PROMPT_SUFFIX
from utils.registry import Section
from utils.settings.assets import AssetOptions
from utils.settings.lora import LoraOptions
from utils.settings.typed import NEWER, Refused

ELEVATION_TOLERANCE_DEG = 0.5
ESTIMATED = "auto"  # value of input_elevation_deg
# Far beyond what is useful, and within what memory and float32 hold.
MOST_VIEWS, MOST_ROUNDS, LARGEST_SIDE = 1000, 10**6, 8192
LARGEST_ANGLE_DEG, SMALLEST_DISTANCE, LARGEST_DISTANCE = 36000.0, 1e-3, 1e4
SMALLEST_FOV_DEG, LARGEST_FOV_DEG = 1.0, 150.0
LARGEST_SCALE = 1000.0  # of guidance
LARGEST_SEED = 2**63 - 1  # of torch's generators
# Results of a run with 3D-aware sampling for each input: without it, with it, or both (as published).
RESULTS = ("plain", "refined", "both")
# How known views are fixed during sampling: on their noisy trajectory, or as clean latents.
HOLD_VIEWS = ("trajectory", "clean")


@dataclass(frozen=True, kw_only=True)
class CamerasConfig:
    """The cameras of a sampling run.

    Attributes:
        num_views: V, the number of views of an orbit.
        elevation_deg: height angle, in (-90, 90).
        distance: distance to the origin in world units.
        azimuth_start_deg: azimuth of view 0.
        azimuth_span_deg: angle over which the views are evenly spaced.
        fov_deg: field of view in the camera files; null: that of the data.
        views: {azimuth_deg, elevation_deg, distance} for each view, instead of an orbit; missing values are those
            above.
    """

    num_views: int = 24
    elevation_deg: float = 15.0
    distance: float = 2.0
    azimuth_start_deg: float = 0.0
    azimuth_span_deg: float = 360.0
    fov_deg: float | None = None
    views: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        within("cameras.num_views", self.num_views, 1, MOST_VIEWS)
        within("cameras.azimuth_span_deg", self.azimuth_span_deg, -LARGEST_ANGLE_DEG, LARGEST_ANGLE_DEG)
        if self.fov_deg is not None:
            within("cameras.fov_deg", self.fov_deg, SMALLEST_FOV_DEG, LARGEST_FOV_DEG)
        within("cameras.azimuth_start_deg", self.azimuth_start_deg, -LARGEST_ANGLE_DEG, LARGEST_ANGLE_DEG)
        check_camera("cameras.", 0.0, self.elevation_deg, self.distance)
        within("cameras.views: their number", len(self.views), 0, MOST_VIEWS)
        known = ("azimuth_deg", "elevation_deg", "distance")
        for index, view in enumerate(self.views):
            if set(view) - set(known):
                raise ConfigError(
                    f"cameras.views[{index}] has unknown keys {sorted(set(view) - set(known))}; valid: "
                    f"{', '.join(known)}"
                )
            values = (view.get(key, 1.0 if key == "distance" else 0.0) for key in known)
            check_camera(f"cameras.views[{index}].", *values)

    def c2w(self) -> Tensor:
        """Return the cameras, (V, 4, 4), in the convention of utils.cameras.

        Raises:
            ConfigError: a value in `views` is out of range.
        """
        if not self.views:
            return orbit_cameras(
                num_views=self.num_views,
                elevation_deg=self.elevation_deg,
                radius=self.distance,
                azimuth_start_deg=self.azimuth_start_deg,
                azimuth_span_deg=self.azimuth_span_deg,
            )
        defaults = {"azimuth_deg": self.azimuth_start_deg, "elevation_deg": self.elevation_deg}
        defaults["distance"] = self.distance
        columns = [
            torch.tensor([float(view.get(key, value)) for view in self.views]) for key, value in defaults.items()
        ]
        try:
            return cameras_at(*columns)
        except ValueError as err:
            raise ConfigError(f"cameras.views: {err}") from err


def check_camera(where: str, azimuth_deg: float, elevation_deg: float, distance: float) -> None:
    """Check the values of one camera.

    Raises:
        ConfigError: a value is out of range.
    """
    within(f"{where}azimuth_deg", azimuth_deg, -LARGEST_ANGLE_DEG, LARGEST_ANGLE_DEG)
    if not -90 < elevation_deg < 90:
        raise ConfigError(f"{where}elevation_deg must lie in (-90, 90), got {elevation_deg}")
    if not 0 < distance:
        raise ConfigError(f"{where}distance must be positive, got {distance}")
    within(f"{where}distance", distance, SMALLEST_DISTANCE, LARGEST_DISTANCE)


if TYPE_CHECKING:
    SectionField = Section
else:  # a dict is read; `__post_init__` turns it into a Section
    SectionField = dict[str, Any]


def section(name: str, **default: Any) -> Any:
    """Declare a field that the registry `name` checks; with a default, YAML may leave it out."""
    return field(default_factory=lambda: dict(default), metadata={"registry": name})


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of sampling; configs/base.yaml explains them."""

    TASK_TYPE: str = ""
    seed: int = 8888
    log_dir: str = "workspace/temp_dir"
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool = True
    rasterizer: str = "auto"
    compile: bool = False
    fused: bool = True
    cuda_graph: bool = True
    low_memory: bool = False

    # Each part is checked and built by its registry.
    UNet: SectionField = section("MODEL")
    auto_encoder: SectionField = section("AUTO_ENCODER")
    embedder: SectionField = section("EMBEDDER")
    classifier: SectionField = section("MODEL")
    elevation: SectionField = section("MODEL")
    Diffusion: SectionField = section("DIFFUSION")
    sampler: SectionField = section("SAMPLERS", type="DDIM")
    reconstruction: SectionField = section("RECONSTRUCTORS")
    fit: SectionField = section("FITS")
    vid_dataset: SectionField = section("DATASETS")
    visual_inference: SectionField = section("VISUAL", type="VisualGeneratedVideos")

    # Sampling.
    test_model: str = ""
    test_list_path: str = ""
    prompts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    prompt_suffix: str = PROMPT_SUFFIX
    negative_prompt: str = ""
    known_objects: list[str] = field(default_factory=list)
    guide_scale: float = 9.0
    guide_range: tuple[float, float] = (0.0, 1.0)
    refine: bool = False
    results: str = "both"
    use_zero_infer: bool = True
    zero_local_image: bool = False
    image_prompt: str = ""
    takes_prompts: bool = False
    recenter: bool = True
    object_share: float = 200 / 256
    remove_background: bool = False
    input_elevation_deg: float | str | None = None
    known_views: list[dict[str, Any]] = field(default_factory=list)
    hold_views: str = "trajectory"
    round: int = 1
    batch_size: int = 1
    target_fps: int = 8
    resolution: tuple[int, int] = (256, 256)  # width, height
    cameras: CamerasConfig = field(default_factory=CamerasConfig)
    assets: AssetOptions = field(default_factory=AssetOptions)
    report: bool = field(default=True, metadata=NEWER)
    lora: LoraOptions = field(default_factory=LoraOptions)
    chunk_size: int = 4
    decoder_bs: int = 4

    def __post_init__(self) -> None:
        self._resolve_sections()
        for name in ("batch_size", "target_fps", "chunk_size", "decoder_bs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        within("round", self.round, 1, MOST_ROUNDS)
        within("seed", self.seed, -LARGEST_SEED, LARGEST_SEED - self.round + 1)  # round r has the seed seed + r
        within("guide_scale", self.guide_scale, -LARGEST_SCALE, LARGEST_SCALE)
        if not 0 < self.object_share <= 1:
            raise ConfigError(f"object_share must lie in (0, 1], got {self.object_share}")
        for index, view in enumerate(self.known_views):
            if set(view) != {"image", "azimuth_deg"} or not isinstance(view["azimuth_deg"], int | float):
                raise ConfigError(f"known_views[{index}] must be {{image: FILE, azimuth_deg: NUMBER}}, got {view}")
        if self.remove_background and not self.recenter:
            raise ConfigError("remove_background=true needs recenter=true, which cuts the object out; set one of them")
        start, end = self.guide_range
        if not 0 <= start < end <= 1:
            raise ConfigError(f"guide_range must be two fractions with 0 <= start < end <= 1, got [{start}, {end}]")
        self._check_input_camera()
        one_of("precision", self.precision, ("auto", "float32", "bfloat16", "float16"))
        one_of("results", self.results, RESULTS)
        one_of("hold_views", self.hold_views, HOLD_VIEWS)
        within("resolution", max(self.resolution), 8, LARGEST_SIDE)
        if min(self.resolution) < 8 or any(side % 8 for side in self.resolution):
            raise ConfigError(
                f"resolution={list(self.resolution)} must be multiples of 64 for the published networks, of 16 for the "
                "small ones"
            )

    def _resolve_sections(self) -> None:
        """Replace each section by a `Section` that its registry has checked; all refusals come together."""
        refusals = []
        for entry in fields(self):
            given = getattr(self, entry.name)
            if "registry" in entry.metadata and not isinstance(given, Section):
                own = getattr(registry, entry.metadata["registry"])
                try:
                    checked = own.section(given, where=entry.name)
                except Refused as err:
                    refusals += err.refusals
                    continue
                # the class is frozen, so a plain assignment would fail
                object.__setattr__(self, entry.name, checked)
        if refusals:
            raise Refused(refusals)

    @property
    def takes_images(self) -> bool:
        """Whether the network is an image model."""
        return self.UNet.options.takes_images

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that `load_config` can read; sections have the options that were given."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    @property
    def estimates_elevation(self) -> bool:
        """Whether the elevation of each orbit is estimated from its picture."""
        return self.input_elevation_deg == ESTIMATED

    def _check_input_camera(self) -> None:
        """Check that the elevation of the input agrees with the camera of view 0, because the input is view 0."""
        if self.input_elevation_deg is None or self.estimates_elevation:
            return
        try:
            given_deg = float(self.input_elevation_deg)
        except ValueError:
            given_deg = math.nan
        if not math.isfinite(given_deg):
            raise ConfigError(
                f"input_elevation_deg={self.input_elevation_deg} is not a finite number, nor {ESTIMATED} or null"
            )
        elevation_deg = float(camera_elevations_deg(self.cameras.c2w()[:1])[0])
        if not abs(elevation_deg - given_deg) <= ELEVATION_TOLERANCE_DEG:
            raise ConfigError(
                f"input_elevation_deg={given_deg:g}, but the input is view 0, "
                f"whose elevation is {elevation_deg:g}; set cameras.elevation_deg={given_deg:g} too (or "
                "cameras.views, with the camera of the input as view 0)"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return _plain(value.given)
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def within(name: str, value: float, low: float, high: float) -> None:
    """Check that a number lies in a range.

    Raises:
        ConfigError: it does not; NaN never does.
    """
    if low <= value <= high:
        return
    if isinstance(value, int) and value < low == 1:
        raise ConfigError(f"{name} must be >= 1, got {value}")
    raise ConfigError(f"{name} must lie in [{_short(low)}, {_short(high)}], got {value}")


def _short(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Check that a value is one of the valid values.

    Raises:
        ConfigError: it is not; the message lists the valid values.
    """
    if value not in valid:
        raise ConfigError(f"{name}={value} is unknown; valid: {', '.join(valid)}")
